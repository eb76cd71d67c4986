"""Old batches can be deleted."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import Engine, event

from flask_llm_batches import current_llm_batches
from flask_llm_batches.store import purge
from flask_llm_batches.testing import Simulator
from tests.conftest import client_of, create_batch
from tests.databases import query
from tests.faults import create, go_wrong

TABLES = ("batch", "manifest", "idempotency", "usage")


def counts(database: str) -> dict[str, int]:
    return {name: query(database, f"SELECT count(*) FROM llm_batches_{name}")[0][0] for name in TABLES}


def run(app: Flask, *options: str) -> str:
    result = app.test_cli_runner().invoke(args=["llm-batches", "purge", *options])
    assert result.exit_code == 0, result.output
    return str(result.output)


@pytest.fixture
def aged(
    database_app: Flask, database_url: str, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> Flask:
    """Six batches that are a day old: three have ended, one was refused, two have not; and a new one."""
    monkeypatch.setattr(purge, "_GROUP", 2)
    ada = client_of(database_app, "ada")
    for number in range(4):
        create(ada, "openai", key=f"k{number}")
    go_wrong(llm_provider, "openai", done=True)
    create(ada, "openai", key="unknown")
    llm_provider.fail_next(400, on="POST /batches")
    create(ada, "openai")
    for batch in llm_provider.batches[:3]:
        batch.finish()
    ada.get("/v1/batches")
    query(database_url, "UPDATE llm_batches_batch SET created_at = created_at - 86400 WHERE id < 7")
    query(database_url, "UPDATE llm_batches_batch SET state = 'unknown', batch_id = NULL WHERE id = 5")
    create_batch(ada)
    llm_provider.batches[-1].finish()
    ada.get("/v1/batches")
    return database_app


def test_batches_that_have_ended_are_purged(aged: Flask, database_url: str) -> None:
    """They go with their manifests and keys; what runs, is unknown or is new stays, and so does the usage."""
    before = str(int(time.time()) - 3600)
    usage = counts(database_url)["usage"]
    assert run(aged, "--before", before, "--dry-run") == "4 batches would be deleted\n"
    assert counts(database_url)["batch"] == 7
    assert run(aged, "--before", before) == "4 batches are deleted\n"
    assert counts(database_url) == {"batch": 3, "manifest": 3, "idempotency": 2, "usage": usage}
    assert run(aged, "--before", before) == "0 batches are deleted\n"
    (sums,) = client_of(aged, "ada").get("/v1/batches/usage").get_json()["data"]
    assert sums["batches"] >= 5


def test_usage_is_purged_if_asked(aged: Flask, database_url: str) -> None:
    """Only that of the batches that are deleted."""
    left = query(database_url, "SELECT uid FROM llm_batches_batch WHERE id IN (4, 5, 7)")
    run(aged, "--before", str(int(time.time()) - 3600), "--usage")
    used = query(database_url, "SELECT DISTINCT batch_uid FROM llm_batches_usage")
    assert {uid for (uid,) in used} == {uid for (uid,) in left}


def test_a_purged_key_is_free(aged: Flask, llm_provider: Simulator) -> None:
    """The same create makes a new batch; one with the key of a batch that still runs does not."""
    run(aged, "--before", str(int(time.time()) - 3600))
    ada = client_of(aged, "ada")
    batches = len(llm_provider.batches)
    assert "Idempotent-Replayed" not in create(ada, "openai", key="k0").headers
    assert create(ada, "openai", key="k3").headers["Idempotent-Replayed"] == "true"
    assert len(llm_provider.batches) == batches + 1


def test_a_wrong_time_is_refused(app: Flask) -> None:
    """Nothing is deleted."""
    result = app.test_cli_runner().invoke(args=["llm-batches", "purge", "--before", "soon"])
    assert result.exit_code == 2
    assert "2026-11-01" in result.output


def test_old_input_files_are_purged(database_app: Flask, database_url: str) -> None:
    """A file that a batch waits for stays, and so do new ones and uploads that have not ended."""
    with database_app.app_context():
        files = current_llm_batches.files
        made = []
        for _ in range(3):
            with files.upload(owner="ada") as upload:
                upload.write(b'{"custom_id": "a", "body": {"model": "openai:m"}}')
            made.append(upload.file.id)
        current_llm_batches._runner.seen("worker")  # so that the create leaves the file to it
        waiting = current_llm_batches.create(owner="ada", input_file_id=made[0])
        old = f"UPDATE llm_batches_file SET created_at = created_at - 86400 WHERE uid <> '{made[2][5:]}'"
        query(database_url, old)
        run(database_app, "--before", str(int(time.time()) - 3600))
        assert {one.id for one in files.list(owner="ada").files} == {made[0], made[2]}
        assert waiting.status == "validating"


def test_batches_of_very_many_parts(app: Flask, tmp_path: Path) -> None:
    """Regression: more parts than a statement takes could not be deleted, nor any other batch."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"

    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)

    columns = "uid, provider, state, owner, model, requests, status, snapshot, created_at, delivered, part_of"
    same = "'openai', 'split', 'ada', 'm', 1, 'completed', '{}', 1, 0"
    event.listen(Engine, "checkout", limit)
    try:
        with app.app_context():
            assert current_llm_batches.purge(before=100) == 0
            numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)"
            into = f"INSERT INTO llm_batches_batch ({columns})"
            query(database, f"{into} VALUES ('whole', {same}, NULL)")
            query(database, f"{into} {numbers} SELECT 'part' || i, {same}, 'whole' FROM n")
            assert current_llm_batches.purge(before=100) == 1
    finally:
        event.remove(Engine, "checkout", limit)
    assert counts(database)["batch"] == 0
