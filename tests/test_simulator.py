"""The simulator satisfies the official client, used directly against it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from werkzeug.wrappers import Response

from flask_llm_batches.testing import Call, Simulator


@pytest.fixture
def client(llm_provider: Simulator) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=llm_provider.api_key, base_url=llm_provider.base_url, max_retries=0) as client:
        yield client


def line(custom_id: str = "a", **changes: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}


def submit(client: openai.OpenAI, *lines: dict[str, Any] | str) -> openai.types.Batch:
    text = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines)
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"team": "a"},
    )


def rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(text) for text in client.files.content(file_id).text.splitlines()]


def test_a_batch_runs_from_upload_to_output(llm_provider: Simulator, client: openai.OpenAI) -> None:
    """Upload, create, poll, finish and download give one output row for every line, echoing it."""
    batch = submit(client, line("a"), line("b"))
    assert batch.status == "validating"
    assert client.batches.retrieve(batch.id).status == "in_progress"
    llm_provider.batches[0].finish()
    done = client.batches.retrieve(batch.id)
    assert (done.status, done.error_file_id, done.metadata) == ("completed", None, {"team": "a"})
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed) == (2, 2)
    output = rows(client, done.output_file_id)
    assert {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in output
    } == {
        "a": "a",
        "b": "b",
    }
    assert done.output_file_id is not None
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"


def test_failed_requests_are_in_the_error_file(llm_provider: Simulator, client: openai.OpenAI) -> None:
    """A request that is answered with another status than 200 is a row of the error file."""
    llm_provider.respond = lambda _: (400, {"error": {"code": "invalid_value", "message": "too hot"}})
    batch = submit(client, line("a"))
    llm_provider.batches[0].finish()
    done = client.batches.retrieve(batch.id)
    assert done.output_file_id is None
    (row,) = rows(client, done.error_file_id)
    assert row["response"]["status_code"] == 400
    assert row["response"]["body"]["error"]["message"] == "too hot"


def test_an_expired_batch_has_partial_output(llm_provider: Simulator, client: openai.OpenAI) -> None:
    """What was answered in time is in the output file, the rest in the error file as batch_expired."""
    batch = submit(client, *[line(str(number)) for number in range(5)])
    client.batches.retrieve(batch.id)
    llm_provider.batches[0].expire(after=3)
    done = client.batches.retrieve(batch.id)
    assert done.status == "expired"
    assert len(rows(client, done.output_file_id)) == 3
    assert [row["error"]["code"] for row in rows(client, done.error_file_id)] == ["batch_expired"] * 2


def test_a_cancelled_batch_has_partial_output(llm_provider: Simulator, client: openai.OpenAI) -> None:
    """A cancel takes its time, and keeps what was answered before; a second one is refused."""
    batch = submit(client, line("a"), line("b"))
    client.batches.retrieve(batch.id)
    llm_provider.batches[0].advance()
    assert client.batches.cancel(batch.id).status == "cancelling"
    llm_provider.batches[0].finish()
    done = client.batches.retrieve(batch.id)
    assert done.status == "cancelled"
    assert len(rows(client, done.output_file_id)) == 1
    assert rows(client, done.error_file_id)[0]["error"]["code"] == "batch_cancelled"
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("{", "invalid_json_line"),
        (line(""), "missing_required_parameter"),
        (line("good"), "duplicate_custom_id"),
        (line("b", method="GET"), "invalid_method"),
        (line("b", url="/v1/embeddings"), "mismatched_url"),
        (line("b", body=[]), "invalid_type"),
        (line("b", body={}), "missing_required_parameter"),
        (line("b", body={"model": "another"}), "mismatched_model"),
        (line("b", body={"model": "gpt-4o-mini", "stream": True}), "invalid_request"),
    ],
)
def test_every_line_is_checked(client: openai.OpenAI, bad: dict[str, Any] | str, code: str) -> None:
    """A bad line makes a batch that fails, and says in which line and why."""
    batch = client.batches.retrieve(submit(client, line("good"), bad).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.code, error.line) for error in batch.errors.data or []] == [(code, 2)]


@pytest.mark.parametrize("end", ["finish", "expire"])
def test_a_wrong_file_never_completes(llm_provider: Simulator, client: openai.OpenAI, end: str) -> None:
    """Regression: a batch that nobody had retrieved before its end was completed without the wrong lines."""
    created = submit(client, line("good"), line("b", body={"model": "gpt-4o-mini", "stream": True}))
    getattr(llm_provider.batches[0], end)()
    batch = client.batches.retrieve(created.id)
    assert (batch.status, batch.output_file_id) == ("failed", None)


def test_an_empty_file_fails(client: openai.OpenAI) -> None:
    """A file without a line makes a batch that fails."""
    batch = client.batches.retrieve(submit(client, "").id)
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.errors.data[0].code == "empty_file"


def test_lists_have_pages(client: openai.OpenAI) -> None:
    """The official client walks through all pages, newest first."""
    made = [submit(client, line()).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    assert client.batches.list(limit=2).has_more
    assert not client.batches.list(limit=5).has_more


def test_what_openai_refuses_is_refused(client: openai.OpenAI) -> None:
    """Wrong files, parameters, ids and keys get OpenAI's errors."""
    with pytest.raises(openai.BadRequestError, match="jsonl"):
        client.files.create(file=("in.txt", b"{}"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="No such File"):
        client.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
    with pytest.raises(openai.NotFoundError, match="No such Batch"):
        client.batches.retrieve("batch_x")
    with pytest.raises(openai.NotFoundError):
        client.batches.list(after="batch_x")
    file = client.files.create(file=("in.jsonl", io.BytesIO(b"{}")), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="metadata"):
        client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/embeddings",
            completion_window="24h",
            metadata={str(number): "" for number in range(17)},
        )
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").batches.retrieve("batch_x")


def test_faults_hit_the_next_call_that_fits(llm_provider: Simulator, client: openai.OpenAI) -> None:
    """A failure, a drop and a delay each hit one call, only one of the named kind, and every call is kept."""
    llm_provider.fail_next(status=503, on="POST /files")
    llm_provider.drop_next(on="GET /batches")
    with pytest.raises(openai.APIConnectionError):
        client.batches.list()
    client.batches.list()
    with pytest.raises(openai.InternalServerError):
        submit(client, line())
    submit(client, line())
    llm_provider.delay_next(30)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).batches.list()
    assert len(llm_provider.calls_to("POST /files")) == 2
    assert len(llm_provider.calls_to("GET /batches")) == 3


def test_a_batch_finishes_by_itself(client: openai.OpenAI) -> None:
    """With ``seconds``, batches run by the clock on the wall."""
    with Simulator(seconds=0) as quick:
        theirs = client.with_options(base_url=quick.base_url)
        batch = submit(theirs, line())
        assert theirs.batches.retrieve(batch.id).status == "completed"


def test_it_lies(llm_provider: Simulator) -> None:
    """``rewrite`` changes what is sent; without a length, a body ends with the connection."""

    def rewrite(call: Call, response: Response) -> Response:
        response.set_data(call.path.encode())
        del response.headers["Content-Length"]
        response.headers["Connection"] = "close"
        return response

    llm_provider.rewrite = rewrite
    for _ in range(2):
        answer = httpx.get(f"{llm_provider.base_url}/batches")
        assert (answer.content, answer.headers.get("Transfer-Encoding")) == (b"/batches", None)
