"""Results over a real server while the provider is silent or fails, or the caller hangs up."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from flask_llm_batches.testing import Simulator
from tests.hosts import requests
from tests.servers import Running, gunicorn, serve

KINDS = ("application/json", "application/x-ndjson")
DOWNLOAD = "GET /files/file-output"

pytestmark = pytest.mark.slow


@contextmanager
def at_work(
    folder: Path, run: Callable[..., AbstractContextManager[Running]], *options: str
) -> Iterator[tuple[Simulator, Running, httpx.Client, str]]:
    """Run a server whose provider has a batch that has ended, and return the path of its results."""
    with (
        Simulator() as simulator,
        run(simulator, folder, *options) as server,
        httpx.Client(base_url=server.url, headers={"X-User": "ada"}, timeout=20) as http,
    ):
        body = {"model": "openai:m", "requests": requests(4)}
        batch_id = http.post("/v1/batches", json=body).json()["id"]
        simulator.batches[0].finish()
        yield simulator, server, http, f"/v1/batches/{batch_id}/results"


@pytest.mark.parametrize("worker", ["gthread", "gevent"])
def test_a_caller_who_hangs_up_ends_the_download(tmp_path: Path, worker: str) -> None:
    """Before the first row, after it and while the provider is silent, in either form."""
    with at_work(tmp_path, gunicorn, f"--worker-class={worker}", "--threads=4") as (
        simulator,
        server,
        http,
        path,
    ):
        http.get(path)  # the first one in a process has more to do
        for kind in KINDS:
            for after in (None, 0, len(simulator.batches[0].output[0])):
                simulator.hang_ups.clear()
                # Without an answer begun, the simulator sees who is there when its silence ends.
                simulator.delay_next(2.5 if after is None else 30, on=DOWNLOAD, after=after)
                with (
                    suppress(httpx.ReadTimeout),
                    http.stream("GET", path, headers={"Accept": kind}, timeout=0.5) as answer,
                ):
                    next(answer.iter_raw())
                hung_up = time.monotonic()
                while not simulator.hang_ups and time.monotonic() - hung_up < 10:
                    time.sleep(0.005)
                assert time.monotonic() - hung_up < (3 if after is None else 2)
    assert "Traceback" not in server.log


def test_white_space_goes_out_while_the_provider_is_silent(tmp_path: Path) -> None:
    """From the first row on a reader hears something every half a second, and all rows in the end."""
    with at_work(tmp_path, gunicorn, "--threads=4") as (simulator, _, http, path):
        http.get(path)  # the first one in a process has more to do
        first = len(simulator.batches[0].output[0])
        for kind in KINDS:
            simulator.delay_next(1.5, on=DOWNLOAD, after=first)
            heard, data = [], b""
            with http.stream("GET", path, headers={"Accept": kind}) as answer:
                for chunk in answer.iter_raw():
                    heard.append(time.monotonic())
                    data += chunk
            assert max(later - earlier for earlier, later in pairwise(heard)) < 0.8
            rows = (
                json.loads(data)["results"]
                if kind == KINDS[0]
                else [json.loads(line) for line in data.decode().splitlines() if line.strip()]
            )
            assert sorted(row["custom_id"] for row in rows) == ["r0", "r1", "r2", "r3"]


IMPATIENT = "tests.hosts:from_environment(transfer_timeout=1)"


@pytest.mark.parametrize(
    "command",
    [
        ["flask", f"--app={IMPATIENT}", "run", "--port={port}"],
        *(
            ["gunicorn", IMPATIENT, "--bind=127.0.0.1:{port}", f"--worker-class={worker}", "--threads=4"]
            for worker in ("sync", "gthread", "gevent")
        ),
    ],
    ids=["flask run", "sync", "gthread", "gevent"],
)
def test_a_failure_before_the_first_row_has_its_answer(tmp_path: Path, command: list[str]) -> None:
    """However long it took: the answer has not begun as long as the caller is seen to be there."""
    with at_work(tmp_path, serve, *command) as (simulator, _, http, path):
        for kind in KINDS:
            for after in (None, 0):
                simulator.delay_next(3, on=DOWNLOAD, after=after)
                answer = http.get(path, headers={"Accept": kind})
                assert (answer.status_code, answer.json()["error"]["code"]) == (504, "provider_timeout")
        assert len(http.get(path).json()["results"]) == 4


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_a_failure_on_the_way_never_looks_like_the_end(tmp_path: Path, worker: str) -> None:
    """The connection is broken; JSON lacks its end, NDJSON ends with an error; the provider is not quoted."""
    with at_work(tmp_path, gunicorn, f"--worker-class={worker}", "--threads=4") as (
        simulator,
        server,
        http,
        path,
    ):
        first = len(simulator.batches[0].output[0])
        for kind in KINDS:
            for after in (first, first + 10):
                simulator.drop_next(on=DOWNLOAD, after=after)
                data = b""
                with (
                    pytest.raises(httpx.RemoteProtocolError),
                    http.stream("GET", path, headers={"Accept": kind}) as answer,
                ):
                    assert answer.status_code == 200
                    for chunk in answer.iter_raw():
                        data += chunk
                text = data.decode()
                assert "say 3" in text
                assert simulator.base_url not in text
                if kind == KINDS[0]:
                    with pytest.raises(ValueError, match="delimiter"):
                        json.loads(text)
                else:
                    row, error = [json.loads(line) for line in text.splitlines() if line]
                    assert row["custom_id"] == "r3"
                    assert error == {
                        "detail": "LLM provider error",
                        "error": {
                            "message": "LLM provider error",
                            "type": "api_error",
                            "code": "provider_error",
                            "param": None,
                        },
                    }
        assert http.get(path).status_code == 200
    for words in ("httpx", "httpcore", "openai.", "During handling", "direct cause"):
        assert words not in server.log
    assert server.log.count("ResultsInterrupted: LLM provider error") == 4


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_killed_leaves_no_whole_results(tmp_path: Path, version: str, kind: str) -> None:
    """HTTP/1.1 lacks its last chunk, JSON its end, and NDJSON over HTTP/1.0 rows that are counted."""
    with at_work(tmp_path, gunicorn, "--threads=4") as (simulator, server, http, path):
        http.get(path)  # the first one in a process has more to do
        simulator.delay_next(30, on=DOWNLOAD, after=len(simulator.batches[0].output[0]))
        with closing(
            socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 20)
        ) as reader:
            head = f"GET {path} HTTP/{version}\r\nHost: x\r\nX-User: ada\r\nAccept: {kind}\r\n\r\n"
            reader.sendall(head.encode())
            data = b""
            while b"say 3" not in data:
                data += reader.recv(1 << 16)
            for pid in server.workers():
                os.kill(pid, signal.SIGKILL)
            while part := reader.recv(1 << 16):
                data += part
        head, _, body = data.decode().partition("\r\n\r\n")
        assert " 200 OK" in head
        if version == "1.1":
            assert "transfer-encoding: chunked" in head.lower()
            assert not body.endswith("0\r\n\r\n")
        elif kind == KINDS[0]:
            with pytest.raises(ValueError, match="delimiter"):
                json.loads(body)
        else:
            # Not through http: its connection is to the worker that was killed.
            url = server.url + path.removesuffix("/results")
            batch = httpx.get(url, headers={"X-User": "ada"}, timeout=20).json()
            rows = [line for line in body.splitlines() if line.strip()]
            assert len(rows) == 1 < batch["request_counts"]["total"]
