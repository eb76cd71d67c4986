"""Run every benchmark and print its table."""

from __future__ import annotations

import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from flask_llm_batches.testing import Simulator
from tests.hosts import requests
from tests.servers import gunicorn

CONNECTIONS = 8
SECONDS = 3.0
ROUNDS = 5


@contextmanager
def upstream() -> Iterator[Simulator]:
    """Run a provider in a process of its own; the instance here only knows where it is."""
    command = [sys.executable, "-m", "flask_llm_batches.testing"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield _Elsewhere(process.stdout.readline().strip())
        finally:
            process.terminate()


class _Elsewhere(Simulator):
    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    @property
    def base_url(self) -> str:
        return self._base_url


def calls_per_second(urls: list[str], headers: dict[str, str], seconds: float) -> float:
    """Ask for URLs over 8 connections, one each or all for the only one, as often as it goes."""
    until = time.monotonic() + seconds

    def ask(url: str) -> int:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc)
        count = 0
        while time.monotonic() < until:
            connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            count += 1
        connection.close()
        return count

    started = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as connections:
        total = sum(connections.map(ask, (urls * CONNECTIONS)[:CONNECTIONS]))
    return total / (time.monotonic() - started)


def bench_status(simulator: Simulator) -> None:
    """Compare the status calls of one gthread worker with the naive one's, and with the provider's own."""
    os.environ.update(NAIVE_API_KEY=simulator.api_key, NAIVE_API_BASE=simulator.base_url)
    options = ("--workers=1", f"--threads={CONNECTIONS}")
    with (
        tempfile.TemporaryDirectory() as ours_dir,
        tempfile.TemporaryDirectory() as naive_dir,
        gunicorn(simulator, Path(ours_dir), *options) as ours,
        gunicorn(simulator, Path(naive_dir), *options, app="tests.benchmarks.naive:create_app()") as naive,
    ):
        user = {"X-User": "ada"}
        body = {"model": "openai:gpt-4o-mini", "requests": requests(3)}
        with httpx.Client(base_url=ours.url, headers=user, timeout=60) as http:
            made = [http.post("/v1/batches", json=body).json()["id"] for _ in range(CONNECTIONS)]
        key = {"Authorization": f"Bearer {simulator.api_key}"}
        contenders = {
            "naive": ([f"{naive.url}/v1/batches/{made[0]}?provider=openai"], user),
            "ours, 8 batches": ([f"{ours.url}/v1/batches/{batch_id}" for batch_id in made], user),
            "ours, one batch": ([f"{ours.url}/v1/batches/{made[0]}"], user),
            "the provider itself": ([f"{simulator.base_url}/batches/{made[0]}"], key),
        }
        figures: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(ROUNDS + 1):
            for name, (urls, headers) in contenders.items():
                figure = calls_per_second(urls, headers, SECONDS if round_ else 1.0)
                if round_:  # the first one only warms up
                    figures[name].append(figure)
    print(f"status of a batch: {CONNECTIONS} connections, one gthread worker, {ROUNDS} rounds")
    for name, many in figures.items():
        ratios = [one / naive_one for one, naive_one in zip(many, figures["naive"], strict=True)]
        print(
            f"  {name:20} {statistics.median(many):7.0f} calls/s   "
            f"{statistics.median(ratios):5.1f} times naive ({min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    with upstream() as provider:
        bench_status(provider)
