"""The simulator satisfies Anthropic's own client, used directly against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from flask_llm_batches.testing import Simulator
from flask_llm_batches.testing.simulator import anthropic as protocol


@pytest.fixture
def client(llm_provider: Simulator) -> Iterator[anthropic.Anthropic]:
    base = llm_provider.providers["anthropic"]["api_base"]
    with anthropic.Anthropic(api_key=llm_provider.api_key, base_url=base, max_retries=0) as client:
        yield client


def item(custom_id: str = "a", **changes: Any) -> Any:
    messages = [{"role": "user", "content": custom_id}]
    params = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": messages, **changes}
    return {"custom_id": custom_id, "params": {name: it for name, it in params.items() if it is not None}}


def create(client: anthropic.Anthropic, *custom_ids: str) -> str:
    return client.messages.batches.create(requests=[item(custom_id) for custom_id in custom_ids]).id


def results(client: anthropic.Anthropic, batch_id: str) -> dict[str, Any]:
    return {row.custom_id: row.result for row in client.messages.batches.results(batch_id)}


def test_a_batch_runs_from_create_to_results(llm_provider: Simulator, client: anthropic.Anthropic) -> None:
    """Create, poll, finish and results give a message for every request; counts change at the end only."""
    batch = client.messages.batches.create(requests=[item("a"), item("b")])
    assert batch.id.startswith("msgbatch_")
    llm_provider.batches[0].advance()
    batch = client.messages.batches.retrieve(batch.id)
    assert (batch.processing_status, batch.results_url, batch.ended_at) == ("in_progress", None, None)
    assert (batch.request_counts.processing, batch.request_counts.succeeded) == (2, 0)
    with pytest.raises(anthropic.AnthropicError, match="No `results_url`"):
        client.messages.batches.results(batch.id)
    llm_provider.batches[0].finish()
    batch = client.messages.batches.retrieve(batch.id)
    assert batch.processing_status == "ended"
    assert batch.ended_at is not None
    assert (batch.request_counts.processing, batch.request_counts.succeeded) == (0, 2)
    messages = {custom_id: result.message for custom_id, result in results(client, batch.id).items()}
    assert {custom_id: message.content[0].text for custom_id, message in messages.items()} == {
        "a": "a",
        "b": "b",
    }
    assert (messages["a"].stop_reason, messages["a"].usage.output_tokens) == ("end_turn", 1)


def test_an_expired_batch_has_ended(llm_provider: Simulator, client: anthropic.Anthropic) -> None:
    """What was answered in time has succeeded, the rest is expired, and so the counts say."""
    batch_id = create(client, "a", "b", "c")
    llm_provider.batches[0].expire(after=2)
    batch = client.messages.batches.retrieve(batch_id)
    assert batch.processing_status == "ended"
    assert (batch.request_counts.succeeded, batch.request_counts.expired) == (2, 1)
    types = sorted(result.type for result in results(client, batch_id).values())
    assert types == ["expired", "succeeded", "succeeded"]


def test_a_cancelled_batch_has_ended(llm_provider: Simulator, client: anthropic.Anthropic) -> None:
    """A cancel takes its time, and keeps what was answered before; one after the end is refused."""
    batch_id = create(client, "a", "b")
    llm_provider.batches[0].advance()
    batch = client.messages.batches.cancel(batch_id)
    assert batch.processing_status == "canceling"
    assert batch.cancel_initiated_at is not None
    assert client.messages.batches.cancel(batch_id).processing_status == "canceling"
    llm_provider.batches[0].finish()
    batch = client.messages.batches.retrieve(batch_id)
    assert (batch.processing_status, batch.request_counts.canceled) == ("ended", 1)
    assert {custom_id: it.type for custom_id, it in results(client, batch_id).items()} == {
        "a": "canceled",
        "b": "succeeded",
    }
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.cancel(batch_id)


def test_failed_requests_are_errored_rows(llm_provider: Simulator, client: anthropic.Anthropic) -> None:
    """A request that is answered with another status than 200 keeps what was said."""
    llm_provider.respond = lambda _: (529, {"error": {"message": "too hot"}})
    batch_id = create(client, "a")
    llm_provider.batches[0].finish()
    error = results(client, batch_id)["a"].error.error
    assert (error.type, error.message) == ("overloaded_error", "too hot")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"model": None}, "model: Field required"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": None}, "messages: Field required"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "system", "content": "x"}]}, 'Unexpected role "system"'),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"stream": True}, "stream"),
    ],
)
def test_params_are_checked_when_their_turn_comes(
    llm_provider: Simulator, client: anthropic.Anthropic, bad: dict[str, Any], message: str
) -> None:
    """Bad params do not hinder the create, nor the other requests: theirs is an errored row."""
    batch_id = client.messages.batches.create(requests=[item("good"), item("bad", **bad)]).id
    llm_provider.batches[0].finish()
    found = results(client, batch_id)
    assert found["good"].type == "succeeded"
    assert found["bad"].error.error.type == "invalid_request_error"
    assert message in found["bad"].error.error.message
    assert client.messages.batches.retrieve(batch_id).request_counts.errored == 1


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "at least 1"),
        ([item("a"), item("a")], "requests.1.custom_id"),
        ([item("")], "requests.0.custom_id"),
        ([item("a" * 65)], "requests.0.custom_id"),
        ([item("a b")], "requests.0.custom_id"),
        ([item("a\n")], "requests.0.custom_id"),
        ([{"custom_id": "a"}], "requests.0.params"),
    ],
)
def test_ids_are_checked_at_create(
    llm_provider: Simulator, client: anthropic.Anthropic, requests: Any, message: str
) -> None:
    """A batch whose ids or shape are wrong is refused, and not made."""
    with pytest.raises(anthropic.BadRequestError, match="invalid_request_error") as caught:
        client.messages.batches.create(requests=requests)
    assert message in str(caught.value)
    assert not llm_provider.batches


def test_large_batches_are_refused(client: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many requests are a 400, too many bytes a 413."""
    monkeypatch.setattr(protocol, "MAX_REQUESTS", 2)
    with pytest.raises(anthropic.BadRequestError, match="at most 2"):
        create(client, "a", "b", "c")
    monkeypatch.setattr(protocol, "MAX_BYTES", 10)
    with pytest.raises(anthropic.APIStatusError, match="request_too_large"):
        create(client, "a")


def test_lists_have_pages(client: anthropic.Anthropic) -> None:
    """The client walks through all pages in both directions."""
    made = [create(client, "a") for _ in range(5)]
    newest_first = made[::-1]
    page = client.messages.batches.list(limit=2)
    assert (page.has_more, page.first_id, page.last_id) == (True, made[4], made[3])
    assert [batch.id for batch in page] == newest_first
    assert [batch.id for batch in client.messages.batches.list(after_id=made[1]).data] == [made[0]]
    before = client.messages.batches.list(before_id=made[0], limit=2)
    assert [batch.id for batch in before.data] == [made[2], made[1]]
    assert before.has_more
    assert sorted(batch.id for batch in before) == sorted(made[1:])
    assert not client.messages.batches.list(limit=5).has_more


def test_what_anthropic_refuses_is_refused(client: anthropic.Anthropic) -> None:
    """Wrong ids, pages and keys get Anthropic's errors."""
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.batches.retrieve("msgbatch_x")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.list(after_id="msgbatch_x")
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.list(limit=1001)
    with pytest.raises(anthropic.BadRequestError, match="anthropic-version"):
        client.messages.batches.list(extra_headers={"anthropic-version": anthropic.omit})
    with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        client.with_options(api_key="wrong").messages.batches.retrieve("msgbatch_x")
