"""The small calls: how often, and how soon beside the large ones."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from flask_llm_batches.testing import Simulator
from tests.benchmarks.measure import Figure
from tests.benchmarks.servers import both, ours
from tests.benchmarks.wire import CONNECTIONS, HEADERS, call, json_body, on_connections, timings

SECONDS = 3.0
ROUNDS = 5
WITH_WORKER = "8 running, with a worker"


def calls_per_second(urls: list[str], headers: dict[str, str], seconds: float) -> float:
    """Get URLs over 8 connections, one each or all the same one, and return the calls per second."""
    started = time.perf_counter()
    calls = on_connections(urls, lambda url: len(timings(url, seconds, headers)))
    return calls / (time.perf_counter() - started)


def bench_status(simulator: Simulator) -> list[Figure]:
    """Count the status calls of 8 connections: the naive one, ours, and the provider's own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as another,
        both(simulator, Path(folder)) as (our, naive),
        ours(simulator, Path(another), "'thread'") as with_worker,
    ):
        followed = [with_worker.create(3, "in_progress") for _ in range(CONNECTIONS)]
        running = [our.create(3, "in_progress") for _ in range(CONNECTIONS)]
        finished = [our.create(3) for _ in range(CONNECTIONS)]
        contenders = {
            "naive": ([naive.at(running[0])], HEADERS),
            "8 running batches": ([our.at(batch_id) for batch_id in running], HEADERS),
            WITH_WORKER: ([with_worker.at(batch_id) for batch_id in followed], HEADERS),
            "one running batch": ([our.at(running[0])], HEADERS),
            "8 finished batches": ([our.at(batch_id) for batch_id in finished], HEADERS),
            "(the provider itself)": (
                [f"{simulator.base_url}/batches/{running[0]}"],
                {"Authorization": f"Bearer {simulator.api_key}"},
            ),
        }
        figures: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(ROUNDS + 1):
            for name, (urls, headers) in contenders.items():
                figure = calls_per_second(urls, headers, SECONDS if round_ else 1.0)
                if round_:  # the first one only warms up
                    figures[name].append(figure)
    obvious = figures.pop("naive")
    lines = [Figure(f"status, {name}", "/s", many, obvious, bar=_bar(name)) for name, many in figures.items()]
    beside = ("running", statistics.median(figures["8 running batches"]))
    return [*lines, Figure("finished beside running", "/s", figures["8 finished batches"], beside=beside)]


def _bar(name: str) -> str:
    if name == WITH_WORKER:
        return ">= 15 x naive"
    return "" if name.startswith("(") else ">= 6 x naive"


def bench_load(simulator: Simulator) -> list[Figure]:
    """Time a caller's status calls while another fetches 50,000 results, and a third submits as many."""
    with tempfile.TemporaryDirectory() as folder, ours(simulator, Path(folder)) as our:
        asked, fetched = our.create(3, "in_progress"), our.create(50_000)
        fetch = {"url": our.at(fetched, "/results")}
        create = {"url": our.url, "method": "POST", "body": json_body(50_000, 400)}
        idle, busy = [], []
        for _ in range(ROUNDS):
            idle.append(_slowest_percent(our.at(asked)))
            with _again_and_again(fetch), _again_and_again(create):
                busy.append(_slowest_percent(our.at(asked)))
    beside = ("idle", statistics.median(idle))
    return [
        Figure("status, p99, idle", "ms", idle),
        Figure("status, p99, under load", "ms", busy, beside=beside, bar="< 10 x idle"),
    ]


def _slowest_percent(url: str) -> float:
    return statistics.quantiles(timings(url, 8.0, HEADERS, pause=0.01), n=100)[98] * 1000


@contextmanager
def _again_and_again(asked: dict[str, Any]) -> Iterator[None]:
    """Make a call over and over in a process of its own, from its first answer to a last one."""
    context = multiprocessing.get_context("spawn")
    answers, enough = context.Value("i", 0), context.Event()
    process = context.Process(target=_call_until, args=(enough, asked, answers), daemon=True)
    process.start()
    try:
        while not answers.value and process.is_alive():
            time.sleep(0.05)
        before = answers.value
        yield
        if not process.is_alive() or answers.value == before:
            raise RuntimeError(f"there was no load from {asked['url']}")
    finally:
        enough.set()
        process.join()  # the server would go on with a call that was cut off


def _call_until(enough: Event, asked: dict[str, Any], answers: Synchronized[int]) -> None:
    while not enough.is_set():
        call(**asked, keep=False)
        with answers:
            answers.value += 1
