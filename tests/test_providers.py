"""The whole way through the app, with each provider's own SDK and over its own protocol."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches.batch import RowError
from flask_llm_batches.providers.adapters import mistral
from flask_llm_batches.providers.failures import REDACTED
from flask_llm_batches.testing import SimulatedBatch, Simulator
from tests.conftest import MakeHost, create_batch
from tests.hosts import requests

MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "mistral": "mistral-small-latest"}
CREATES = {
    "openai": "POST /batches",
    "anthropic": "POST /messages/batches",
    "mistral": "POST /batch/jobs",
}

each_provider = pytest.mark.parametrize("provider", MODELS)


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> Flask:
    return make_host(providers=llm_provider.providers, database=tmp_path / "host.sqlite3")


def create_at(client: FlaskClient, provider: str, count: int = 3, **fields: Any) -> str:
    """Create a batch of chat completions at a provider and give its id."""
    body = {"requests": requests(count, max_tokens=9), **fields}
    return create_batch(client, model=f"{provider}:{MODELS[provider]}", **body)


def rows_of(client: FlaskClient, batch_id: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a batch by ``custom_id``."""
    answer = client.get(f"/v1/batches/{batch_id}/results")
    assert answer.status_code == 200, answer.text
    rows = answer.get_json()["results"]
    by_id: dict[str, dict[str, Any]] = {row["custom_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    assert all((row["result"] is None) != (row["error"] is None) for row in rows)
    return by_id


def sent(llm_provider: Simulator) -> dict[str, dict[str, Any]]:
    """Return the bodies of the newest batch as the provider has them, by ``custom_id``."""
    return {line["custom_id"]: line["body"] for line in llm_provider.batches[-1].requests}


def used(folder: Path) -> list[tuple[Any, ...]]:
    """Return what was accounted for results."""
    columns = "prompt_tokens, completion_tokens, cached_tokens, total_tokens, requests"
    with closing(sqlite3.connect(folder / "host.sqlite3")) as database:
        return database.execute(f"SELECT {columns} FROM llm_batches_usage WHERE event = 'results'").fetchall()


@each_provider
def test_the_whole_journey(
    ada: FlaskClient, llm_provider: Simulator, spool_dir: Path, tmp_path: Path, provider: str
) -> None:
    """A batch is created, asked after, listed and read; its usage is accounted once, and nothing is lost."""
    system = {"role": "system", "content": "be brief"}
    asked = [
        {"custom_id": it["custom_id"], "body": {**it["body"], "messages": [system, *it["body"]["messages"]]}}
        for it in requests(3, max_tokens=9)
    ]
    batch_id = create_at(ada, provider, requests=asked, metadata={"team": "search"})
    assert not list(spool_dir.iterdir())
    assert len(llm_provider.calls_to(CREATES[provider])) == 1
    assert all(body["max_tokens"] == 9 for body in sent(llm_provider).values())

    path = f"/v1/batches/{batch_id}"
    batch = ada.get(path).get_json()
    remembered = {
        "provider": provider,
        "status": "in_progress",
        "model": MODELS[provider],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"team": "search"},
    }
    assert batch.items() >= remembered.items()
    assert "flask_llm_batches_uid" not in ada.get(path).text
    running = ada.get(f"{path}/results")
    assert (running.status_code, running.get_json()["error"]["code"]) == (409, "batch_not_complete")

    llm_provider.batches[0].finish()
    batch = ada.get(path).get_json()
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert batch["created_at"] <= batch["completed_at"]
    assert [one["id"] for one in ada.get("/v1/batches").get_json()["data"]] == [batch_id]
    for _ in range(2):
        rows = rows_of(ada, batch_id)
        said = {name: row["result"]["choices"][0]["message"]["content"] for name, row in rows.items()}
        assert said == {"r0": "say 0", "r1": "say 1", "r2": "say 2"}
    assert {row["result"]["model"] for row in rows.values()} == {MODELS[provider]}
    assert used(tmp_path) == [(6, 6, 0, 12, 3)]


@each_provider
def test_an_admin_pages_through_what_the_provider_has(
    ada: FlaskClient,
    admin: FlaskClient,
    llm_provider: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
) -> None:
    """Every batch is on one page, newest first, however the provider numbers its own; nobody else's is."""
    monkeypatch.setattr(mistral, "_PAGE", 2)
    made = [create_at(ada, provider, 1) for _ in range(5)][::-1]
    create_at(ada, "openai" if provider == "mistral" else "mistral", 1)
    seen: list[str] = []
    more = True
    while more:
        after = f"&after={seen[-1]}" if seen else ""
        page = admin.get(f"/v1/batches?provider={provider}&limit=2{after}").get_json()
        seen += [batch["id"] for batch in page["data"]]
        more = page["has_more"]
        assert more == (len(seen) < 5)
    assert seen == made
    whole = admin.get(f"/v1/batches?provider={provider}&limit=5").get_json()
    assert ([batch["id"] for batch in whole["data"]], whole["has_more"]) == (made, False)
    unknown = admin.get(f"/v1/batches?provider={provider}&after=nowhere")
    assert (unknown.status_code, unknown.get_json()["error"]["code"]) == (422, "validation_error")


@each_provider
@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_what_was_finished_in_time_is_not_lost(
    ada: FlaskClient, llm_provider: Simulator, tmp_path: Path, provider: str, end: str
) -> None:
    """An expired or cancelled batch has its finished results, and a reason for every other request."""
    batch_id = create_at(ada, provider, 4)
    (batch,) = llm_provider.batches
    if end == "expired":
        batch.expire(after=1)
    else:
        batch.advance()
        cancelled = ada.post(f"/v1/batches/{batch_id}/cancel").get_json()
        assert cancelled["status"] == "cancelling"
        batch.finish()
    assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] == end
    rows = rows_of(ada, batch_id)
    assert {name: row["error"] and row["error"]["code"] for name, row in rows.items()} == {
        **dict.fromkeys(("r0", "r1", "r2"), f"batch_{end}"),
        "r3": None,
    }
    assert used(tmp_path) == [(2, 2, 0, 4, 4)]


@each_provider
def test_a_failed_request_keeps_the_providers_words(
    ada: FlaskClient, llm_provider: Simulator, provider: str
) -> None:
    """Its row has the provider's code and message without keys; the others have their results."""
    key = "sk-planted-8c1f0e7d6b5a49382716"
    problem = {"type": "overloaded_error", "message": f"too hot for {key}"}
    if provider != "anthropic":
        problem["code"] = "overloaded_error"
    answer_well = llm_provider.respond
    llm_provider.respond = lambda line: (
        (529, {"error": problem}) if line["custom_id"] == "r1" else answer_well(line)
    )
    batch_id = create_at(ada, provider)
    llm_provider.batches[0].finish()
    rows = rows_of(ada, batch_id)
    assert rows["r1"]["error"] == {
        "code": "overloaded_error",
        "message": f"too hot for {REDACTED}",
        "retryable": True,
        "status": 529,
    }
    assert [name for name, row in rows.items() if row["error"]] == ["r1"]
    counts = ada.get(f"/v1/batches/{batch_id}").get_json()["request_counts"]
    assert counts == {"total": 3, "completed": 2, "failed": 1}


@pytest.mark.parametrize(
    ("provider", "body", "code", "message"),
    [
        ("mistral", {"object": "error", "message": "no such model", "code": "1500"}, "1500", "no such model"),
        ("openai", "out of quota", "429", "out of quota"),
        ("openai", {"error": "out of quota"}, "429", "out of quota"),
        ("openai", {"detail": ["?"]}, "429", "The provider gave no reason"),
        ("openai", [], "429", "The provider gave no reason"),
    ],
)
def test_a_failed_request_may_say_so_otherwise(
    ada: FlaskClient, llm_provider: Simulator, provider: str, body: Any, code: str, message: str
) -> None:
    """Errors without an ``error``, and errors that are text, are the provider's words, too."""
    llm_provider.respond = lambda _: (429, body)
    batch_id = create_at(ada, provider, 1)
    llm_provider.batches[0].finish()
    said = {"code": code, "message": message, "retryable": True, "status": 429}
    assert rows_of(ada, batch_id)["r0"]["error"] == said


@each_provider
@pytest.mark.parametrize(("status", "passing"), [(400, False), (413, False), (429, True), (500, True)])
def test_failures_are_the_same_at_every_provider(
    ada: FlaskClient, llm_provider: Simulator, provider: str, status: int, passing: bool
) -> None:
    """The error of a row has the status of the provider's answer, and whether the cause passes."""
    kinds = {
        400: "invalid_request_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
    }
    problem = {"type": kinds[status], "message": "no"}
    llm_provider.respond = lambda _: (status, {"error": problem})
    batch_id = create_at(ada, provider, 1)
    llm_provider.batches[0].finish()
    error = rows_of(ada, batch_id)["r0"]["error"]
    assert (error["status"], error["retryable"]) == (status, passing)


@pytest.mark.parametrize(
    ("code", "status", "shown", "passing"),
    [
        ("batch_expired", None, None, True),
        ("batch_cancelled", None, None, True),
        ("missing", None, None, True),
        ("unreadable", None, None, True),
        ("unknown", None, None, False),
        ("503", None, 503, True),
        ("14", None, 503, True),
        ("3", None, 400, False),
        ("1500", None, None, False),
        ("9" * 30, None, None, False),
        ("\u0665\u0660\u0660", None, None, False),
        ("invalid_value", 400, 400, False),
        ("odd", 200, None, False),
        ("odd", 10**30, None, False),
    ],
)
def test_what_passes_is_in_one_table(code: str, status: int | None, shown: int | None, passing: bool) -> None:
    """Codes that stand for a status have it, and what is no status of an error is none."""
    error = RowError.of(code, "no", status)
    assert (error.status, error.retryable) == (shown, passing)


def test_a_row_of_another_shape_is_one_row(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Regression: an error of Anthropic's that was no object ended all results of its batch."""
    batch_id = create_at(ada, "anthropic")
    (batch,) = llm_provider.batches
    batch.finish()
    odd = [
        {"custom_id": "r0", "result": {"type": "errored", "error": {"type": "error", "error": "too hot"}}},
        {"custom_id": "r1", "result": {"type": "errored", "error": {"type": "busy", "message": "come back"}}},
        {"custom_id": "r2", "result": {"type": "succeeded", "message": 3}},
    ]
    batch.output[:] = [json.dumps(row).encode() + b"\n" for row in odd]
    rows = rows_of(ada, batch_id)
    assert rows["r0"]["error"]["message"] == "too hot"
    busy = {"code": "busy", "message": "come back", "retryable": False, "status": None}
    assert rows["r1"]["error"] == busy
    assert rows["r2"]["error"]["code"] == "unreadable"


@pytest.mark.parametrize("provider", ["openai", "mistral"])
def test_a_failed_batch_says_why(ada: FlaskClient, llm_provider: Simulator, provider: str) -> None:
    """Results of a batch that failed before any request ran are a 409 with the provider's reasons."""
    batch_id = create_at(ada, provider)
    llm_provider.batches[0].fail("the model is gone")
    answer = ada.get(f"/v1/batches/{batch_id}/results")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "batch_failed")
    assert answer.get_json()["detail"].endswith("(status: failed). the model is gone")
    batch = ada.get(f"/v1/batches/{batch_id}").get_json()
    assert batch["status"] == "failed"
    assert batch["failed_at"]


def test_a_batch_of_failed_requests_is_no_failed_batch(ada: FlaskClient, llm_provider: Simulator) -> None:
    """At Anthropic every request fails for itself, so there are results."""
    batch_id = create_at(ada, "anthropic")
    llm_provider.batches[0].fail("the model is gone")
    rows = rows_of(ada, batch_id)
    assert {row["error"]["message"] for row in rows.values()} == {"the model is gone"}
    assert len(rows) == 3


@pytest.mark.parametrize("provider", ["openai", "mistral"])
def test_embeddings(ada: FlaskClient, llm_provider: Simulator, tmp_path: Path, provider: str) -> None:
    """Where the provider takes another endpoint, its results come as they are."""
    asked = [{"custom_id": "e0", "body": {"input": "four"}}]
    batch_id = create_at(ada, provider, requests=asked, endpoint="/v1/embeddings")
    llm_provider.batches[0].finish()
    assert rows_of(ada, batch_id)["e0"]["result"]["data"][0]["embedding"] == [0.25, -0.5, 1.0]
    assert used(tmp_path) == [(2, 0, 0, 2, 1)]


def test_messages_of_anthropics_own(ada: FlaskClient, llm_provider: Simulator, tmp_path: Path) -> None:
    """With ``/v1/messages`` for the endpoint, bodies and results are Anthropic's, whatever is in them."""
    body = {
        "max_tokens": 5,
        "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "tools": [{"name": "t", "input_schema": {"type": "object"}}],
        "some_day": {"deep": [123456789012345678901234567890]},
    }
    batch_id = create_at(
        ada, "anthropic", requests=[{"custom_id": "r0", "body": body}], endpoint="/v1/messages"
    )
    assert sent(llm_provider)["r0"] == {**body, "model": MODELS["anthropic"]}
    llm_provider.batches[0].finish()
    assert ada.get(f"/v1/batches/{batch_id}").get_json()["endpoint"] == "/v1/messages"
    result = rows_of(ada, batch_id)["r0"]["result"]
    assert (result["type"], result["content"]) == ("message", [{"type": "text", "text": "hello"}])
    assert used(tmp_path) == [(2, 2, 0, 4, 1)]


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [
        {"type": "thinking", "thinking": "hmm", "signature": "s"},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "so."},
    ],
    "stop_reason": "max_tokens",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 5,
        "output_tokens": 7,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 100,
    },
}


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/messages"])
def test_what_anthropic_read_from_its_cache_is_counted(
    ada: FlaskClient, llm_provider: Simulator, tmp_path: Path, endpoint: str
) -> None:
    """Tokens that Anthropic counts beside the input are part of the prompt, whatever the endpoint."""
    llm_provider.respond = lambda _: MESSAGE
    batch_id = create_at(ada, "anthropic", 1, endpoint=endpoint)
    llm_provider.batches[0].finish()
    rows_of(ada, batch_id)
    assert used(tmp_path) == [(125, 7, 100, 132, 1)]


def test_a_message_becomes_a_chat_completion(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Text is joined, and thoughts stand beside it with all that a chat completion has no place for."""
    llm_provider.respond = lambda _: MESSAGE
    batch_id = create_at(ada, "anthropic", 1)
    llm_provider.batches[0].finish()
    completion = rows_of(ada, batch_id)["r0"]["result"]
    (choice,) = completion["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "It is so."
    assert choice["message"]["reasoning"] == {"content": "hmm"}
    assert choice["message"]["extra_content"]["anthropic"]["content"] == MESSAGE["content"]
    assert completion["usage"]["prompt_tokens_details"] == {"cached_tokens": 100, "cache_write_tokens": 20}


@each_provider
def test_simultaneous_batches_of_one_provider(
    ada: FlaskClient, llm_provider: Simulator, provider: str
) -> None:
    """An id that another provider has, too, is each one's own."""
    other = "openai" if provider == "mistral" else "mistral"
    for name in (provider, other):
        llm_provider.next_batch_id = "batch_1"
        create_at(ada, name, 1)
    batches: list[SimulatedBatch] = llm_provider.batches
    batches[0].finish()
    assert ada.get(f"/v1/batches/batch_1?provider={provider}").get_json()["status"] == "completed"
    assert ada.get(f"/v1/batches/batch_1?provider={other}").get_json()["status"] == "in_progress"
