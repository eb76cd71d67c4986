"""The simulator is the same for every provider: one clock, one way to answer, the same faults."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from any_llm import AnyLLM
from any_llm.exceptions import AnyLLMError, BatchNotCompleteError
from any_llm.types.completion import ChatCompletion

from flask_llm_batches.testing import Call, SimulatedBatch, Simulator

CREATES = {
    "openai": "POST /batches",
    "anthropic": "POST /messages/batches",
    "mistral": "POST /batch/jobs",
}
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "mistral": "mistral-small-latest"}

each_provider = pytest.mark.parametrize("provider", CREATES)


@asynccontextmanager
async def connected(simulator: Simulator, provider: str) -> AsyncIterator[AnyLLM]:
    llm = AnyLLM.create(
        provider, api_key=simulator.api_key, api_base=address(simulator, provider), unified_exceptions=True
    )
    try:
        yield llm
    finally:
        client = llm.client  # type: ignore[attr-defined]
        await (client.__aexit__(None, None, None) if provider == "mistral" else client.close())


async def submit(llm: AnyLLM, folder: Path, count: int = 3, content: Any = None) -> str:
    provider = llm.PROVIDER_NAME
    lines = [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": MODELS[provider],
                "max_tokens": 9,
                "messages": [{"role": "user", "content": content or f"say {number}"}],
            },
        }
        for number in range(count)
    ]
    path = folder / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    batch = await llm.acreate_batch(str(path), "/v1/chat/completions", metadata={"team": "a"})
    return batch.id


async def said(llm: AnyLLM, batch_id: str) -> dict[str, str | None]:
    """Return what was answered, by ``custom_id``."""
    if llm.PROVIDER_NAME == "mistral":
        # any-llm 1.40 reads the text of a response that mistralai 3.7 gives it unread, which is an error.
        client: Any = llm.client  # type: ignore[attr-defined]
        job = await client.batch.jobs.get_async(job_id=batch_id)
        data = await (await client.files.download_async(file_id=job.output_file)).aread()
        rows = [json.loads(row) for row in data.splitlines()]
        items = [(row["custom_id"], ChatCompletion(**row["response"]["body"])) for row in rows]
    else:
        results = (await llm.aretrieve_batch_results(batch_id)).results
        items = [(item.custom_id, item.result) for item in results if isinstance(item.result, ChatCompletion)]
    return {custom_id: completion.choices[0].message.content for custom_id, completion in items}


def download_path(simulator: Simulator, batch: SimulatedBatch) -> str:
    """Return where a batch that has ended can be downloaded, below the provider's version."""
    if batch.protocol == "anthropic":
        return f"/messages/batches/{batch.id}/results"
    poll = {"openai": "/batches/", "mistral": "/batch/jobs/"}[batch.protocol] + batch.id
    answer = httpx.get(address(simulator, batch.protocol, poll), headers=keys(simulator)).json()
    return f"/files/{answer.get('output_file_id') or answer['output_file']}/content"


def address(simulator: Simulator, provider: str, path: str | None = None) -> str:
    """Return the base, or with a path below the version the whole address."""
    base = simulator.providers[provider]["api_base"]
    return base if path is None else base.removesuffix("/v1") + "/v1" + path


def keys(simulator: Simulator) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {simulator.api_key}",
        "x-api-key": simulator.api_key,
        "anthropic-version": "2023-06-01",
    }


@pytest.fixture
def finished(llm_provider: Simulator, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Make a batch that has ended, with output of about a size; give its download's path and address."""

    def make(provider: str, size: int = 1000) -> tuple[str, str]:
        async def journey() -> None:
            async with connected(llm_provider, provider) as llm:
                await submit(llm, tmp_path, 1)

        asyncio.run(journey())
        (batch,) = llm_provider.batches
        llm_provider.respond = lambda _: {"text": "x" * size}
        batch.finish()
        path = download_path(llm_provider, batch)
        return path, address(llm_provider, provider, path)

    return make


def wait_for_hang_up(simulator: Simulator) -> Call:
    deadline = time.monotonic() + 1
    while not simulator.hang_ups and time.monotonic() < deadline:
        time.sleep(0.01)
    (call,) = simulator.hang_ups
    return call


@each_provider
def test_one_journey_fits_all(llm_provider: Simulator, tmp_path: Path, provider: str) -> None:
    """Create, poll, list, finish and results are the same lines through any-llm, whoever the provider is."""

    async def journey() -> None:
        async with connected(llm_provider, provider) as llm:
            batch_id = await submit(llm, tmp_path)
            assert llm_provider.calls_to(CREATES[provider])[0].provider == provider
            (batch,) = llm_provider.batches
            assert (batch.id, batch.protocol) == (batch_id, provider)
            assert (await llm.aretrieve_batch(batch_id)).status == "in_progress"
            with pytest.raises(BatchNotCompleteError):
                await llm.aretrieve_batch_results(batch_id)
            assert [listed.id for listed in await llm.alist_batches()] == [batch_id]
            batch.finish()
            done = await llm.aretrieve_batch(batch_id)
            assert done.status == batch.status == "completed"
            assert done.request_counts is not None
            assert (done.request_counts.total, done.request_counts.completed) == (3, 3)
            assert await said(llm, batch_id) == {"r0": "say 0", "r1": "say 1", "r2": "say 2"}

    asyncio.run(journey())


@each_provider
@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_batches_end_early(llm_provider: Simulator, tmp_path: Path, provider: str, end: str) -> None:
    """What was answered before a cancel or the end of the time is in the download."""

    async def journey() -> None:
        async with connected(llm_provider, provider) as llm:
            batch_id = await submit(llm, tmp_path)
            await llm.aretrieve_batch(batch_id)
            (batch,) = llm_provider.batches
            if end == "expired":
                batch.expire(after=1)
            else:
                batch.advance()
                assert (await llm.acancel_batch(batch_id)).status == "cancelling"
                batch.finish()
            seen = await llm.aretrieve_batch(batch_id)
            assert seen.status == ("completed" if provider == "anthropic" else end)

    asyncio.run(journey())
    (batch,) = llm_provider.batches
    assert batch.status == end
    url = address(llm_provider, provider, download_path(llm_provider, batch))
    rows = [json.loads(row) for row in httpx.get(url, headers=keys(llm_provider)).text.splitlines()]
    answered = [row["custom_id"] for row in rows if row.get("response") or "message" in row["result"]]
    assert answered == ["r2"]


@each_provider
def test_a_failed_batch(llm_provider: Simulator, tmp_path: Path, provider: str) -> None:
    """A batch can fail, which at Anthropic is one that ended with nothing but errors."""

    async def journey() -> None:
        async with connected(llm_provider, provider) as llm:
            batch_id = await submit(llm, tmp_path)
            llm_provider.batches[0].fail("too hot")
            if provider == "anthropic":
                results = await llm.aretrieve_batch_results(batch_id)
                assert {item.error.message for item in results.results if item.error} == {"too hot"}
            else:
                assert (await llm.aretrieve_batch(batch_id)).status == "failed"

    asyncio.run(journey())


@each_provider
def test_requests_are_answered_as_told(llm_provider: Simulator, tmp_path: Path, provider: str) -> None:
    """``respond`` gets the same kind of line from everybody, and ``echo`` joins the text of blocks."""
    got: list[Any] = []
    echo = llm_provider.respond

    def respond(line: Any) -> Any:
        got.append(line)
        return echo(line)

    llm_provider.respond = respond
    blocks = [{"type": "text", "text": "say "}, {"type": "text", "text": "hello"}]

    async def journey() -> None:
        async with connected(llm_provider, provider) as llm:
            batch_id = await submit(llm, tmp_path, 1, content=blocks)
            llm_provider.batches[0].finish()
            assert await said(llm, batch_id) == {"r0": "say hello"}

    asyncio.run(journey())
    (line,) = got
    assert set(line) == {"custom_id", "method", "url", "body"}
    assert line["url"] == ("/v1/messages" if provider == "anthropic" else "/v1/chat/completions")
    assert line["body"]["model"] == MODELS[provider]


def test_batches_are_seen_by_their_own_protocol(llm_provider: Simulator, tmp_path: Path) -> None:
    """All batches are in one list here, and every provider lists and knows its own only."""

    async def journey() -> None:
        for provider in CREATES:
            async with connected(llm_provider, provider) as llm:
                made = await submit(llm, tmp_path)
                assert [batch.id for batch in await llm.alist_batches()] == [made]
                stranger = llm_provider.batches[0].id
                if stranger != made:
                    with pytest.raises(AnyLLMError, match="No such Batch"):
                        await llm.aretrieve_batch(stranger)

    asyncio.run(journey())
    assert [batch.protocol for batch in llm_provider.batches] == list(CREATES)
    prefixes = [batch.id.partition("_")[0] for batch in llm_provider.batches]
    assert prefixes[:2] == ["batch", "msgbatch"]


@each_provider
def test_errors_have_the_callers_shape(llm_provider: Simulator, provider: str) -> None:
    """``fail_next`` answers as the provider that was called does."""
    llm_provider.fail_next(529, message="too hot", on=CREATES[provider])
    url = address(llm_provider, provider, CREATES[provider].removeprefix("POST "))
    error = httpx.post(url, headers=keys(llm_provider)).json()
    expected: dict[str, dict[str, Any]] = {
        "openai": {"error": {"message": "too hot", "type": "server_error", "param": None, "code": None}},
        "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "too hot"}},
        "mistral": {"object": "error", "message": "too hot", "type": "internal_server_error"},
    }
    assert error.items() >= expected[provider].items()


@each_provider
def test_nobody_gets_in_without_the_key(llm_provider: Simulator, provider: str) -> None:
    """A wrong key is a 401 of every provider."""
    url = address(llm_provider, provider, CREATES[provider].removeprefix("POST "))
    assert httpx.get(url, headers={"Authorization": "Bearer no", "x-api-key": "no"}).status_code == 401
    assert httpx.get(url, headers=keys(llm_provider)).status_code == 200


@each_provider
def test_a_download_is_dropped(
    llm_provider: Simulator, finished: Callable[..., tuple[str, str]], provider: str
) -> None:
    """The connection ends after so many bytes, and nobody is said to have hung up."""
    path, url = finished(provider)
    llm_provider.drop_next(on=f"GET {path}", after=100)
    got = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("GET", url, headers=keys(llm_provider)) as answer,
    ):
        for chunk in answer.iter_raw():
            got += chunk
    assert len(got) == 100
    assert not llm_provider.hang_ups
    assert len(httpx.get(url, headers=keys(llm_provider)).content) > 1000


@each_provider
def test_a_download_stalls(
    llm_provider: Simulator, finished: Callable[..., tuple[str, str]], provider: str
) -> None:
    """After so many bytes nothing comes for a while, and then the rest."""
    path, url = finished(provider)
    llm_provider.delay_next(0.4, on=f"GET {path}", after=100)
    with httpx.stream("GET", url, headers=keys(llm_provider)) as answer:
        chunks = answer.iter_raw()
        assert len(next(chunks)) == 100
        started = time.monotonic()
        rest = b"".join(chunks)
    assert time.monotonic() - started > 0.3
    assert len(rest) > 900
    assert not llm_provider.hang_ups


@each_provider
def test_a_hang_up_is_noticed_in_a_stall(
    llm_provider: Simulator, finished: Callable[..., tuple[str, str]], provider: str
) -> None:
    """A caller who goes while the download stalls is seen at once."""
    path, url = finished(provider)
    llm_provider.delay_next(60, on=f"GET {path}", after=0)
    with httpx.stream("GET", url, headers=keys(llm_provider)) as answer:
        assert answer.status_code == 200
    assert wait_for_hang_up(llm_provider).path == path


def test_a_hang_up_is_noticed_in_a_download(
    llm_provider: Simulator, finished: Callable[..., tuple[str, str]]
) -> None:
    """A caller who goes in the middle of a large download is seen at once."""
    path, url = finished("openai", 20_000_000)
    with httpx.stream("GET", url, headers=keys(llm_provider)) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        assert not llm_provider.hang_ups
    assert wait_for_hang_up(llm_provider).path == path
