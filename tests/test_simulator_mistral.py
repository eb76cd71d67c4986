"""The simulator satisfies Mistral's own client, used directly against it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import MistralError
from mistralai.client.models import BatchJob

from flask_llm_batches.testing import Simulator
from flask_llm_batches.testing.simulator import mistral as protocol

MODEL = "mistral-small-latest"


@pytest.fixture
def client(llm_provider: Simulator) -> Iterator[Mistral]:
    base = llm_provider.providers["mistral"]["api_base"]
    with Mistral(api_key=llm_provider.api_key, server_url=base) as client:
        yield client


def line(custom_id: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "body": {"messages": [{"role": "user", "content": custom_id}]},
        **changes,
    }


def upload(client: Mistral, *lines: object, name: str = "in.jsonl") -> str:
    text = "\n".join(item if isinstance(item, str) else json.dumps(item) for item in lines)
    return client.files.upload(file={"file_name": name, "content": text.encode()}, purpose="batch").id


def submit(client: Mistral, *lines: object, **fields: Any) -> BatchJob:
    asked = {"endpoint": "/v1/chat/completions", "model": MODEL, **fields}
    return client.batch.jobs.create(input_files=[upload(client, *lines)], **asked)


def rows(client: Mistral, file_id: object) -> dict[str, Any]:
    assert isinstance(file_id, str)
    found = [json.loads(text) for text in client.files.download(file_id=file_id).read().splitlines()]
    return {row["custom_id"]: row["response"] for row in found}


def test_a_job_runs_from_upload_to_output(llm_provider: Simulator, client: Mistral) -> None:
    """Upload, create, poll, finish and download give one output row for every line, echoing it."""
    job = submit(client, line("a"), line("b", method="POST"), metadata={"team": "a"}, timeout_hours=48)
    assert (job.status, job.total_requests, job.output_file) == ("QUEUED", 2, None)
    assert client.batch.jobs.get(job_id=job.id).status == "RUNNING"
    llm_provider.batches[0].finish()
    job = client.batch.jobs.get(job_id=job.id)
    assert (job.status, job.error_file, job.metadata) == ("SUCCESS", None, {"team": "a"})
    assert (job.completed_requests, job.succeeded_requests, job.failed_requests) == (2, 2, 0)
    output = rows(client, job.output_file)
    assert {key: row["body"]["choices"][0]["message"]["content"] for key, row in output.items()} == {
        "a": "a",
        "b": "b",
    }
    assert isinstance(job.output_file, str)
    file = client.files.retrieve(file_id=job.output_file)
    assert (file.sample_type, file.source, file.num_lines) == ("batch_result", "mistral", 2)


def test_embeddings(llm_provider: Simulator, client: Mistral) -> None:
    """A job of another endpoint is answered in that endpoint's shape."""
    job = submit(client, line(body={"input": "x"}), endpoint="/v1/embeddings", model="mistral-embed")
    llm_provider.batches[0].finish()
    body = rows(client, client.batch.jobs.get(job_id=job.id).output_file)["a"]["body"]
    assert (body["model"], body["data"][0]["object"]) == ("mistral-embed", "embedding")


def test_failed_requests_are_in_the_error_file(llm_provider: Simulator, client: Mistral) -> None:
    """A request that is answered with another status than 200 is a row of the error file."""
    llm_provider.respond = lambda _: (422, {"message": "too hot"})
    job = submit(client, line())
    llm_provider.batches[0].finish()
    job = client.batch.jobs.get(job_id=job.id)
    assert (job.output_file, job.failed_requests, job.succeeded_requests) == (None, 1, 0)
    assert rows(client, job.error_file) == {"a": {"status_code": 422, "body": {"message": "too hot"}}}


def test_a_job_that_ends_early_has_partial_output(llm_provider: Simulator, client: Mistral) -> None:
    """What was answered is in the output file; a cancel takes its time, and one after the end is refused."""
    expired, cancelled = submit(client, line("a"), line("b")), submit(client, line("a"), line("b"))
    llm_provider.batches[0].expire(after=1)
    llm_provider.batches[1].advance()
    assert client.batch.jobs.cancel(job_id=cancelled.id).status == "CANCELLATION_REQUESTED"
    llm_provider.batches[1].finish()
    for job_id, status in ((expired.id, "TIMEOUT_EXCEEDED"), (cancelled.id, "CANCELLED")):
        job = client.batch.jobs.get(job_id=job_id)
        assert (job.status, job.completed_requests, job.error_file) == (status, 1, None)
        assert list(rows(client, job.output_file)) == ["b"]
        with pytest.raises(MistralError, match="Cannot cancel"):
            client.batch.jobs.cancel(job_id=job_id)


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[]",
        line(""),
        line("good"),
        line("b", body=[]),
        line("b", body={"model": "another"}),
        line("b", body={"stream": True}),
    ],
)
def test_every_line_is_checked(client: Mistral, bad: object) -> None:
    """A bad line makes a job that fails, and says in which line and why."""
    job = client.batch.jobs.get(job_id=submit(client, line("good"), bad).id)
    assert job.status == "FAILED"
    (error,) = job.errors
    assert error.message.startswith("Line 2: ")


def test_files_have_limits(client: Mistral, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job fails that has no request, or too many."""
    assert client.batch.jobs.get(job_id=submit(client, "").id).status == "FAILED"
    monkeypatch.setattr(protocol, "MAX_REQUESTS", 1)
    job = client.batch.jobs.get(job_id=submit(client, line("a"), line("b")).id)
    assert "More than 1" in job.errors[0].message


def test_lists_have_pages(client: Mistral) -> None:
    """Pages are counted from 0, newest first, and ``total`` counts all."""
    made = [submit(client, line()).id for _ in range(5)]
    pages = [client.batch.jobs.list(page=page, page_size=2) for page in range(4)]
    assert [[job.id for job in page.data or []] for page in pages] == [
        made[4:2:-1],
        made[2:0:-1],
        made[:1],
        [],
    ]
    assert {page.total for page in pages} == {5}


@pytest.mark.filterwarnings(
    "ignore:Pydantic serializer warnings"
)  # at an endpoint that the SDK does not know
def test_what_mistral_refuses_is_refused(client: Mistral, llm_provider: Simulator) -> None:
    """Wrong files, parameters, ids and keys get Mistral's errors."""
    wrong: list[tuple[int, dict[str, Any]]] = [
        (404, {"input_files": ["x"]}),
        (422, {"input_files": []}),
        (422, {"model": None}),
        (422, {"endpoint": "/v1/nothing"}),
        (422, {"timeout_hours": 169}),
        (422, {"metadata": {"a": "b" * 513}}),
    ]
    asked = {"input_files": [upload(client, line())], "endpoint": "/v1/embeddings", "model": MODEL}
    for status, fields in wrong:
        with pytest.raises(MistralError) as caught:
            client.batch.jobs.create(**{**asked, **fields})
        assert caught.value.status_code == status, fields
    with pytest.raises(MistralError, match="jsonl"):
        upload(client, line(), name="in.txt")
    for get in (client.batch.jobs.get, client.batch.jobs.cancel):
        with pytest.raises(MistralError, match="Status 404"):
            get(job_id="x")
    with pytest.raises(MistralError, match="Status 404"):
        client.files.download(file_id="x")
    assert not llm_provider.batches
    stranger = Mistral(api_key="wrong", server_url=llm_provider.providers["mistral"]["api_base"])
    with stranger, pytest.raises(MistralError, match="Unauthorized"):
        stranger.batch.jobs.list()
