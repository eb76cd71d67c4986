"""A checkup finds what is wrong, and says what to do."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_llm_batches import LLMBatches, current_llm_batches
from flask_llm_batches.core.checkup import Finding
from flask_llm_batches.errors import ProviderFailed
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeDatabase, MakeHost
from tests.databases import query, take_away
from tests.hosts import requests


def findings(app: Flask, *, live: bool = False) -> dict[str, Finding]:
    with app.app_context():
        return {one.subject: one for one in current_llm_batches.checkup(live=live)}


def problems(app: Flask, *, live: bool = False) -> dict[str, str]:
    found = findings(app, live=live)
    assert all((one.problem is None) == (one.advice is None) for one in found.values())
    return {subject: f"{one.problem} {one.advice}" for subject, one in found.items() if one.problem}


def test_all_is_well(database_app: Flask, llm_provider: Simulator) -> None:
    """Without a problem, the facts are told; only a live checkup calls the provider."""
    found = findings(database_app)
    assert [one.problem for one in found.values()] == [None] * len(found)
    assert llm_provider.calls == []
    assert "50,000 requests a batch, 209 MB a batch" in found["provider openai"].fact
    assert "0 alive, 0 steps are due" in found["worker"].fact
    assert problems(database_app, live=True) == {}
    assert [(call.method, call.path) for call in llm_provider.calls] == [("GET", "/batches")]
    assert "answers" in findings(database_app, live=True)["provider openai"].fact


def test_a_database_that_does_not_answer(make_database: MakeDatabase, make_host: MakeHost) -> None:
    """The rest of the checkup goes on without it."""
    url = make_database()
    app = make_host(database=url)
    take_away(url)
    found = problems(app)
    assert found.keys() == {"database"}
    assert "SQLALCHEMY_DATABASE_URI" in found["database"]


def test_tables_that_are_missing(database_url: str, database_app: Flask) -> None:
    """A missing table and a missing column are named, with the commands that make them."""
    query(database_url, "DROP TABLE llm_batches_lane")
    query(database_url, "ALTER TABLE llm_batches_usage DROP COLUMN error")
    found = problems(database_app)
    assert found.keys() == {"database"}
    assert "llm_batches_lane, llm_batches_usage" in found["database"]
    assert "flask db upgrade" in found["database"]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        pytest.param(lambda one: one.fail_next(401, on="GET /batches"), "refuses the key (401)", id="key"),
        pytest.param(lambda one: one.fail_next(404, on="GET /batches"), "api_base", id="address"),
        pytest.param(lambda one: one.fail_next(500, on="GET /batches"), "fails (500)", id="fails"),
        pytest.param(lambda one: one.fail_next(429, on="GET /batches"), "rate limit", id="limit"),
    ],
)
def test_a_provider_with_a_problem(
    app: Flask, llm_provider: Simulator, break_it: Callable[[Simulator], Any], said: str
) -> None:
    """What its answer means is said, without its text."""
    break_it(llm_provider)
    assert said in problems(app, live=True)["provider openai"]


def test_a_provider_that_cannot_be_reached(make_host: MakeHost, tmp_path: Path) -> None:
    """No answer at all is told apart from a wrong one."""
    providers = {"openai": {"api_key": "sk-1234567890", "api_base": "http://127.0.0.1:9/v1"}}
    app = make_host(database=tmp_path / "host.sqlite3", providers=providers)
    assert problems(app) == {}
    assert "cannot be reached" in problems(app, live=True)["provider openai"]


def test_a_provider_without_a_key(make_host: MakeHost, tmp_path: Path) -> None:
    """A key that is missing is found without a call."""
    app = make_host(database=tmp_path / "host.sqlite3", providers={"openai": {"api_key": None}})
    found = problems(app)["provider openai"]
    assert "has no key" in found
    assert "LLM_BATCHES_PROVIDERS['openai']['api_key']" in found


def test_an_app_without_any_secret(tmp_path: Path, llm_provider: Simulator) -> None:
    """Regression: without a key of six characters, every error of a provider was a TypeError."""
    app = Flask("host", instance_path=str(tmp_path))
    settings = {**llm_provider.settings, "api_key": "wrong"}
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": settings}
    LLMBatches(app)
    assert "refuses the key (401)" in problems(app, live=True)["provider openai"]
    with app.app_context(), pytest.raises(ProviderFailed):
        current_llm_batches.create(owner="ada", model="openai:gpt-4o-mini", requests=requests(1))


@pytest.mark.parametrize(("hours", "way"), [(1, "behind"), (-1, "ahead of")])
def test_a_clock_that_is_wrong(
    app: Flask, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch, hours: int, way: str
) -> None:
    """The clock is compared with the provider's."""
    date = formatdate(time.time() + hours * 3600, usegmt=True)
    monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda _: date)
    assert f"seconds {way} the provider's" in problems(app, live=True)["provider openai"]
    assert llm_provider.calls_to("GET /batches")


def test_a_storage_that_is_full(make_host: MakeHost, tmp_path: Path) -> None:
    """A folder that cannot be written to is a problem of the storage, with its setting."""
    folder = tmp_path / "all batches"
    folder.mkdir()
    app = make_host(database=tmp_path / "host.sqlite3", storage=folder.as_uri())
    assert problems(app) == {}
    shutil.rmtree(folder)
    folder.touch()
    found = problems(app)
    assert found.keys() == {"storage (file)", "folder of the storage"}
    assert "LLM_BATCHES_STORAGE" in found["storage (file)"]


def test_no_place_for_temporary_files(
    make_host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a checkup broke off where no folder for temporary files can be written to."""
    app = make_host(database=tmp_path / "host.sqlite3", spool_dir=None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    found = problems(app)
    assert found.keys() == {"temporary files"}
    assert "LLM_BATCHES_SPOOL_DIR" in found["temporary files"]


def test_work_that_nobody_does(database_app: Flask, database_url: str) -> None:
    """Steps that are due without a worker, creates without an answer, and what was given up are told."""
    with database_app.app_context():
        current_llm_batches.create(owner="ada", model="openai:gpt-4o-mini", requests=requests(1))
    old = int(time.time()) - 3600
    query(database_url, f"UPDATE llm_batches_task SET due_at = {old + 7200}")
    assert problems(database_app) == {}
    query(database_url, f"UPDATE llm_batches_task SET due_at = {old}")
    assert "None is alive; 1 step is due" in problems(database_app)["worker"]
    with database_app.app_context():
        current_llm_batches._runner.seen("someone")
    assert "1 alive, but 1 step is due" in problems(database_app)["worker"]
    query(database_url, f"UPDATE llm_batches_batch SET state = 'unknown', lease_until = {old}")
    values = "'w', 'u', 'crm', 'batch.completed', 1, 11"
    columns = "uid, batch_uid, target, type, created_at, attempts"
    query(database_url, f"INSERT INTO llm_batches_webhook ({columns}) VALUES ({values})")
    columns = "batch_uid, number, custom_id, error, created_at"
    query(database_url, f"INSERT INTO llm_batches_set_aside ({columns}) VALUES ('u', 0, 'r', 'e', 1)")
    query(database_url, "UPDATE llm_batches_task SET failures = 3")
    found = problems(database_app)
    assert "refresh of batch_" in found["steps"]
    assert "flask llm-batches reconcile" in found["creates"]
    assert "flask llm-batches deliveries" in found["deliveries"]
    assert "flask llm-batches webhooks" in found["webhooks"]
