"""Journeys through a real server."""

from __future__ import annotations

import os
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from flask_llm_batches.testing import Simulator
from tests.hosts import requests
from tests.servers import Running, gunicorn, serve

NOISE = ("Event loop is closed", "Task exception was never", "Traceback", "Warning", "never awaited")

# gunicorn leaves its own listening socket open when a worker ends, and Python hints at tracemalloc then.
SERVERS_OWN = re.compile(r"unclosed <socket.socket fd=\d+,(?!.*raddr)|Enable tracemalloc")


def noise(server: Running) -> list[str]:
    """Return the lines of the log that should not be there."""
    lines = [line for line in server.log.splitlines() if any(word in line for word in NOISE)]
    return [line for line in lines if not SERVERS_OWN.search(line)]


def sizes(server: Running) -> list[tuple[int, int]]:
    """Return the threads and the open files of each worker."""
    return [
        (
            sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
            sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        )
        for pid in sorted(server.workers())
    ]


def mixed_calls(server: Running, client: int, count: int) -> list[int]:
    """Make so many calls of all kinds on one connection, and return their statuses."""
    chance = random.Random(client)
    made: list[str] = []
    statuses: list[int] = []
    with httpx.Client(base_url=server.url, headers={"X-User": f"user-{client % 4}"}, timeout=60) as http:
        for number in range(count):
            kind = chance.choice(["create", "retrieve", "retrieve", "list", "results", "cancel", "wrong"])
            if kind == "create" or not made:
                answer = http.post("/v1/batches", json={"model": "openai:m", "requests": requests(3)})
                made.append(answer.json().get("id"))
            elif kind == "wrong":
                answer = http.post(
                    "/v1/batches", json={"model": "openai:m", "requests": [{"custom_id": number}]}
                )
            elif kind == "list":
                answer = http.get("/v1/batches")
            elif kind == "cancel":
                answer = http.post(f"/v1/batches/{chance.choice(made)}/cancel")
            else:
                path = "/results" if kind == "results" else ""
                answer = http.get(f"/v1/batches/{chance.choice(made)}{path}")
            statuses.append(answer.status_code)
    return statuses


@pytest.mark.slow
def test_a_thousand_calls_leave_nothing_behind(tmp_path: Path) -> None:
    """1,000 mixed calls of 16 clients: no 5xx, no file, no growth in threads or open files, a clean log."""
    with (
        Simulator(seconds=2) as simulator,
        gunicorn(simulator, tmp_path, "--workers=2", "--threads=8", "--keep-alive=1") as server,
    ):
        with ThreadPoolExecutor(16) as clients:
            first = [
                s
                for many in clients.map(lambda client: mixed_calls(server, client, 7), range(16))
                for s in many
            ]
            before = sizes(server)
            rest = [
                s
                for many in clients.map(lambda client: mixed_calls(server, client, 56), range(16))
                for s in many
            ]
        after = sizes(server)
        assert len(first) + len(rest) >= 1000
        assert {status for status in first + rest if status >= 500} == set()
        assert {200, 409, 422} <= set(rest)
        assert not list(server.spool.iterdir())
        # The main thread, gunicorn's eight, our loop, and the pool that asyncio gives a loop.
        most_threads = 1 + 8 + 1 + min(32, (os.cpu_count() or 1) + 4)
        for (threads, files), (more_threads, more_files) in zip(before, after, strict=True):
            assert more_threads <= max(threads, most_threads)
            # Of the 16 connections a worker may come to hold any, and as many to database and provider.
            assert more_files <= files + 32
    assert noise(server) == []


SERVERS = {
    "flask run": ["flask", "--app=tests.hosts:from_environment", "run", "--port={port}"],
    "gunicorn sync": ["gunicorn", "tests.hosts:from_environment()", "--bind=127.0.0.1:{port}", "--workers=2"],
    "gunicorn gthread": [
        "gunicorn",
        "tests.hosts:from_environment()",
        "--bind=127.0.0.1:{port}",
        "--threads=4",
    ],
    "gunicorn gevent": [
        "gunicorn",
        "tests.hosts:from_environment()",
        "--bind=127.0.0.1:{port}",
        "--worker-class=gevent",
    ],
    "gunicorn --preload": [
        "gunicorn",
        "tests.hosts:from_environment()",
        "--bind=127.0.0.1:{port}",
        "--workers=2",
        "--preload",
    ],
    "waitress": ["waitress", "--listen=127.0.0.1:{port}", "--call", "tests.hosts:from_environment"],
    "uvicorn": ["uvicorn", "tests.hosts:asgi", "--port={port}", "--ws=none"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS.keys())
def test_the_journey_under_every_server(tmp_path: Path, command: list[str]) -> None:
    """Several callers at once take a batch from create to results, and the log is clean."""

    def journey(number: int) -> None:
        user = {"X-User": f"user-{number}"}
        with httpx.Client(base_url=server.url, headers=user, timeout=30) as http:
            body = {"model": "openai:m", "requests": requests(20)}
            path = f"/v1/batches/{http.post('/v1/batches', json=body).json()['id']}"
            assert http.get(f"{path}/results").status_code == 409
            while http.get(path).json()["status"] != "completed":
                time.sleep(0.05)
            assert len(http.get(f"{path}/results").json()["results"]) == 20
            second = http.post("/v1/batches", json=body).json()["id"]
            assert http.post(f"/v1/batches/{second}/cancel").json()["status"] == "cancelling"
            assert http.get("/v1/batches").json()["first_id"] == second
            arn = http.get("/v1/batches/arn:aws:x%2Fy/results", params={"provider": "openai"})
            assert arn.json()["detail"] == "Batch 'arn:aws:x/y' not found"

    with (
        Simulator(seconds=0.5) as simulator,
        serve(simulator, tmp_path, *command) as server,
        ThreadPoolExecutor(4) as callers,
    ):
        list(callers.map(journey, range(4)))
        assert not list(server.spool.iterdir())
    assert noise(server) == []


def test_failures_leave_a_clean_log(tmp_path: Path) -> None:
    """Time-outs, drops and errors of the provider under gunicorn leave no stray exception in the log."""
    with (
        Simulator() as simulator,
        gunicorn(simulator, tmp_path, "--workers=1", "--threads=4") as server,
        httpx.Client(base_url=server.url, headers={"X-User": "ada"}, timeout=30) as http,
    ):
        body = {"model": "openai:m", "requests": requests(1)}
        batch_id = http.post("/v1/batches", json=body).json()["id"]
        for on in ("POST /files", "POST /batches", "GET /batches"):
            for fault in (simulator.drop_next, simulator.fail_next):
                fault(on=on)
                path = f"/v1/batches/{batch_id}"
                answer = http.get(path) if on.startswith("GET") else http.post("/v1/batches", json=body)
                assert answer.status_code == 502
        simulator.batches[0].finish()
        assert http.get(f"/v1/batches/{batch_id}/results").status_code == 200
    assert noise(server) == []
