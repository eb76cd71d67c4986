"""What a chat completion becomes at Anthropic, and what a provider's entry adds to every batch."""

from __future__ import annotations

import json
from bisect import bisect
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches.errors import ConfigurationError
from flask_llm_batches.testing import Simulator
from flask_llm_batches.testing.simulator.batches import echo
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests
from tests.others import CREATED, Others

HELLO = {"role": "user", "content": "hello"}


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> Flask:
    return make_host(providers=llm_provider.providers, database=tmp_path / "host.sqlite3")


def create(client: FlaskClient, *bodies: dict[str, Any], ids: str = "abc") -> Any:
    """Create a batch at Anthropic and give the answer."""
    asked = [{"custom_id": id_, "body": body} for id_, body in zip(ids, bodies, strict=False)]
    return client.post("/v1/batches", json={"model": "anthropic:claude-haiku-4-5", "requests": asked})


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": content, **more}


def picture(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def test_what_nests_as_deep_as_can_be_read_is_no_error_of_ours(ada: FlaskClient) -> None:
    """Regression: one depth passed the check of a request, and was a 500 when its messages were read."""
    path = "/v1/batches?dry_run=true&model=anthropic:m"

    def ask(depth: int) -> int:
        messages = '[{"role": "user", "content": %s}]' % ("[" * depth + "]" * depth)
        line = f'{{"custom_id": "a", "body": {{"messages": {messages}}}}}'
        return ada.post(path, data=line, content_type="application/jsonl").status_code

    too_deep = bisect(range(200_000), 200, key=ask)
    assert {ask(depth) for depth in range(too_deep - 9, too_deep + 9)} == {200, 422}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {}),
        ({"temperature": 0.3, "top_p": 0.9}, {"temperature": 0.3, "top_p": 0.9}),
        ({"top_k": 5, "thinking": {"type": "adaptive"}}, {"top_k": 5, "thinking": {"type": "adaptive"}}),
        ({"tools": None, "seed": None, "max_completion_tokens": None}, {}),
        ({"max_tokens": None, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": None}, {"max_tokens": 4096}),
        (
            {"messages": [said("user", [text("what is it?"), picture("https://a.b/c.png")])]},
            {
                "messages": [
                    said(
                        "user",
                        [
                            text("what is it?"),
                            {"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}},
                        ],
                    )
                ]
            },
        ),
        (
            {"messages": [said("user", [picture("data:image/png;base64,iVBORw0=", detail="auto")])]},
            {
                "messages": [
                    said(
                        "user",
                        [
                            {
                                "type": "image",
                                "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0="},
                            }
                        ],
                    )
                ]
            },
        ),
        (
            {"messages": [said("user", '[{"type": "image_url"}]')]},
            {"messages": [said("user", '[{"type": "image_url"}]')]},
        ),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["A", "B"]}, {"stop_sequences": ["A", "B"]}),
        ({"stop_sequences": ["A"]}, {"stop_sequences": ["A"]}),
        ({"system": "brief"}, {"system": "brief"}),
        ({"messages": [said("system", "brief"), HELLO]}, {"system": "brief"}),
        ({"messages": [said("developer", "brief"), HELLO]}, {"system": "brief"}),
        (
            {"messages": [said("system", [text("brief", cache_control={"type": "ephemeral"})]), HELLO]},
            {"system": [text("brief", cache_control={"type": "ephemeral"})]},
        ),
        (
            {"messages": [said("system", "one"), said("developer", [text("two"), text("three")]), HELLO]},
            {"system": [text("one"), text("two"), text("three")]},
        ),
        (
            {"messages": [HELLO, said("assistant", [text("hi")]), said("user", [text("so?")])]},
            {"messages": [HELLO, said("assistant", [text("hi")]), said("user", [text("so?")])]},
        ),
    ],
)
def test_what_a_chat_completion_becomes(
    ada: FlaskClient, llm_provider: Simulator, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    """Everything that Anthropic has is translated; nulls count as missing."""
    answer = create(ada, {"max_tokens": 9, "messages": [HELLO], **given})
    assert answer.status_code == 200, answer.text
    ((line,),) = (batch.requests for batch in llm_provider.batches)
    assert line["body"] == {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [HELLO], **sent}


@pytest.mark.parametrize(
    ("given", "where", "code"),
    [
        ({"tools": []}, ["tools"], "unsupported_parameters"),
        ({"response_format": {"type": "json_object"}}, ["response_format"], "unsupported_parameters"),
        ({"made_up": 1}, ["made_up"], "unsupported_parameters"),
        ({"max_completion_tokens": 9}, ["max_tokens"], "unsupported_parameters"),
        ({"stop": "A", "stop_sequences": ["B"]}, ["stop_sequences"], "unsupported_parameters"),
        ({"messages": [HELLO, said("system", "late")]}, ["messages", 1], "unsupported_parameters"),
        (
            {"messages": [said("system", "a"), HELLO, said("developer", "late")]},
            ["messages", 2],
            "unsupported_parameters",
        ),
        (
            {"system": "a", "messages": [said("system", "b"), HELLO]},
            ["system"],
            "unsupported_parameters",
        ),
        (
            {"messages": [{**said("system", "a"), "cache_control": {"type": "ephemeral"}}, HELLO]},
            ["messages", 0, "cache_control"],
            "unsupported_parameters",
        ),
        (
            {"messages": [said("user", [picture("https://a.b/c.png", detail="low")])]},
            ["messages", 0, "content", 0, "image_url", "detail"],
            "unsupported_parameters",
        ),
        (
            {"messages": [said("user", [text("a"), {**picture("https://a.b/c.png"), "cache_control": {}}])]},
            ["messages", 0, "content", 1],
            "unsupported_parameters",
        ),
    ],
)
def test_what_cannot_be_carried_is_named(
    ada: FlaskClient, llm_provider: Simulator, given: dict[str, Any], where: list[Any], code: str
) -> None:
    """A request that would lose something is a 422 with its index and parameter."""
    good = {"max_tokens": 9, "messages": [HELLO]}
    answer = create(ada, good, {**good, **given})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (422, code), answer.text
    assert [problem["loc"] for problem in answer.get_json()["detail"]] == [
        ["body", "requests", 1, "body", *where]
    ]
    assert not llm_provider.calls


@pytest.mark.parametrize("custom_id", ["x" * 65, "a b", "ü", "a.b", "r\n"])
def test_an_id_that_anthropic_does_not_take(
    ada: FlaskClient, llm_provider: Simulator, custom_id: str
) -> None:
    """Its ids are 1 to 64 letters, digits, dashes and underscores; others are named by index."""
    good = {"max_tokens": 9, "messages": [HELLO]}
    answer = create(ada, good, good, ids=["x" * 64, custom_id])  # type: ignore[arg-type]
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (422, "validation_error")
    assert answer.get_json()["detail"][0]["loc"] == ["body", "requests", 1, "custom_id"]
    assert not llm_provider.calls


@pytest.mark.parametrize("messages", ["hello", [3], [{"content": "hello"}], [{"role": 3}]])
def test_what_anthropic_itself_finds_wrong(ada: FlaskClient, llm_provider: Simulator, messages: Any) -> None:
    """Malformed messages are passed on, and Anthropic reports them in the row."""
    answer = create(ada, {"max_tokens": 9, "messages": messages})
    assert answer.status_code == 200
    (batch,) = llm_provider.batches
    assert batch.requests[0]["body"]["messages"] == messages
    batch.finish()
    (row,) = ada.get(f"/v1/batches/{batch.id}/results").get_json()["results"]
    assert row["error"]["code"] == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [{"endpoint": "/v1/embeddings"}, {"completion_window": "48h"}],
)
def test_anthropic_takes_messages_within_a_day(
    ada: FlaskClient, llm_provider: Simulator, fields: dict[str, str]
) -> None:
    """Another endpoint or window is a 422 that names the field."""
    asked = {"model": "anthropic:m", "requests": requests(1, max_tokens=9), **fields}
    answer = ada.post("/v1/batches", json=asked)
    assert (answer.status_code, answer.get_json()["detail"][0]["loc"]) == (422, ["body", *fields])
    assert not llm_provider.calls


@pytest.mark.parametrize(
    ("provider", "batch_args"),
    [
        ("openai", {"output_expires_after": {"anchor": "created_at", "seconds": 3600}}),
        ("mistral", {"agent_id": "ag_1"}),
        ("anthropic", {"extra_headers": {"anthropic-beta": "some-beta"}}),
    ],
)
def test_an_entry_adds_to_every_batch(
    make_host: MakeHost, llm_provider: Simulator, tmp_path: Path, provider: str, batch_args: dict[str, Any]
) -> None:
    """``batch_args`` of a provider's entry go to its create."""
    entry = {**llm_provider.providers[provider], "batch_args": batch_args}
    app = make_host(providers={provider: entry}, database=tmp_path / "host.sqlite3")
    create_batch(client_of(app, "ada"), model=f"{provider}:m", requests=requests(1, max_tokens=9))
    if provider == "anthropic":
        (call,) = llm_provider.calls
        assert call.headers["Anthropic-Beta"] == "some-beta"
    else:
        assert llm_provider.batches[0].asked.items() >= batch_args.items()


def test_an_entry_cannot_add_what_would_be_dropped(make_host: MakeHost, llm_provider: Simulator) -> None:
    """``batch_args`` that a provider's create does not take are an error at the start."""
    entry = {**llm_provider.providers["anthropic"], "batch_args": {"metadata_of_ours": 1}}
    with pytest.raises(ConfigurationError, match=r"must not have 'metadata_of_ours'.*extra_headers only"):
        make_host(providers={"anthropic": entry})


def test_together(make_host: MakeHost, others: Others, tmp_path: Path) -> None:
    """With any-llm's public calls only, a batch is made with the entry's options, recorded and read."""
    pytest.importorskip("together")
    entry = {"api_key": "k", "api_base": others.url, "batch_args": {"priority": 7}}
    ada = client_of(make_host(providers={"together": entry}, database=tmp_path / "host.sqlite3"), "ada")
    batch_id = create_batch(ada, model="together:m", metadata={"team": "search"})
    (made,) = [json.loads(body) for _, path, body in others.sent if path == "/batches"]
    assert made.items() >= {"priority": 7, "endpoint": "/v1/chat/completions"}.items()

    job = {"id": "b1", "status": "COMPLETED", "created_at": CREATED, "output_file_id": "file-2"}
    others.answers["/batches/b1"] = job
    batch = ada.get(f"/v1/batches/{batch_id}").get_json()
    assert batch.items() >= {"status": "completed", "model": "m", "metadata": {"team": "search"}}.items()
    completion = echo({"url": "", "custom_id": "r0", "body": {"model": "m", "messages": [HELLO]}})
    rows: list[dict[str, Any]] = [
        {"custom_id": "r0", "response": {"status_code": 200, "body": completion}},
        {"custom_id": "r1", "error": {"code": "busy", "message": "too hot"}},
    ]
    others.answers["/files/file-2/content"] = "\n".join(map(json.dumps, rows)).encode()
    results = ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]
    assert results[0]["result"]["choices"][0]["message"]["content"] == "hello"
    assert [row["error"] and row["error"]["code"] for row in results] == [None, "busy", "missing"]


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "name": "ada"}]}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": 3}, "stop"),
    ],
)
def test_what_gemini_would_not_be_told_is_named(
    make_host: MakeHost, others: Others, given: dict[str, Any], where: str
) -> None:
    """Regression: a body that any-llm cannot convert failed the batch, as if it might have been made."""
    pytest.importorskip("google.genai")
    ada = client_of(make_host(providers={"gemini": {"api_key": "k", "api_base": others.url}}), "ada")
    good = {"messages": [said("system", "be brief"), HELLO], "temperature": 1}
    asked = [{"custom_id": name, "body": body} for name, body in (("a", good), ("b", {**good, **given}))]
    answer = ada.post("/v1/batches", json={"model": "gemini:m", "requests": asked})
    assert answer.status_code == 422
    assert [problem["loc"] for problem in answer.get_json()["detail"]] == [
        ["body", "requests", 1, "body", where]
    ]
    assert not others.sent


def test_gemini(make_host: MakeHost, others: Others, tmp_path: Path) -> None:
    """Results that stand in the batch itself are read, where any-llm would look for them in a bucket."""
    pytest.importorskip("google.genai")
    entry = {"api_key": "k", "api_base": others.url, "batch_args": {"display_name": "ours"}}
    ada = client_of(make_host(providers={"gemini": entry}, database=tmp_path / "host.sqlite3"), "ada")
    batch_id = create_batch(ada, model="gemini:gemini-2.5-flash", metadata={"team": "search"})
    (made,) = [json.loads(body) for _, _, body in others.sent]
    assert made["batch"]["displayName"] == "ours"

    parts = [{"text": "hmm", "thought": True}, {"text": "It is "}, {"text": "so."}]
    usage = {"promptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 4, "totalTokenCount": 12}
    response = {
        "responseId": "g1",
        "modelVersion": "gemini-2.5-flash",
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "MAX_TOKENS"}],
        "usageMetadata": usage,
    }
    answers = [
        {"metadata": {"custom_id": "r1"}, "error": {"code": 8, "message": "too hot"}},
        {"metadata": {"custom_id": "r0"}, "response": response},
    ]
    state = {"state": "BATCH_STATE_SUCCEEDED", "createTime": CREATED}
    output = {"inlinedResponses": {"inlinedResponses": answers}}
    others.answers["/batches/b1"] = {
        "name": "batches/b1",
        "done": True,
        "metadata": {**state, "output": output},
    }
    batch = ada.get(f"/v1/batches/{batch_id}").get_json()
    assert (batch["status"], batch["metadata"]["team"]) == ("completed", "search")
    rows = {row["custom_id"]: row for row in ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]}
    (choice,) = rows["r0"]["result"]["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("It is so.", "length")
    assert rows["r0"]["result"]["usage"]["completion_tokens"] == 7
    too_hot = {"code": "8", "message": "too hot", "retryable": True, "status": 429}
    assert rows["r1"]["error"] == too_hot
    assert rows["r2"]["error"]["code"] == "missing"
