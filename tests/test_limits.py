"""The limits of owners: how many requests and batches at once, and how many dollars a month."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches import Limits, Principal, current_llm_batches, errors
from flask_llm_batches.providers.adapters.openai import OpenAIAdapter
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.hosts import requests
from tests.test_files import uploaded

OPENAI = "openai:gpt-4o-mini"


def limited(make_host: MakeHost, database_url: str | Path, **limits: Any) -> Flask:
    """Make a host that limits everybody but root."""

    def limit(principal: Principal) -> Limits | None:
        return None if principal.owner == "root" else Limits(**limits)

    return make_host(database=database_url, limits=limit)


def post(app: Flask, owner: str, count: int, **fields: Any) -> Any:
    body = {"model": OPENAI, "requests": requests(count, user="x" * 4000), **fields}
    return client_of(app, owner).post("/v1/batches", json=body)


def of_file(client: FlaskClient, count: int) -> dict[str, Any]:
    """Upload a file of requests, and return the body of a create with it."""
    line = b'{"custom_id": "%d", "body": {"model": "gpt-4o-mini", "messages": []}}\n'
    file = uploaded(client, b"".join(line % number for number in range(count)))
    return {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def test_batches_at_once(make_host: MakeHost, database_url: str, llm_provider: Simulator) -> None:
    """The create above the limit says which limit it is, what is left and when there is more."""
    app = limited(make_host, database_url, batches=2)
    made = [post(app, "ada", 1).get_json()["id"] for _ in range(2)]
    answer = post(app, "ada", 1)
    assert answer.status_code == 429
    error = answer.get_json()
    assert error["error"]["code"] == "owner_limit_reached"
    said = "Your limit is 2 batches at once: 0 are left, and this batch needs 1."
    assert error["detail"] == f"{said} More are available when batches end."
    assert error["limit"] == {"name": "batches", "limit": 2, "used": 2, "left": 0, "resets_at": None}
    assert (answer.headers["Retry-After"], answer.headers["X-Should-Retry"]) == ("60", "false")
    assert post(app, "bob", 1).status_code == 200
    assert [post(app, "root", 1).status_code for _ in range(3)] == [200] * 3
    assert len(llm_provider.batches) == 6
    llm_provider.batches[0].finish()
    client_of(app, "ada").get(f"/v1/batches/{made[0]}")
    assert post(app, "ada", 1).status_code == 200


def test_the_function_of_limits_sees_admins(make_host: MakeHost, tmp_path: Path) -> None:
    """Regression: over HTTP, an admin who created for themselves came without their rights."""
    asked: list[Principal] = []
    app = make_host(database=tmp_path / "host.sqlite3", limits=asked.append)
    for fields in ({}, {"user": "the-admin"}, {"user": "bob"}):
        assert post(app, "the-admin", 1, **fields).status_code == 200
    assert asked == [*[Principal("the-admin", admin=True)] * 2, Principal("bob")]


def test_a_repeated_create_is_not_one_more(make_host: MakeHost, database_url: str) -> None:
    """The same key returns its batch, also at the limit; another key is refused, and stays free."""
    app = limited(make_host, database_url, batches=1)
    ada = client_of(app, "ada")
    body = {"model": OPENAI, "requests": requests(1)}
    first = ada.post("/v1/batches", json=body, headers={"Idempotency-Key": "a"}).get_json()
    again = ada.post("/v1/batches", json=body, headers={"Idempotency-Key": "a"})
    assert (again.status_code, again.get_json()["id"]) == (200, first["id"])
    assert ada.post("/v1/batches", json=body, headers={"Idempotency-Key": "b"}).status_code == 429
    query(database_url, "UPDATE llm_batches_batch SET status = 'completed'")
    assert ada.post("/v1/batches", json=body, headers={"Idempotency-Key": "b"}).status_code == 200


def test_a_dry_run_warns_of_a_limit(
    make_host: MakeHost, database_url: str, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """A dry run of a batch above the limit returns what it has found, and the limit as a warning."""
    app = limited(make_host, database_url, requests=3)
    ada = client_of(app, "ada")
    for count, warnings in ((3, 0), (4, 1)):
        body = {"model": OPENAI, "requests": requests(count)}
        answer = ada.post("/v1/batches?dry_run=true", json=body).get_json()
        assert (answer["requests"], len(answer["warnings"])) == (count, warnings)
    assert answer["warnings"][0].startswith(
        "Your limit is 3 requests at once: 3 are left, and this batch needs 4."
    )
    body = of_file(ada, 4)
    assert ada.post("/v1/batches?dry_run=true", json=body).get_json()["warnings"] == answer["warnings"]
    assert not llm_provider.batches
    assert "was refused" not in caplog.text


def test_a_refused_batch_is_logged(
    make_host: MakeHost, database_url: str, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the owner and the limit, also of a retry."""
    app = limited(make_host, database_url, batches=1)
    first = post(app, "ada", 1).get_json()
    llm_provider.respond = lambda _: (500, {"error": {"message": "try again"}})
    llm_provider.batches[0].finish()
    ada = client_of(app, "ada")
    assert ada.get(f"/v1/batches/{first['id']}/results").status_code == 200
    assert post(app, "ada", 1).status_code == 200
    assert ada.post(f"/v1/batches/{first['id']}/retry").status_code == 429
    (line,) = [record.getMessage() for record in caplog.records if "was refused" in record.getMessage()]
    assert line.startswith("a batch of owner 'ada' was refused: Your limit is 1 batches at once: 0 are left")


def test_requests_at_once(make_host: MakeHost, database_url: str) -> None:
    """Requests count as long as their batch runs, whoever submits them and how."""
    app = limited(make_host, database_url, requests=5)
    assert post(app, "ada", 3).status_code == 200
    answer = post(app, "ada", 3)
    assert answer.get_json()["limit"] == {
        "name": "requests",
        "limit": 5,
        "used": 3,
        "left": 2,
        "resets_at": None,
    }
    with app.app_context(), pytest.raises(errors.OwnerLimitReached):
        current_llm_batches.create(owner="ada", model=OPENAI, requests=requests(3))
    assert post(app, "ada", 2).status_code == 200


def test_a_file_above_the_limit_fails(
    make_host: MakeHost, database_url: str, llm_provider: Simulator
) -> None:
    """A file is read after the create has answered, so its batch fails, and says why."""
    app = limited(make_host, database_url, requests=2)
    ada = client_of(app, "ada")
    body = of_file(ada, 3)
    batch = ada.get(f"/v1/batches/{ada.post('/v1/batches', json=body).get_json()['id']}").get_json()
    assert batch["status"] == "failed"
    (problem,) = batch["errors"]["data"]
    assert problem["code"] == "owner_limit_reached"
    assert not llm_provider.batches
    assert post(app, "ada", 2).status_code == 200


def test_dollars_a_month(make_host: MakeHost, database_url: str, llm_provider: Simulator) -> None:
    """Prompts are reserved until results are read, and then results count; the next month begins anew."""
    # a request has about 1,000 tokens, which are 0.000075 dollars in a batch
    app = limited(make_host, database_url, dollars=Decimal("0.0002"))
    ada = client_of(app, "ada")
    batch = post(app, "ada", 2).get_json()
    answer = post(app, "ada", 2)
    assert answer.status_code == 429
    limit = answer.get_json()["limit"]
    assert (limit["name"], limit["limit"]) == ("dollars", 0.0002)
    assert 0.00015 < limit["used"] < 0.0002
    resets_at = datetime.fromtimestamp(limit["resets_at"], UTC)
    assert (resets_at.day, resets_at.hour, resets_at > datetime.now(UTC)) == (1, 0, True)
    assert 0 < int(answer.headers["Retry-After"]) <= limit["resets_at"] - time.time() + 5
    llm_provider.respond = lambda _: {
        "id": "x", "object": "chat.completion", "model": "gpt-4o-mini", "choices": [],
        "usage": {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100},
    }  # fmt: skip
    llm_provider.batches[0].finish()
    results = ada.get(f"/v1/batches/{batch['id']}/results").get_json()["results"]
    assert len(results) == 2
    assert post(app, "ada", 2).status_code == 200  # the results cost less than the reservation
    query(database_url, "UPDATE llm_batches_usage SET cost = 200000 WHERE event = 'results'")
    assert post(app, "ada", 1).status_code == 429
    query(database_url, "UPDATE llm_batches_usage SET created_at = created_at - 3000000")
    query(database_url, "UPDATE llm_batches_batch SET accounted_at = 1")
    assert post(app, "ada", 1).status_code == 200


@pytest.mark.parametrize("dollars", [float("inf"), Decimal("Infinity")])
def test_infinite_dollars_are_no_limit(make_host: MakeHost, tmp_path: Path, dollars: Any) -> None:
    """Regression: the limit could not be an integer, and every create was a 500."""
    app = limited(make_host, tmp_path / "host.sqlite3", dollars=dollars)
    assert post(app, "ada", 1).status_code == 200


def test_simultaneous_creates_cannot_pass_together(
    make_host: MakeHost, database_url: str, llm_provider: Simulator
) -> None:
    """Of 32 creates at the same moment, as many pass as the limit has room for."""
    app = limited(make_host, database_url, requests=10)
    starts = threading.Barrier(32)

    def create(_: int) -> int:
        starts.wait()
        return int(post(app, "ada", 2).status_code)

    with ThreadPoolExecutor(32) as threads:
        answers = Counter(threads.map(create, range(32)))
    assert answers == {200: 5, 429: 27}
    assert len(llm_provider.batches) == 5


def files_kept(database_url: str) -> int:
    found: int = query(database_url, "SELECT COUNT(*) FROM llm_batches_file WHERE batch_uid IS NULL")[0][0]
    return found


def test_what_is_above_the_limit_leaves_no_files(
    make_host: MakeHost, database_url: str, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the requests of refused retries and file batches filled the storage for a day."""
    monkeypatch.setattr(OpenAIAdapter, "max_requests", 2)
    app = limited(make_host, database_url, requests=3)
    ada = client_of(app, "ada")
    body = of_file(ada, 5)
    batch = ada.get(f"/v1/batches/{ada.post('/v1/batches', json=body).get_json()['id']}").get_json()
    assert batch["status"] == "failed"
    assert files_kept(database_url) == 1
    llm_provider.respond = lambda _: (400, {"error": {"message": "no"}})
    first = post(app, "ada", 2).get_json()["id"]
    llm_provider.batches[0].finish()
    assert ada.get(f"/v1/batches/{first}").get_json()["status"] == "completed"
    assert post(app, "ada", 2).status_code == 200
    answer = ada.post(f"/v1/batches/{first}/retry")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (429, "owner_limit_reached")
    assert files_kept(database_url) == 1


def test_what_was_cancelled_before_it_was_submitted_costs_nothing(
    make_host: MakeHost, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: what was reserved for a create that had been refused once counted until the next month."""
    app = limited(make_host, database_url, dollars=Decimal("0.0002"))
    ada = client_of(app, "ada")
    request = {"custom_id": "a", "body": requests(1, user="x" * 8000)[0]["body"] | {"model": "gpt-4o-mini"}}
    body = {
        "input_file_id": uploaded(ada, json.dumps(request).encode())["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    llm_provider.fail_next(429, on="POST /batches")
    batch = ada.post("/v1/batches", json=body).get_json()
    assert query(database_url, "SELECT state FROM llm_batches_batch") == [("queued",)]
    assert ada.post(f"/v1/batches/{batch['id']}/cancel").get_json()["status"] == "cancelled"
    assert post(app, "ada", 2).status_code == 200
