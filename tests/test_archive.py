"""Archived results are accounted for, and are there after the provider has deleted them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.wrappers import Response

from flask_llm_batches.testing import Call, Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.databases import query
from tests.test_worker import tasks, tick

NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'host.sqlite3'}"


def results(client: FlaskClient, batch_id: str, **options: Any) -> bytes:
    answer = client.get(f"/v1/batches/{batch_id}/results", **options)
    assert answer.status_code == 200, answer.text
    data: bytes = answer.data
    return data


def ended(client: FlaskClient, simulator: Simulator, count: int = 5) -> str:
    batch_id = create_batch(client, count)
    simulator.batches[-1].finish()
    return batch_id


def downloads(simulator: Simulator) -> int:
    return sum("/content" in call.path for call in simulator.calls)


def test_results_are_the_same_from_the_archive(
    database_app: Flask, database_url: str, llm_provider: Simulator
) -> None:
    """In both formats and with both filters, without a call to the provider, which may have deleted them."""
    slow: tuple[int, dict[str, object]] = (429, {"error": {"message": "slow down"}})
    llm_provider.respond = lambda request: slow if request["custom_id"] == "r1" else {"id": "x"}
    ada = client_of(database_app, "ada")
    batch_id = ended(ada, llm_provider)
    queries = ("", "status=succeeded", "status=failed")
    before = [json.loads(results(ada, batch_id, query_string=one)) for one in queries]
    lines = results(ada, batch_id, headers=NDJSON)
    tick(database_app, database_url)
    llm_provider.calls.clear()
    assert [json.loads(results(ada, batch_id, query_string=one)) for one in queries] == before
    assert results(ada, batch_id, headers=NDJSON) == lines
    assert [len(one["results"]) for one in before] == [5, 4, 1]
    assert llm_provider.calls == []


@pytest.mark.parametrize("provider", ["openai", "anthropic", "mistral"])
def test_every_request_is_in_the_archive(
    make_host: MakeHost, llm_provider: Simulator, database: str, provider: str
) -> None:
    """Requests that were not executed, or have no row at the provider, are in it, too."""
    app = make_host(database=database, providers=llm_provider.providers)
    ada = client_of(app, "ada")
    body = {"max_tokens": 9}
    requests = [
        {"custom_id": f"r{number}", "body": {"messages": [{"role": "user", "content": "x"}], **body}}
        for number in range(4)
    ]
    batch_id = ada.post("/v1/batches", json={"model": f"{provider}:m", "requests": requests}).get_json()["id"]
    llm_provider.batches[0].expire(after=2)
    tick(app, database)
    llm_provider.calls.clear()
    rows = json.loads(results(ada, batch_id))["results"]
    assert sorted(row["custom_id"] for row in rows) == ["r0", "r1", "r2", "r3"]
    assert [row["error"]["code"] for row in rows if row["error"]] == ["batch_expired"] * 2
    assert llm_provider.calls == []


def test_usage_is_accounted_for_without_a_reader(
    database_app: Flask, database_url: str, llm_provider: Simulator
) -> None:
    """Usage is recorded once, and a later reader changes nothing."""
    ada = client_of(database_app, "ada")
    batch_id = ended(ada, llm_provider)
    tick(database_app, database_url)
    (sums,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert sums["total_tokens"] > 0
    assert sums["unfetched"] == 0
    results(ada, batch_id)
    assert ada.get("/v1/batches/usage").get_json()["data"] == [sums]
    events = query(database_url, "SELECT event FROM llm_batches_usage WHERE event = 'results'")
    assert len(events) == 1


def test_damaged_rows_are_read_again(make_host: MakeHost, llm_provider: Simulator, database: str) -> None:
    """Nothing is archived until they are whole, or too old to become whole."""
    app = make_host(database=database)
    ada = client_of(app, "ada")

    def damage(call: Call, answer: Response) -> Response:
        if call.path.endswith("/content"):
            answer.data = answer.data.replace(b'"custom_id"', b'"custom_id', 1)
        return answer

    batch_id = ended(ada, llm_provider)
    llm_provider.rewrite = damage
    tick(app, database)
    assert tasks(database) == [("archive",)]
    llm_provider.rewrite = None
    tick(app, database)
    assert tasks(database) == [("expire",)]
    rows = json.loads(results(ada, batch_id))["results"]
    assert [row["error"] for row in rows] == [None] * 5


def test_the_archive_expires(make_host: MakeHost, llm_provider: Simulator, database: str) -> None:
    """After ``LLM_BATCHES_RETENTION`` days, results come from the provider again."""
    app = make_host(database=database, retention=3)
    ada = client_of(app, "ada")
    batch_id = ended(ada, llm_provider)
    tick(app, database)
    ((due_at,),) = query(database, "SELECT due_at FROM llm_batches_task")
    assert abs(due_at - time.time() - 3 * 86_400) < 5
    assert query(database, "SELECT count(*) FROM llm_batches_chunk") == [(1,)]
    tick(app, database)
    assert query(database, "SELECT count(*) FROM llm_batches_chunk") == [(0,)]
    assert tasks(database) == []
    before = downloads(llm_provider)
    results(ada, batch_id)
    assert downloads(llm_provider) > before


def test_nothing_is_kept_if_not_wanted(make_host: MakeHost, llm_provider: Simulator, database: str) -> None:
    """``LLM_BATCHES_RETENTION = 0`` accounts for results, and keeps none."""
    app = make_host(database=database, retention=0)
    ada = client_of(app, "ada")
    ended(ada, llm_provider)
    tick(app, database)
    assert query(database, "SELECT count(*) FROM llm_batches_object") == [(0,)]
    assert ada.get("/v1/batches/usage").get_json()["data"][0]["total_tokens"] > 0
    assert tasks(database) == []


def test_a_batch_that_failed_has_no_archive(
    make_host: MakeHost, llm_provider: Simulator, database: str
) -> None:
    """Its task ends."""
    app = make_host(database=database)
    create_batch(client_of(app, "ada"))
    llm_provider.batches[0].fail("it is bad")
    tick(app, database)
    assert tasks(database) == []


def test_a_purged_batch_takes_its_archive_along(
    make_host: MakeHost, llm_provider: Simulator, database: str
) -> None:
    """With its task."""
    app = make_host(database=database)
    ended(client_of(app, "ada"), llm_provider)
    tick(app, database)
    run = app.test_cli_runner().invoke(args=["llm-batches", "purge", "--before", "2999-01-01"])
    assert run.output == "1 batches are deleted\n"
    assert tasks(database) == []
    assert query(database, "SELECT count(*) FROM llm_batches_object") == [(0,)]


def test_a_worker_that_is_killed_after_it_archived_loses_no_step(
    ada: FlaskClient, app: Flask, llm_provider: Simulator, database: str
) -> None:
    """Regression: if the provider had lost the results since, nothing came after the archive."""
    batch_id = ended(ada, llm_provider)
    tick(app, database)
    left = tasks(database)
    assert left
    query(database, "UPDATE llm_batches_task SET step = 'archive'")
    llm_provider.rewrite = lambda call, answer: (
        Response(b"{}", 404) if call.path.endswith("/content") else answer
    )
    tick(app, database)
    assert tasks(database) == left
    assert len(json.loads(results(ada, batch_id))["results"]) == 5
