"""Clients of other projects work unchanged."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from any_llm import AnyLLM
from any_llm.exceptions import BatchNotCompleteError

from flask_llm_batches.testing import Simulator
from flask_llm_batches.testing.simulator.batches import echo
from tests.hosts import MASTER_KEY, requests
from tests.servers import gunicorn

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "clients"
APART = Path(sys.prefix) / "clients"
"""What cannot be installed beside the rest; ``make test-slow`` puts it there."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server under both prefixes, whose batches take a second."""
    folder = tmp_path_factory.mktemp("server")
    with Simulator(seconds=1) as simulator, gunicorn(simulator, folder, "--threads=4") as server:
        yield server.url


@pytest.fixture(scope="module")
def key(url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A built-in key of a caller who is no admin."""
    made = httpx.post(f"{url}/keys/ada")
    assert made.status_code == 200
    return made.text


def journey(*command: str, **environment: str) -> None:
    run = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert run.stdout.splitlines()[-1:] == ["done"], run.stderr


def test_otari_0_4(url: str, key: str) -> None:
    """The otari package 0.4, which calls ``/api/v1``."""
    journey(sys.executable, str(HERE / "otari_journey.py"), url, key)


@pytest.mark.skipif(not (APART / "otari-0.3.0").is_dir(), reason="make test-slow installs otari 0.3.0")
def test_otari_0_3(url: str, key: str) -> None:
    """The otari package 0.3.0, which calls ``/v1``."""
    journey(sys.executable, str(HERE / "otari_journey.py"), url, key, PYTHONPATH=str(APART / "otari-0.3.0"))


@pytest.mark.skipif(
    not (APART / "node").is_dir(), reason="without node and npm, OpenAI's client for Node is not run"
)
def test_openai_for_node(url: str, key: str) -> None:
    """OpenAI's client for Node, unchanged."""
    journey_file = APART / "node" / "openai_journey.mjs"
    journey_file.write_text((HERE / "openai_journey.mjs").read_text())
    journey("node", str(journey_file), url, key)


def test_any_llms_otari_provider(url: str, key: str, tmp_path: Path) -> None:
    """any-llm's own ``otari`` provider, which sends a file and reads rows."""
    file = tmp_path / "requests.jsonl"
    body = '{"messages": [{"role": "user", "content": "hi"}]}'
    file.write_text(
        f'{{"custom_id": "r0", "method": "POST", "url": "/v1/chat/completions", "body": {body}}}\n'
    )

    async def run() -> None:
        llm = AnyLLM.create("otari", api_key=key, api_base=url, platform_mode=False)
        batch = await llm.acreate_batch(
            str(file), "/v1/chat/completions", provider_name="openai", model="openai:gpt-4o-mini"
        )
        with pytest.raises(BatchNotCompleteError):
            await llm.aretrieve_batch_results(batch.id, provider_name="openai")
        while (await llm.aretrieve_batch(batch.id, provider_name="openai")).status != "completed":
            await asyncio.sleep(0.1)
        result = await llm.aretrieve_batch_results(batch.id, provider_name="openai")
        assert [row.custom_id for row in result.results] == ["r0"]
        assert result.results[0].result is not None
        assert batch.id in [one.id for one in await llm.alist_batches(provider_name="openai", limit=5)]
        second = await llm.acreate_batch(
            str(file), "/v1/chat/completions", provider_name="openai", model="openai:gpt-4o-mini"
        )
        assert (await llm.acancel_batch(second.id, provider_name="openai")).status == "cancelling"

    asyncio.run(run())


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
def test_openai_for_python(url: str, key: str, prefix: str) -> None:
    """OpenAI's client for Python: ``extra_query``, ``extra_body``, paging, and its own exceptions."""
    query = {"provider": "openai"}
    with openai.OpenAI(base_url=f"{url}{prefix}", api_key=key) as client:
        made = []
        for _ in range(3):
            batch = client.batches.create(
                input_file_id="unused",
                endpoint="/v1/chat/completions",
                completion_window="24h",
                extra_body={"model": "openai:gpt-4o-mini", "requests": requests(2)},
            )
            made.append(batch.id)
        with pytest.raises(openai.ConflictError, match="is not yet complete") as caught:
            client.get(f"/batches/{made[2]}/results", cast_to=object, options={"params": query})
        assert caught.value.code == "batch_not_complete"
        assert client.batches.cancel(made[0], extra_query=query).status == "cancelling"
        while client.batches.retrieve(made[2], extra_query=query).status != "completed":
            time.sleep(0.1)
        answer: Any = client.get(f"/batches/{made[2]}/results", cast_to=object)
        assert len(answer["results"]) == 2
        assert [batch.id for batch in client.batches.list(limit=2, extra_query=query)][:3] == made[::-1]
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve("batch_nowhere", extra_query=query)
        with pytest.raises(openai.UnprocessableEntityError, match="metadata"):
            client.batches.create(
                input_file_id="unused",
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"k" * 65: ""},
                extra_body={"model": "openai:m", "requests": requests(1)},
            )
    with openai.OpenAI(base_url=f"{url}{prefix}", api_key=MASTER_KEY) as admin:
        assert made[0] in [batch.id for batch in admin.batches.list(limit=1, extra_query=query)]
    with (
        openai.OpenAI(base_url=f"{url}{prefix}", api_key="wrong") as nobody,
        pytest.raises(openai.AuthenticationError),
    ):
        nobody.batches.list(extra_query=query)


def test_a_failed_create_is_not_repeated(tmp_path: Path) -> None:
    """Regression: OpenAI's client made nine creates of one when the provider failed."""
    with (
        Simulator() as simulator,
        gunicorn(simulator, tmp_path) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=MASTER_KEY) as client,
    ):
        for _ in range(9):
            simulator.fail_next(500, on="POST /batches")
        with pytest.raises(openai.InternalServerError):
            client.batches.create(
                input_file_id="unused",
                endpoint="/v1/chat/completions",
                completion_window="24h",
                extra_body={"model": "openai:m", "requests": requests(1)},
            )
        assert len(simulator.calls_to("POST /batches")) == 1


@pytest.fixture(scope="module", params=["openai:gpt-4o-mini", "anthropic:claude-haiku-4-5", "mistral:small"])
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """A server that has each provider in turn behind the name of a model of OpenAI's."""
    folder = tmp_path_factory.mktemp("behind")
    app = f"tests.hosts:mapped('{request.param}')"
    with (
        Simulator(seconds=0, respond=_fail_if_asked) as simulator,
        gunicorn(simulator, folder, "--threads=4", app=app) as server,
    ):
        yield Behind(server.url, httpx.post(f"{server.url}/keys/ada").text)
        assert {batch.protocol for batch in simulator.batches} == {request.param.partition(":")[0]}
        assert "Traceback" not in server.log


class Behind(NamedTuple):
    """A server that programs for OpenAI are pointed at."""

    url: str
    key: str


def _fail_if_asked(line: Mapping[str, Any]) -> Any:
    if "Fail, please." in json.dumps(line["body"]):
        return 400, {"error": {"message": "as asked", "type": "invalid_request_error", "code": "asked"}}
    return echo(line)


def test_files_with_openai_for_python(behind: Behind) -> None:
    """The batch part of OpenAI's cookbook, synchronous and asynchronous, with pictures and a failed row."""
    journey(sys.executable, str(HERE / "openai_files.py"), *behind)


@pytest.mark.skipif(
    not (APART / "node").is_dir(), reason="without node and npm, OpenAI's client for Node is not run"
)
def test_files_with_openai_for_node(behind: Behind) -> None:
    """A program with OpenAI's client for Node."""
    journey_file = APART / "node" / "openai_files.mjs"
    journey_file.write_text((HERE / "openai_files.mjs").read_text())
    journey("node", str(journey_file), *behind)


@pytest.mark.skipif(not (APART / "openai-batch").is_dir(), reason="make test-slow installs openai-batch")
def test_openai_batch(behind: Behind) -> None:
    """The package openai-batch: its class and its command."""
    environment = {"PYTHONPATH": str(APART / "openai-batch")}
    journey(sys.executable, str(HERE / "openai_batch_journey.py"), *behind, **environment)


@pytest.mark.skipif(not (APART / "litellm").is_dir(), reason="make test-slow installs litellm")
def test_litellm(behind: Behind) -> None:
    """Litellm's create_file, create_batch, retrieve_batch and file_content."""
    environment = {"PYTHONPATH": str(APART / "litellm"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    journey(sys.executable, str(HERE / "litellm_journey.py"), *behind, **environment)
