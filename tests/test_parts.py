"""Batches of several parts: they are split, queued, merged and cancelled, and callers see one batch."""

from __future__ import annotations

import hmac
import json
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.wrappers import Response

from flask_llm_batches import EVERYONE, Batch, DeliveredRow, current_llm_batches
from flask_llm_batches.core import parts as core_parts
from flask_llm_batches.errors import StorageUnavailable
from flask_llm_batches.providers.adapters.anthropic import AnthropicAdapter
from flask_llm_batches.providers.adapters.mistral import MistralAdapter
from flask_llm_batches.providers.adapters.openai import OpenAIAdapter
from flask_llm_batches.signals import batch_finished, batch_submitted, usage_recorded
from flask_llm_batches.testing import Call, Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import WINDOW, rewrite_lists, time_passes
from tests.hosts import requests
from tests.test_files import uploaded
from tests.test_webhooks import SECRET, running_target

OPENAI = "openai:m"

TOKENS = 1035
"""The tokens of two of the ``long`` requests."""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for adapter in (OpenAIAdapter, AnthropicAdapter, MistralAdapter):
        monkeypatch.setattr(adapter, "max_requests", 2)


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, database_url: str) -> Flask:
    llm_provider.seconds = 0
    return make_host(database=database_url, providers=llm_provider.providers)


@pytest.fixture
def ada(app: Flask) -> FlaskClient:
    return client_of(app, "ada")


def tick(app: Flask, database: str) -> None:
    """Let everything be due, and do it."""
    query(database, "UPDATE llm_batches_task SET due_at = 0")
    query(database, "UPDATE llm_batches_batch SET refreshed_at = 0")
    with app.app_context():
        current_llm_batches.tick()


def ended(client: FlaskClient, database: str, batch_id: str, ticks: int = 40) -> dict[str, Any]:
    """Let a worker work until a batch has ended, and return the batch."""
    for _ in range(ticks):
        tick(client.application, database)
        batch = retrieved(client, batch_id)
        if batch["status"] in ("completed", "failed", "expired", "cancelled"):
            tick(client.application, database)
            return batch
    raise AssertionError(batch)


def polled(client: FlaskClient, database: str, count: int) -> dict[str, Any]:
    """Make a batch, retrieve it until it is completed, and return it. No worker does anything."""
    batch = made(client, count)
    for _ in range(20):
        query(database, "UPDATE llm_batches_task SET due_at = 0")
        batch = retrieved(client, batch["id"])
        if batch["status"] == "completed":
            return batch
    raise AssertionError(batch)


def retrieved(client: FlaskClient, batch_id: str) -> dict[str, Any]:
    answer = client.get(f"/v1/batches/{batch_id}")
    assert answer.status_code == 200, answer.text
    batch: dict[str, Any] = answer.get_json()
    return batch


def made(client: FlaskClient, count: int, **fields: Any) -> dict[str, Any]:
    body = {"model": OPENAI, "requests": requests(count), **fields}
    answer = client.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    batch: dict[str, Any] = answer.get_json()
    return batch


def long(count: int) -> list[dict[str, Any]]:
    """Return requests whose tokens are about a fourth of their bytes, as our estimate has it."""
    return requests(count, user="x" * 2000)


def rows(client: FlaskClient, batch_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/batches/{batch_id}/results")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.get_json()["results"]
    return found


def ids(found: list[dict[str, Any]]) -> list[str]:
    return sorted(row["custom_id"] for row in found)


def names(count: int) -> list[str]:
    return sorted(f"r{number}" for number in range(count))


def test_many_requests_are_one_batch(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """Five requests at a provider that takes two are three parts there, and one batch here."""
    heard: Counter[str] = Counter()
    signals = [batch_submitted, batch_finished, usage_recorded]
    receivers = [lambda _, name=signal.name, **__: heard.update([name]) for signal in signals]
    for signal, receiver in zip(signals, receivers, strict=True):
        signal.connect(receiver)
    batch = made(ada, 5, metadata={"team": "search"})
    assert batch["status"] == "validating"
    assert batch["request_counts"] == {"total": 5, "completed": 0, "failed": 0}
    done = ended(ada, database_url, batch["id"])
    assert (done["id"], done["status"], done["model"]) == (batch["id"], "completed", "m")
    assert done["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert done["metadata"] == {"team": "search"}
    assert ids(rows(ada, batch["id"])) == names(5)
    assert sorted(len(part.requests) for part in llm_provider.batches) == [1, 2, 2]
    assert [one["id"] for one in ada.get("/v1/batches").get_json()["data"]] == [batch["id"]]
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert (used["batches"], used["requests"], used["unfetched"]) == (1, 5, 0)
    assert used["total_tokens"] > 0
    assert heard == {"batch-submitted": 1, "batch-finished": 1, "usage-recorded": 2}
    assert query(database_url, "SELECT COUNT(*) FROM llm_batches_task WHERE step <> 'expire'") == [(0,)]


@pytest.mark.parametrize("kind", ["json", "jsonl", "file", "python"])
def test_every_way_of_submitting_is_split(
    app: Flask, ada: FlaskClient, database_url: str, llm_provider: Simulator, kind: str
) -> None:
    """JSON, JSONL, a file and Python become the same parts."""
    asked = [{"custom_id": one["custom_id"], "body": one["body"] | {"model": OPENAI}} for one in requests(5)]
    lines = "\n".join(map(json.dumps, asked)).encode()
    if kind == "json":
        batch_id = ada.post("/v1/batches", json={"requests": asked}).get_json()["id"]
    elif kind == "jsonl":
        batch_id = ada.post("/v1/batches", data=lines, content_type="application/jsonl").get_json()["id"]
    elif kind == "file":
        file_id = uploaded(ada, lines)["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch_id = ada.post("/v1/batches", json=body).get_json()["id"]
    else:
        with app.app_context():
            batch_id = current_llm_batches.create(owner="ada", requests=asked).id
    done = ended(ada, database_url, batch_id)
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 5)
    assert ids(rows(ada, batch_id)) == names(5)
    assert sorted(ids(part.requests) for part in llm_provider.batches) == [
        ["r0", "r1"],
        ["r2", "r3"],
        ["r4"],
    ]
    output = ada.get(f"/v1/files/{done['output_file_id']}/content")
    assert ids([json.loads(line) for line in output.text.splitlines()]) == names(5)


def test_several_models_are_parts(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """Each request runs with the model that it names, at whichever provider; usage is by model."""
    models = ["openai:m", "anthropic:c", "openai:n", "mistral:s", "openai:m"]
    asked = [
        {"custom_id": f"r{number}", "body": {"model": model, "max_tokens": 9, "messages": [
            {"role": "user", "content": "hi"}]}}
        for number, model in enumerate(models)
    ]  # fmt: skip
    batch = ada.post("/v1/batches", json={"requests": asked}).get_json()
    done = ended(ada, database_url, batch["id"])
    assert (done["status"], done["model"], done["provider"]) == ("completed", None, "openai")
    assert ids(rows(ada, batch["id"])) == names(5)
    at_provider = {
        (part.protocol, *(line["body"]["model"] for line in part.requests)) for part in llm_provider.batches
    }
    assert at_provider == {
        ("openai", "m", "m"),
        ("openai", "n"),
        ("anthropic", "c"),
        ("mistral", "s"),
    }
    used = ada.get("/v1/batches/usage?group_by=model").get_json()["data"]
    assert {one["group"] for one in used if one["total_tokens"]} == {"m", "n", "c", "s"}
    assert sum(one["batches"] for one in used) == 1


def test_the_first_wrong_request_stops_all_parts(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """A wrong request after parts that are complete is a 422, and nothing of the parts is left."""
    asked = [*requests(5), {"custom_id": "r0", "body": {}}, {"custom_id": "x"}]
    answer = ada.post("/v1/batches", json={"model": OPENAI, "requests": asked})
    assert answer.status_code == 422
    assert len(answer.get_json()["detail"]) == 2
    assert query(database_url, "SELECT COUNT(*) FROM llm_batches_batch") == [(0,)]
    for table in ("file", "object", "chunk"):
        assert query(database_url, f"SELECT COUNT(*) FROM llm_batches_{table}") == [(0,)]
    assert not llm_provider.calls


def test_a_dry_run_counts_parts(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """It says how many batches the provider would get and about how many tokens, and keeps nothing."""
    answer = ada.post("/v1/batches?dry_run=true", json={"model": OPENAI, "requests": requests(5)}).get_json()
    assert (answer["requests"], answer["parts"]) == (5, 3)
    assert answer["estimated_tokens"] == answer["bytes"] // 4
    assert (answer["estimated_cost"], answer["standard_cost"]) == (None, None)
    body = {"model": "openai:gpt-4o-mini", "requests": requests(5)}
    answer = ada.post("/v1/batches?dry_run=true", json=body).get_json()
    # gpt-4o-mini's prompts cost 0.15 dollars a million tokens, and half of that in batches
    tokens = Decimal(answer["estimated_tokens"])
    assert abs(Decimal(answer["standard_cost"]) - tokens * Decimal("0.15e-6")) < Decimal("1e-6")
    assert Decimal(answer["estimated_cost"]) * 2 == Decimal(answer["standard_cost"])
    assert query(database_url, "SELECT COUNT(*) FROM llm_batches_file") == [(0,)]
    assert not llm_provider.calls


def test_a_key_makes_one_batch_of_parts(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """A create that is repeated returns the batch as it is, before its end and after."""
    body = {"model": OPENAI, "requests": requests(5)}
    first = ada.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"}).get_json()
    for status in ("in_progress", "completed"):
        again = ada.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"})
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.get_json()["id"] == first["id"]
        other = ada.post(
            "/v1/batches", json=body | {"requests": requests(4)}, headers={"Idempotency-Key": "k"}
        )
        assert other.get_json()["error"]["code"] == "idempotency_mismatch"
        assert query(database_url, "SELECT COUNT(*) FROM llm_batches_file WHERE bytes IS NULL "
            "AND batch_uid IS NULL") == [(3,)]  # fmt: skip
        if status == "in_progress":
            ended(ada, database_url, first["id"])
    assert len(llm_provider.batches) == 3


def test_owners_see_their_own_parts_only(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """A batch of parts is a 404 for others, and so is a part by its provider's id, also for its owner."""
    batch = made(ada, 5)
    eve = client_of(app, "eve")
    for what in ("", "/results", "/cancel"):
        method = eve.post if what == "/cancel" else eve.get
        assert method(f"/v1/batches/{batch['id']}{what}?provider=openai").status_code == 404
    (part, *_) = llm_provider.batches
    assert eve.get(f"/v1/batches/{part.id}?provider=openai").status_code == 404
    assert ada.get(f"/v1/batches/{part.id}?provider=openai").status_code == 404


def test_without_a_worker_polls_go_on(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """Nobody works but the polls: the parts are submitted one after the other, and the batch ends."""
    batch = polled(ada, database_url, 5)
    assert ids(rows(ada, batch["id"])) == names(5)
    assert len(llm_provider.batches) == 3
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert used["total_tokens"] > 0


def test_no_room_is_no_failure(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """OpenAI fails a part for want of room after its create: the part waits, and all rows come."""
    llm_provider.seconds = None
    llm_provider.token_limit = 2 * TOKENS - 1
    batch = made(ada, 6, requests=long(6))
    tick(ada.application, database_url)
    first = llm_provider.batches[0]
    for _ in range(3):
        tick(ada.application, database_url)
        assert retrieved(ada, batch["id"])["status"] == "in_progress"
    assert [part.status for part in llm_provider.batches] == ["in_progress", "failed"]
    llm_provider.seconds = 0
    first.finish()
    done = ended(ada, database_url, batch["id"])
    assert done["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
    assert ids(rows(ada, batch["id"])) == names(6)
    ran = Counter(part.status for part in llm_provider.batches)
    assert ran["completed"] == 3
    assert ran["failed"] <= 2


@pytest.mark.parametrize("limit", ["three requests", "one request"])
def test_a_part_above_the_limit_is_divided(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """A part that never fits is divided until its pieces fit."""
    monkeypatch.setattr(OpenAIAdapter, "max_requests", 10)
    monkeypatch.setattr("flask_llm_batches.store.lanes._PATIENCE", 1)
    batch = made(ada, 12, requests=long(12))
    llm_provider.token_limit = TOKENS // 2 * (3 if limit == "three requests" else 1) + 100
    for _ in range(60):
        query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
        tick(ada.application, database_url)
        if retrieved(ada, batch["id"])["status"] == "completed":
            break
    assert retrieved(ada, batch["id"])["request_counts"]["completed"] == 12
    tick(ada.application, database_url)
    assert ids(rows(ada, batch["id"])) == names(12)
    done = [part for part in llm_provider.batches if part.status == "completed"]
    assert Counter(line["custom_id"] for part in done for line in part.requests) == dict.fromkeys(
        names(12), 1
    )


def test_a_limit_may_not_make_any_number_of_parts(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a provider names an absurd limit, a batch is not divided without end, and fails at last."""
    monkeypatch.setattr("flask_llm_batches.core.parts._MOST_PARTS", 6)
    monkeypatch.setattr("flask_llm_batches.core.parts._MOST_REFUSALS", 3)
    llm_provider.token_limit = 1
    batch = made(ada, 4)
    for _ in range(40):
        query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
        tick(ada.application, database_url)
        done = retrieved(ada, batch["id"])
        if done["status"] == "failed":
            break
    assert done["status"] == "failed"
    assert {problem["code"] for problem in done["errors"]["data"]} == {"no_room"}
    assert "Limit: 1 enqueued tokens" in done["errors"]["data"][0]["message"]
    assert query(database_url, "SELECT COUNT(*) FROM llm_batches_batch")[0][0] <= 20


def test_one_request_above_the_limit_soon_makes_way(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: others waited for hours behind a request that can never run."""
    llm_provider.token_limit = TOKENS // 4
    batch = made(ada, 3, requests=[*long(1), *requests(3)[1:]])
    for _ in range(20):
        query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
        tick(ada.application, database_url)
        done = retrieved(ada, batch["id"])
        if done["status"] == "completed":
            break
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    (failed,) = [row for row in rows(ada, batch["id"]) if row["error"]]
    assert (failed["custom_id"], failed["error"]["code"]) == ("r0", "batch_failed")


def alive(database: str) -> None:
    """Record that a worker is alive."""
    query(database, "DELETE FROM llm_batches_worker")
    query(database, "INSERT INTO llm_batches_worker (uid, seen_at) VALUES ('w', 4000000000)")


@pytest.mark.parametrize("provider", ["openai", "anthropic", "mistral"])
def test_a_small_batch_waits_if_its_create_is_limited(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, provider: str
) -> None:
    """A 429 at the create of a small batch is no answer to its caller while a worker is alive."""
    alive(database_url)
    path = {"openai": "/batches", "anthropic": "/messages/batches", "mistral": "/batch/jobs"}[provider]
    llm_provider.fail_next(429, on=f"POST {path}")
    batch = made(ada, 2, model=f"{provider}:m", requests=requests(2, max_tokens=5))
    assert (batch["status"], batch["request_counts"]["total"]) == ("validating", 2)
    done = ended(ada, database_url, batch["id"])
    assert (done["id"], done["status"]) == (batch["id"], "completed")
    assert ids(rows(ada, batch["id"])) == names(2)
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert (used["batches"], used["requests"]) == (1, 2)
    assert len(llm_provider.batches) == 1


def test_a_small_batch_that_has_no_room_later_waits_too(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """It keeps its provider's id, and its caller sees ``validating``, then success."""
    alive(database_url)
    llm_provider.seconds = None
    body = {"model": OPENAI, "requests": requests(2)}
    first = made(ada, 2)
    tick(ada.application, database_url)
    llm_provider.token_limit = llm_provider.batches[0].tokens
    second = ada.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"}).get_json()
    assert second["id"] == llm_provider.batches[1].id
    for _ in range(3):
        tick(ada.application, database_url)
        assert retrieved(ada, second["id"])["status"] == "validating"
    assert [part.status for part in llm_provider.batches] == ["in_progress", "failed"]
    llm_provider.seconds = 0
    llm_provider.batches[0].finish()
    done = ended(ada, database_url, second["id"])
    assert (done["id"], done["status"]) == (second["id"], "completed")
    assert ids(rows(ada, second["id"])) == names(2)
    again = ada.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"})
    assert (again.get_json()["id"], again.headers["Idempotent-Replayed"]) == (second["id"], "true")
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert (used["batches"], used["requests"]) == (2, 4)
    assert ended(ada, database_url, first["id"])["status"] == "completed"


def test_no_money_is_an_answer(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """A 429 because the account has no money does not pass, so its caller gets it at once."""
    alive(database_url)
    error = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
    llm_provider.fail_next(429, on="POST /batches", body=json.dumps({"error": error}))
    assert ada.post("/v1/batches", json={"model": OPENAI, "requests": requests(2)}).status_code == 429


def flaky(failures: int, status: int = 503) -> Any:
    """Return answers of which each second request fails so often before it succeeds."""
    asked: Counter[str] = Counter()

    def respond(line: Any) -> Any:
        name = line["custom_id"]
        asked[name] += 1
        if int(name[1:]) % 2 and asked[name] <= failures:
            return status, {"error": {"message": "try later", "code": "server_error"}}
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        return {"id": name, "object": "chat.completion", "model": "m", "choices": [], "usage": usage}

    respond.asked = asked  # type: ignore[attr-defined]
    return respond


@pytest.mark.parametrize("count", [2, 5])
def test_rows_that_fail_for_a_passing_reason_are_submitted_again(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, count: int
) -> None:
    """Rows that fail twice and pass the third time are results, and usage has what was billed."""
    llm_provider.respond = flaky(2)
    batch = made(ada, count, retries=2)
    done = ended(ada, database_url, batch["id"])
    assert (done["status"], done["request_counts"]) == (
        "completed",
        {"total": count, "completed": count, "failed": 0},
    )
    found = rows(ada, batch["id"])
    assert ids(found) == names(count)
    assert all(row["result"]["id"] == row["custom_id"] for row in found)
    asked = llm_provider.respond.asked  # type: ignore[attr-defined]
    assert asked == {name: 3 if int(name[1:]) % 2 else 1 for name in names(count)}
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert (used["batches"], used["requests"], used["total_tokens"]) == (1, count, 11 * count)
    results = "SELECT requests, total_tokens FROM llm_batches_usage WHERE event = 'results'"
    assert query(database_url, results) == [(count, 11 * count)]


def test_what_is_refused_is_asked_once(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """A row that was refused for what it is is not submitted again; one that never passes ends as failed."""
    llm_provider.respond = flaky(9, status=400)
    batch = made(ada, 4, retries=5)
    done = ended(ada, database_url, batch["id"])
    assert done["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    assert set(llm_provider.respond.asked.values()) == {1}  # type: ignore[attr-defined]
    llm_provider.respond = flaky(9)
    done = ended(ada, database_url, made(ada, 4, retries=1)["id"])
    assert done["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    failed = [row for row in rows(ada, done["id"]) if row["error"]]
    assert [(row["error"]["status"], row["error"]["retryable"]) for row in failed] == [(503, True)] * 2
    assert sorted(llm_provider.respond.asked.values()) == [1, 1, 2, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["parts", "whole"])
def test_what_failed_is_a_new_batch(
    app: Flask, ada: FlaskClient, database_url: str, llm_provider: Simulator, kind: str
) -> None:
    """A retry has the failed requests of a batch that has ended, and both know each other."""
    llm_provider.respond = flaky(1)
    llm_provider.seconds = None
    count = 5 if kind == "parts" else 2
    old = made(ada, count, metadata={"team": "search"})
    path = f"/v1/batches/{old['id']}/retry"
    assert client_of(app, "eve").post(f"{path}?provider=openai").status_code == 404
    early = ada.post(path)
    assert (early.status_code, early.get_json()["error"]["code"]) == (409, "batch_not_complete")
    llm_provider.seconds = 0
    for part in llm_provider.batches:
        part.finish()
    ended(ada, database_url, old["id"])
    new = ada.post(path, headers={"Idempotency-Key": "k"})
    assert new.status_code == 200, new.text
    again = ada.post(path, headers={"Idempotency-Key": "k"})
    assert again.get_json()["id"] == new.get_json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    done = ended(ada, database_url, new.get_json()["id"])
    assert done["metadata"] == {"team": "search"}
    failed = [name for name in names(count) if int(name[1:]) % 2]
    assert done["request_counts"] == {"total": len(failed), "completed": len(failed), "failed": 0}
    assert ids(rows(ada, done["id"])) == failed
    assert ada.get(f"/v1/batches/{old['id']}?include=parts").get_json()["retried_by"] == [done["id"]]
    assert ada.get(f"/v1/batches/{done['id']}?include=parts").get_json()["retry_of"] == old["id"]
    nothing = ada.post(f"/v1/batches/{done['id']}/retry")
    assert (nothing.status_code, nothing.get_json()["error"]["code"]) == (422, "validation_error")
    runner = app.test_cli_runner()
    made_again = runner.invoke(args=["llm-batches", "retry", old["id"], "--key", "k"])
    assert made_again.output.strip() == done["id"]
    shown = runner.invoke(args=["llm-batches", "parts", old["id"]]).output.splitlines()
    assert len(shown) == len(llm_provider.batches) - len(ada.get(
        f"/v1/batches/{done['id']}?include=parts").get_json()["parts"])  # fmt: skip


def test_requests_that_are_gone_are_not_retried(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Anthropic keeps no requests, so a retry of a batch that it got as it was is a 410."""
    llm_provider.respond = flaky(9)
    batch = made(ada, 2, model="anthropic:c", requests=requests(2, max_tokens=5))
    ended(ada, database_url, batch["id"])
    answer = ada.post(f"/v1/batches/{batch['id']}/retry")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (410, "requests_gone")


def test_parts_are_shown_to_who_asks(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """``include=parts`` shows where what is."""
    llm_provider.seconds = None
    batch = made(ada, 5)
    parts = ada.get(f"/v1/batches/{batch['id']}?include=parts").get_json()["parts"]
    assert [part["status"] for part in parts] == ["validating", "queued", "queued"]
    assert [part["request_counts"]["total"] for part in parts] == [2, 2, 1]
    assert parts[0]["provider_batch_id"] == llm_provider.batches[0].id
    assert "parts" not in ada.get(f"/v1/batches/{batch['id']}").get_json()
    assert ada.get(f"/v1/batches/{batch['id']}?include=all").status_code == 422


@pytest.mark.parametrize("moment", ["queued", "running", "ended"])
def test_cancelling_reaches_every_part(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, moment: str
) -> None:
    """Parts that wait are cancelled at once, those at the provider there; no request is without a row."""
    llm_provider.seconds = None
    batch = made(ada, 5)
    if moment != "queued":
        for _ in range(4):
            tick(ada.application, database_url)
        assert len(llm_provider.batches) == 3
    if moment == "ended":
        for part in llm_provider.batches[:2]:
            part.finish()
        tick(ada.application, database_url)
    answer = ada.post(f"/v1/batches/{batch['id']}/cancel", json={})
    assert (answer.status_code, answer.get_json()["status"]) == (200, "cancelling")
    assert ada.post(f"/v1/batches/{batch['id']}/cancel").get_json()["status"] == "cancelling"
    tick(ada.application, database_url)
    for part in llm_provider.batches:
        if part.status == "cancelling":
            part.finish()
    done = ended(ada, database_url, batch["id"])
    assert done["status"] == "cancelled"
    found = rows(ada, batch["id"])
    assert ids(found) == names(5)
    completed = 4 if moment == "ended" else 0
    assert done["request_counts"] == {"total": 5, "completed": completed, "failed": 5 - completed}
    assert sum(row["error"] is None for row in found) == completed
    assert {row["error"]["code"] for row in found if row["error"]} == {"batch_cancelled"}
    assert ada.post(f"/v1/batches/{batch['id']}/cancel").get_json()["status"] == "cancelled"
    assert len(llm_provider.batches) == (1 if moment == "queued" else 3)


def test_a_failed_part_loses_no_row(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """The requests of a part that its provider refuses have an error each, and the others their results."""
    llm_provider.seconds = None
    batch = made(ada, 5)
    llm_provider.batches[0].fail("the file is odd", code="invalid_file")
    llm_provider.seconds = 0
    done = ended(ada, database_url, batch["id"])
    assert done["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
    found = rows(ada, batch["id"])
    assert ids(found) == names(5)
    errors = [row["error"] for row in found if row["error"]]
    assert [error["code"] for error in errors] == ["batch_failed"] * 2
    assert "the file is odd" in errors[0]["message"]


def test_a_batch_fails_if_all_its_parts_do(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """It says why, as any batch that fails."""
    llm_provider.seconds = None
    batch = made(ada, 3)
    for _ in range(3):
        for part in llm_provider.batches:
            if part.status != "failed":
                part.fail("the file is odd", code="invalid_file")
        tick(ada.application, database_url)
    done = ended(ada, database_url, batch["id"])
    assert done["status"] == "failed"
    assert {problem["code"] for problem in done["errors"]["data"]} == {"invalid_file"}
    answer = ada.get(f"/v1/batches/{batch['id']}/results")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "batch_failed")


def test_owners_take_turns(app: Flask, database_url: str, llm_provider: Simulator) -> None:
    """While one owner has many parts, the single part of another waits for one of these at most."""
    llm_provider.seconds = None
    llm_provider.token_limit = 2 * TOKENS - 1
    owners = {name: client_of(app, name) for name in ("ada", "bob", "cy", "dot")}
    with app.app_context():
        for _ in range(2):
            current_llm_batches.create(owner="ada", model=OPENAI, requests=long(20), retries=1)
    tick(app, database_url)
    for name in ("bob", "cy", "dot"):
        made(owners[name], 2, requests=long(2), retries=1)
    order: list[str] = []
    for _ in range(120):
        query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
        tick(app, database_url)
        for part in llm_provider.batches:
            if part.status == "in_progress":
                owner = query(
                    database_url, f"SELECT owner FROM llm_batches_batch WHERE batch_id = '{part.id}'"
                )
                order.append(owner[0][0])
                part.finish()
        if len(order) == 23:
            break
    assert Counter(order) == {"ada": 20, "bob": 1, "cy": 1, "dot": 1}
    turns = order.index("bob"), order.index("cy"), order.index("dot")
    assert max(turns) <= 5


def test_purging_deletes_the_parts(app: Flask, ada: FlaskClient, database_url: str) -> None:
    """Nothing of a batch is left, neither its parts nor their requests."""
    batch = made(ada, 5)
    ended(ada, database_url, batch["id"])
    with app.app_context():
        assert current_llm_batches.purge(before=4_000_000_000, dry_run=True) == 1
        assert current_llm_batches.purge(before=4_000_000_000, usage=True) == 1
    query(database_url, "UPDATE llm_batches_file SET expires_at = 0")
    tick(app, database_url)
    for table in ("batch", "manifest", "task", "file", "object", "chunk", "usage"):
        assert query(database_url, f"SELECT COUNT(*) FROM llm_batches_{table}") == [(0,)], table


@pytest.mark.parametrize("archived", [False, True])
def test_results_are_there_before_they_are_in_one_archive(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, archived: bool
) -> None:
    """They come from the archives of the parts, or from the provider, part by part; and count once."""
    batch = polled(ada, database_url, 5)
    uid = batch["id"].removeprefix("batch_")
    query(database_url, f"UPDATE llm_batches_task SET due_at = 4000000000 WHERE batch_uid = '{uid}'")
    if archived:
        with ada.application.app_context():
            current_llm_batches.tick()
    in_archive = "SELECT COUNT(*) FROM llm_batches_batch WHERE archived_at IS NOT NULL"
    assert query(database_url, in_archive) == [(3 if archived else 0,)]
    for _ in range(2):
        assert ids(rows(ada, batch["id"])) == names(5)
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert used["total_tokens"] > 0
    tick(ada.application, database_url)
    assert query(database_url, f"{in_archive} AND part_of IS NULL") == [(1,)]
    llm_provider.stop()
    assert ids(rows(ada, batch["id"])) == names(5)
    tick(ada.application, database_url)
    assert query(database_url, in_archive) == [(0,)]  # as if their time was over


def test_a_part_that_its_provider_lost_is_missing(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """The rows of other parts are there, and its own are errors."""
    batch = polled(ada, database_url, 5)
    llm_provider.rewrite = lambda call, answer: (
        Response(b'{"error": {"message": "gone"}}', 404)
        if call.path.endswith(f"{llm_provider.batches[0].id}/content")
        else answer
    )
    found = rows(ada, batch["id"])
    assert ids(found) == names(5)
    assert sorted(row["custom_id"] for row in found if row["error"]) == ["r0", "r1"]
    assert {row["error"]["code"] for row in found if row["error"]} == {"missing"}


def test_events_of_providers_reach_parts(
    make_host: MakeHost, database_url: str, llm_provider: Simulator
) -> None:
    """A webhook of a provider about a part lets a worker look at the part."""
    secret = f"whsec_{b64encode(b'secret of openai').decode()}"
    app = make_host(
        database=database_url, providers={"openai": llm_provider.settings | {"webhook_secret": secret}}
    )
    made(client_of(app, "ada"), 5)
    body = json.dumps({"type": "batch.completed", "data": {"id": llm_provider.batches[0].id}}).encode()
    moment = str(int(time.time()))
    digest = hmac.digest(b"secret of openai", b"evt_1." + moment.encode() + b"." + body, "sha256")
    signed = {
        "webhook-id": "evt_1",
        "webhook-timestamp": moment,
        "webhook-signature": f"v1,{b64encode(digest).decode()}",
    }
    due = "SELECT COUNT(*) FROM llm_batches_task WHERE step = 'refresh' AND due_at <= "
    query(database_url, "UPDATE llm_batches_task SET due_at = 4000000000")
    answer = app.test_client().post("/v1/batches/webhooks/openai", data=body, headers=signed)
    assert answer.status_code == 204
    assert query(database_url, due + str(int(time.time()) + 5)) == [(1,)]


@pytest.mark.parametrize("moment", ["during the upload", "while it is refused", "after the create"])
def test_a_part_that_is_being_submitted_is_cancelled(
    app: Flask, ada: FlaskClient, database_url: str, llm_provider: Simulator, moment: str
) -> None:
    """Whenever the cancel comes, nothing is submitted after it, and what is at the provider is cancelled."""
    llm_provider.seconds = None
    batch = made(ada, 5)
    cancelled: list[int] = []

    def rewrite(call: Call, answer: Response) -> Response:
        path = "/files" if moment == "during the upload" else "/batches"
        if (call.method, call.path) == ("POST", path) and not cancelled:
            other = client_of(app, "ada").post(f"/v1/batches/{batch['id']}/cancel")
            cancelled.append(other.status_code)
            if moment == "while it is refused":
                return Response(b'{"error": {"message": "slow down"}}', 429)
        return answer

    llm_provider.rewrite = rewrite
    for _ in range(3):
        tick(app, database_url)
    assert cancelled == [200]
    query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
    for _ in range(4):
        tick(app, database_url)
        for part in llm_provider.batches:
            if part.status == "cancelling":
                part.finish()
    done = ended(ada, database_url, batch["id"])
    assert done["status"] == "cancelled"
    assert {row["error"]["code"] for row in rows(ada, batch["id"])} == {"batch_cancelled"}
    assert ids(rows(ada, batch["id"])) == names(5)
    assert len(llm_provider.batches) == (1 if moment == "during the upload" else 2)


def test_a_create_has_twenty_models_at_most(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Each has a file on disk while the requests are read, so there may not be any number of them."""
    asked = [
        {"custom_id": str(number), "body": {"model": f"openai:m{number}", "messages": []}}
        for number in range(21)
    ]
    answer = ada.post("/v1/batches", json={"requests": asked})
    assert answer.status_code == 422
    assert answer.get_json()["error"]["message"] == "requests.20.body.model: More than 20 models."
    assert not llm_provider.calls
    assert ada.post("/v1/batches?dry_run=true", json={"requests": asked[:20]}).get_json()["parts"] == 20


@pytest.mark.parametrize("retention", [0, 30])
def test_rows_and_webhooks_of_all_parts(
    make_host: MakeHost, database_url: str, llm_provider: Simulator, retention: int
) -> None:
    """A handler gets each row once, also those that were submitted again, and one webhook tells the end."""
    llm_provider.seconds = 0
    llm_provider.respond = flaky(1)
    delivered: Counter[str] = Counter()
    with running_target() as target:
        app = make_host(
            database=database_url,
            retention=retention,
            webhooks={"crm": {"url": target.url, "secret": SECRET, "allow_private": True, "every": True}},
        )

        def take(group: Sequence[DeliveredRow], _batch: Batch) -> None:
            delivered.update(row.custom_id for row in group)

        app.extensions["llm_batches"].handlers.register("take", take, http=True)
        ada = client_of(app, "ada")
        batch = made(ada, 5, retries=1, on_results="take")
        ended(ada, database_url, batch["id"])
        for _ in range(3):
            tick(app, database_url)
        assert delivered == dict.fromkeys(names(5), 1)
        (event,) = [json.loads(taken.body) for taken in target.taken]
        assert (event["type"], event["data"]["id"]) == ("batch.completed", batch["id"])
    kept = "SELECT COUNT(*) FROM llm_batches_file WHERE batch_uid IS NULL"
    assert query(database_url, kept) == [(5 if retention else 0,)]


@pytest.mark.parametrize("provider", ["anthropic", "mistral"])
def test_parts_wait_at_other_providers(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, provider: str
) -> None:
    """Where a 429 of the create says that there is no room, the part waits and is submitted later."""
    llm_provider.token_limit = TOKENS + 200
    llm_provider.seconds = None
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "x" * 2000}]}
    asked = [{"custom_id": f"r{number}", "body": body} for number in range(6)]
    batch = made(ada, 6, model=f"{provider}:m", requests=asked)
    for _ in range(4):
        query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
        tick(ada.application, database_url)
    assert len(llm_provider.batches) == 1
    assert retrieved(ada, batch["id"])["status"] == "in_progress"
    for _ in range(12):
        for part in llm_provider.batches:
            if part.status == "in_progress":
                part.finish()
        query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
        tick(ada.application, database_url)
    assert retrieved(ada, batch["id"])["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
    assert len(llm_provider.batches) == 3
    assert ids(rows(ada, batch["id"])) == names(6)


def test_what_expired_is_submitted_again(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Rows that a part had no time for run in another one, and the batch is completed."""
    llm_provider.seconds = None
    batch = made(ada, 2, retries=1)
    tick(ada.application, database_url)
    llm_provider.batches[0].expire(after=1)
    llm_provider.seconds = 0
    done = ended(ada, database_url, batch["id"])
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 2)
    assert [len(part.requests) for part in llm_provider.batches] == [2, 1]
    found = rows(ada, batch["id"])
    assert ids(found) == names(2)
    assert all(row["error"] is None for row in found)


def test_a_retry_of_several_models(ada: FlaskClient, database_url: str, llm_provider: Simulator) -> None:
    """What failed runs again where it ran, also where the provider keeps no requests."""
    llm_provider.respond = lambda line: (
        (503, {"error": {"message": "later", "type": "overloaded_error"}})
        if line["custom_id"] in ("r1", "r3")
        else {"id": "x", "type": "message", "model": "m", "choices": [], "content": [], "usage": {}}
    )
    models = ["openai:m", "anthropic:c", "anthropic:c", "mistral:s"]
    message = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    asked = [
        {"custom_id": f"r{number}", "body": {"model": model, **message}}
        for number, model in enumerate(models)
    ]
    old = ada.post("/v1/batches", json={"requests": asked}).get_json()
    assert ended(ada, database_url, old["id"])["request_counts"]["failed"] == 2
    llm_provider.respond = lambda _: {
        "id": "x", "type": "message", "model": "m", "choices": [], "content": [], "usage": {},
    }  # fmt: skip
    new = ada.post(f"/v1/batches/{old['id']}/retry").get_json()
    done = ended(ada, database_url, new["id"])
    assert done["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert ids(rows(ada, new["id"])) == ["r1", "r3"]
    assert [part.protocol for part in llm_provider.batches][-2:] == ["anthropic", "mistral"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_part_whose_create_got_no_answer_is_found(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, is_there: bool
) -> None:
    """It is adopted if its provider has it, and another part takes its place if not."""
    batch = made(ada, 3)
    llm_provider.drop_next(on="POST /batches", after=0 if is_there else None)
    for _ in range(3):
        tick(ada.application, database_url)
    time_passes(database_url, WINDOW + 60)
    assert ended(ada, database_url, batch["id"])["request_counts"]["completed"] == 3
    assert ids(rows(ada, batch["id"])) == names(3)
    ran = Counter(line["custom_id"] for part in llm_provider.batches for line in part.requests)
    assert ran == dict.fromkeys(names(3), 1)
    parts = ada.get(f"/v1/batches/{batch['id']}?include=parts").get_json()["parts"]
    assert [part["status"] for part in parts] == (
        ["completed", "completed"] if is_there else ["completed", "replaced", "completed"]
    )


@pytest.mark.parametrize(
    "lie",
    [b'{"custom_id": "r1"}\n' * 3, b'{"custom_id": "r1"}\n' * 2, b"[" * 100_000, b"{}\n", b"\n"],
    ids=["too many", "twice", "deep", "no ids", "too few"],
)
def test_what_a_provider_returns_as_requests_is_checked(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, lie: bytes
) -> None:
    """More or fewer requests than it got, or something else, are no requests: the retry is a 502."""
    llm_provider.respond = flaky(1)
    batch = made(ada, 2)
    assert retrieved(ada, batch["id"])["status"] == "completed"
    content = f"/files/{llm_provider.batches[0].asked['input_file_id']}/content"
    llm_provider.rewrite = lambda call, answer: Response(lie, 200) if call.path == content else answer
    answer = ada.post(f"/v1/batches/{batch['id']}/retry")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")
    assert query(database_url, "SELECT COUNT(*) FROM llm_batches_chunk") == [(0,)]


def test_a_part_that_is_not_found_for_a_moment_is_not_lost(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: one 404 about a part that had ended made all of its rows ``missing``, for good."""
    llm_provider.respond = flaky(9)

    def without_error_file(call: Call, answer: Response) -> Response:
        if call.method == "GET" and call.path.startswith("/batches/"):
            answer.data = json.dumps({**(answer.get_json() or {}), "error_file_id": None}).encode()
        return answer

    llm_provider.rewrite = without_error_file  # so that the provider is asked again
    batch = polled(ada, database_url, 3)
    llm_provider.rewrite = None
    llm_provider.fail_next(404, on=f"GET /batches/{llm_provider.batches[0].id}")
    answer = ada.get(f"/v1/batches/{batch['id']}/results")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")
    tick(ada.application, database_url)
    found = rows(ada, batch["id"])
    assert ids(found) == names(3)
    assert [row["error"]["code"] for row in found if row["error"]] == ["server_error"]


def test_a_part_that_turns_up_late_is_cancelled(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: its provider listed it after another part had replaced it, and the batch never ended."""
    llm_provider.seconds = None
    batch = made(ada, 3)
    rewrite_lists(llm_provider, lambda page: page.update(data=[]))
    llm_provider.drop_next(on="POST /batches", after=0)
    llm_provider.batches[0].finish()
    for _ in range(3):
        tick(ada.application, database_url)
    late = llm_provider.batches[1]
    time_passes(database_url, WINDOW + 60)
    for _ in range(4):
        tick(ada.application, database_url)
    assert len(llm_provider.batches) == 3
    llm_provider.rewrite = None
    with ada.application.app_context():
        current_llm_batches.list(owner=EVERYONE, provider="openai")  # which shows it, and adopts it
    tick(ada.application, database_url)
    assert late.status == "cancelling"
    llm_provider.batches[2].finish()
    assert ended(ada, database_url, batch["id"])["request_counts"] == {
        "total": 3,
        "completed": 3,
        "failed": 0,
    }
    assert ids(rows(ada, batch["id"])) == names(3)


def test_a_part_that_cannot_be_uploaded_ends_its_batch(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: a part that failed before it was submitted kept its retries, and its batch never ended."""
    for _ in range(2):
        llm_provider.fail_next(400, on="POST /files")
    done = ended(ada, database_url, made(ada, 3, retries=2)["id"])
    assert (done["status"], done["request_counts"]["failed"]) == ("failed", 3)


def test_a_part_that_others_submit_is_not_forgotten(
    app: Flask, ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: if its own batch was looked at while its create failed, nobody submitted it again."""
    alive(database_url)
    bob = client_of(app, "bob")
    batch = made(bob, 2, retries=1)
    query(database_url, "UPDATE llm_batches_batch SET turn = 5 WHERE turn IS NOT NULL")
    first = made(ada, 3)
    query(
        database_url,
        "INSERT INTO llm_batches_lane (provider, model, turn, failures, token_limit, learned_at)"
        " VALUES ('openai', 'm', 0, 0, 100000, 4000000000)",
    )

    def look_at_it(call: Call, answer: Response) -> Response:
        is_submitting = f"SELECT state FROM llm_batches_batch WHERE part_of = '{uid(batch)}'"
        if call.path != "/batches" or query(database_url, is_submitting) != [("submitting",)]:
            return answer
        with app.app_context():
            run(app, batch, "submit")
        return Response(b"{}", 429)

    llm_provider.rewrite = look_at_it
    run(app, first, "submit")
    llm_provider.rewrite = None
    query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
    for one, client in ((first, ada), (batch, bob)):
        assert ended(client, database_url, one["id"])["status"] == "completed"


def uid(batch: dict[str, Any]) -> str:
    found: str = batch["id"].removeprefix("batch_")
    return found


def run(app: Flask, batch: dict[str, Any], step: str) -> None:
    """Do one step of a batch, if it is due."""
    with app.app_context():
        app.extensions["llm_batches"]._ticker.run(uid(batch), step)


def test_a_task_of_a_batch_whose_part_waits_again_is_not_deleted(
    app: Flask, ada: FlaskClient, database_url: str
) -> None:
    """Regression: a worker that had just seen that nothing waits deleted the task of what waits now."""
    batch = made(ada, 3)
    query(database_url, "UPDATE llm_batches_batch SET state = 'submitting' WHERE part_of IS NOT NULL")
    query(database_url, "UPDATE llm_batches_task SET due_at = 0")
    service = app.extensions["llm_batches"]
    with app.app_context():
        task = service._ticker._tasks.claim(batch_uid=uid(batch), step="submit")
        whole = service._batches.by_uid(uid(batch))
        service._parts._queue.again(service._parts.of(whole)[0])
        service._ticker._tasks.done(task, then={})
        assert service._ticker._tasks.claim(batch_uid=uid(batch), step="submit") is not None


@pytest.mark.parametrize("retention", [0, 30])
def test_archives_of_parts_are_not_kept(
    make_host: MakeHost, database_url: str, llm_provider: Simulator, retention: int
) -> None:
    """Regression: the archive of a part that was read after its batch was never deleted."""
    llm_provider.seconds = 0
    app = make_host(database=database_url, retention=retention)
    batch = made(client_of(app, "ada"), 3)
    for _ in range(6):
        query(database_url, "UPDATE llm_batches_task SET due_at = 0 WHERE step <> 'archive'")
        for step in ("archive", "refresh"):
            run(app, batch, step)
        with app.app_context():
            current_llm_batches.tick()
    query(database_url, "UPDATE llm_batches_task SET due_at = 0")
    with app.app_context():
        current_llm_batches.tick()
    assert retrieved(client_of(app, "ada"), batch["id"])["status"] == "completed"
    kept = 2 if retention else 0  # the requests of its parts
    assert query(database_url, "SELECT COUNT(*) FROM llm_batches_object") == [(kept,)]


def test_purging_deletes_the_archives_of_parts(app: Flask, ada: FlaskClient, database_url: str) -> None:
    """Regression: those that had not expired stayed for good."""
    polled(ada, database_url, 3)
    query(database_url, "UPDATE llm_batches_task SET due_at = 4000000000 WHERE step = 'expire'")
    with app.app_context():
        current_llm_batches.tick()
        assert current_llm_batches.purge(before=int(time.time()) + 10) == 1
        current_llm_batches.tick()
    assert query(database_url, "SELECT COUNT(*) FROM llm_batches_object") == [(0,)]


def test_a_part_that_ended_at_once_had_room(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: refusals from before a part that ended between two looks at it still counted."""
    batch = made(ada, 2, retries=1)
    query(database_url, "UPDATE llm_batches_lane SET failures = 40")
    assert ended(ada, database_url, batch["id"])["status"] == "completed"
    assert query(database_url, "SELECT failures FROM llm_batches_lane") == [(0,)]


def test_a_batch_that_waited_is_archived_once(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: it was archived again minutes later, and rows that its provider had lost then were lost."""
    alive(database_url)
    llm_provider.fail_next(429, on="POST /batches")
    batch = made(ada, 2)
    for _ in range(8):
        query(database_url, "UPDATE llm_batches_task SET due_at = 0 WHERE step = 'submit'")
        query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
        with ada.application.app_context():
            current_llm_batches.tick()
        query(database_url, "UPDATE llm_batches_task SET due_at = 0 WHERE step <> 'expire'")
        query(database_url, "UPDATE llm_batches_batch SET refreshed_at = 0")
        if query(database_url, "SELECT archived_at FROM llm_batches_batch WHERE part_of IS NULL") != [
            (None,)
        ]:
            llm_provider.rewrite = lambda call, answer: (
                Response(b"{}", 404) if call.path.endswith("/content") else answer
            )
    assert llm_provider.rewrite is not None
    assert [row["error"] for row in rows(ada, batch["id"])] == [None, None]


def test_a_part_that_its_provider_never_gets_fails(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a part whose creates got no answer was submitted again for ever."""
    monkeypatch.setattr(core_parts, "_MOST_LOST", 2)
    batch = made(ada, 3)
    for _ in range(9):
        llm_provider.fail_next(500, on="POST /batches")
    for _ in range(3):
        for _ in range(3):
            tick(ada.application, database_url)
        time_passes(database_url, WINDOW + 60)
    done = ended(ada, database_url, batch["id"])
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    parts = ada.get(f"/v1/batches/{batch['id']}?include=parts").get_json()["parts"]
    assert [part["status"] for part in parts] == ["completed", "replaced", "failed"]
    assert parts[2]["errors"]["data"][0]["code"] == "no_answer"


@pytest.mark.parametrize("status", [404, 500])
@pytest.mark.parametrize("is_too_large", [False, True])
def test_a_part_whose_requests_cannot_be_read_holds_up_no_other(
    ada: FlaskClient, database_url: str, llm_provider: Simulator, status: int, is_too_large: bool
) -> None:
    """Regression: no part for the same model was submitted, whoever owned it; and it fails after a day."""
    alive(database_url)
    llm_provider.seconds = None
    made(ada, 2)
    tick(ada.application, database_url)
    llm_provider.token_limit = llm_provider.batches[0].tokens - is_too_large
    second = made(ada, 2)
    content = f"/files/{llm_provider.batches[1].asked['input_file_id']}/content"
    llm_provider.rewrite = lambda call, answer: Response(b"{}", status) if call.path == content else answer
    for _ in range(3):
        tick(ada.application, database_url)
    assert [part.status for part in llm_provider.batches] == ["in_progress", "failed"]
    llm_provider.batches[0].finish()
    llm_provider.seconds, llm_provider.token_limit = 0, None
    if not is_too_large:
        query(database_url, "UPDATE llm_batches_lane SET token_limit = NULL")
    third = made(ada, 3, retries=1)
    for _ in range(12):
        query(database_url, "UPDATE llm_batches_lane SET refused_until = NULL")
        tick(ada.application, database_url)
    assert retrieved(ada, third["id"])["status"] == "completed"
    assert retrieved(ada, second["id"])["status"] == ("failed" if status == 404 else "validating")
    query(database_url, "UPDATE llm_batches_batch SET missing_since = 1 WHERE missing_since IS NOT NULL")
    assert ended(ada, database_url, second["id"])["status"] == "failed"


def test_usage_of_parts_is_that_of_their_batch(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: in the usage by batch, every batch of parts was called ``None``."""
    made_first, made_then = (polled(ada, database_url, count) for count in (3, 5))
    sums = ada.get("/v1/batches/usage?group_by=batch").get_json()["data"]
    assert [(one["group"], one["requests"]) for one in sums] == [(made_first["id"], 3), (made_then["id"], 5)]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_parts_are_not_untracked(
    make_host: MakeHost, database_url: str, llm_provider: Simulator, provider: str
) -> None:
    """Regression: where untracked batches are shown, others could read parts at Anthropic by their ids."""
    llm_provider.seconds = 0
    app = make_host(database=database_url, providers=llm_provider.providers, untracked="allow")
    batch = made(client_of(app, "ada"), 3, model=f"{provider}:m", requests=requests(3, max_tokens=5))
    ended(client_of(app, "ada"), database_url, batch["id"])
    eve, part = client_of(app, "eve"), llm_provider.batches[0].id
    for path in (f"/v1/batches/{part}", f"/v1/batches/{part}/results"):
        assert eve.get(f"{path}?provider={provider}").status_code == 404
    assert eve.post(f"/v1/batches/{part}/cancel?provider={provider}").status_code == 404


def test_who_was_too_slow_leaves_the_queue_to_others(
    app: Flask, ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: a process that had lost the lease on a queue went on, and released the lease of another."""
    alive(database_url)
    batch = made(ada, 5)
    query(
        database_url,
        "INSERT INTO llm_batches_lane (provider, model, turn, failures, token_limit, learned_at)"
        " VALUES ('openai', 'm', 0, 0, 100000, 4000000000)",
    )

    def lose(call: Call, answer: Response) -> Response:
        if call.path == "/batches":
            query(database_url, "UPDATE llm_batches_lane SET lease_token = 'other', lease_until = 4000000000")
        return answer

    llm_provider.rewrite = lose
    run(app, batch, "submit")
    assert len(llm_provider.batches) == 1
    assert query(database_url, "SELECT lease_token, lease_until FROM llm_batches_lane") == [
        ("other", 4000000000)
    ]


def test_a_batch_that_has_failed_does_not_wait_again(
    app: Flask, ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: a batch that another process had just recorded as failed was submitted again."""
    llm_provider.seconds = None
    batch = made(ada, 2)
    service = app.extensions["llm_batches"]
    with app.app_context():
        (record,) = service._batches.find(batch["id"])
    llm_provider.batches[0].fail("no room", code="token_limit_exceeded")
    assert retrieved(ada, batch["id"])["status"] == "failed"
    alive(database_url)
    with app.app_context():
        service._worker_alive._until = 0
        assert service._lookup.seen(record, service._providers.retrieve("openai", batch["id"])).finished
    assert query(database_url, "SELECT state, status FROM llm_batches_batch") == [("accepted", "failed")]


def test_a_file_that_was_wrong_is_not_retried(ada: FlaskClient, database_url: str) -> None:
    """Regression: if its model was unknown, the answer was a 503 about a provider without a name."""
    line = {"custom_id": "a", "body": {"model": "nobody:m", "messages": []}}
    body = {
        "input_file_id": uploaded(ada, json.dumps(line).encode())["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = retrieved(ada, ada.post("/v1/batches", json=body).get_json()["id"])
    assert batch["status"] == "failed"
    answer = ada.post(f"/v1/batches/{batch['id']}/retry")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (410, "requests_gone")


def test_files_that_cannot_be_deleted_hold_up_nothing(
    app: Flask,
    ada: FlaskClient,
    database_url: str,
    llm_provider: Simulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: a tick did nothing while the storage could not delete an expired file."""

    def refuse(_key: str) -> None:
        raise StorageUnavailable("The storage is unavailable.")

    uploaded(ada, b"{}")
    query(database_url, "UPDATE llm_batches_file SET expires_at = 1")
    alive(database_url)
    made(ada, 3)
    monkeypatch.setattr(app.extensions["llm_batches"]._storage, "delete", refuse)
    tick(app, database_url)
    assert llm_provider.batches


def test_forgotten_batches_of_others_are_not_in_the_way(
    app: Flask, ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: without a worker, parts waited for ever for a batch whose owner did not ask for it."""
    made(client_of(app, "bob"), 2)
    assert polled(ada, database_url, 3)["status"] == "completed"


def test_a_part_whose_results_cannot_be_read_ends(
    ada: FlaskClient, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: a batch with retries ran for ever if its provider never returned the results of a part."""
    batch = made(ada, 3, retries=1)
    llm_provider.rewrite = lambda call, answer: (
        Response(b"{}", 500) if call.path.endswith("/content") else answer
    )
    for _ in range(4):
        tick(ada.application, database_url)
    assert retrieved(ada, batch["id"])["status"] == "in_progress"
    query(database_url, "UPDATE llm_batches_task SET failures = 100")
    assert ended(ada, database_url, batch["id"])["status"] == "completed"
    llm_provider.rewrite = None
    assert ids(rows(ada, batch["id"])) == names(3)
