"""A million requests in one batch, at a provider that takes 50,000 at once and runs two of these."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask_llm_batches.testing import Simulator
from tests.benchmarks.bulk import MEMORY
from tests.benchmarks.measure import Figure, Memory
from tests.benchmarks.wire import MODEL, call, json_body, lines
from tests.databases import query
from tests.servers import gunicorn

COUNT, PART, SIZE = 1_000_000, 50_000, 400

_ID = re.compile(rb'"custom_id":"r([0-9]+)"')
_PIECE = 4096  # lines of a body that are sent at once


def bench_parts(_: Simulator) -> list[Figure]:
    """Create it, let one worker run it, and read its results."""
    with (
        Simulator(seconds=20) as simulator,
        tempfile.TemporaryDirectory() as name,
        _web(simulator, Path(name)) as (url, memory),
        _worker(simulator, Path(name)) as worker,
    ):
        sent = list(lines(COUNT, SIZE))
        # Two parts fit by our estimate, which counts whole lines; three do not by the provider's, of bodies.
        simulator.token_limit = 2 * PART * (SIZE + 70) // 4
        memory.reset()
        created = call(f"{url}?model={MODEL}", method="POST", kind="application/jsonl", body=_pieces(sent))
        create_peak = memory.peak()
        at = f"{url}/{created.json()['id']}"
        started = time.perf_counter()
        while (batch := call(at).json())["status"] not in ("completed", "failed"):
            time.sleep(0.5)
        ran = time.perf_counter() - started
        assert batch["request_counts"] == {"total": COUNT, "completed": COUNT, "failed": 0}, batch
        archived = _archived(Path(name), started)
        worker_peak = worker.peak()
        results = [_read(memory, at) for _ in range(3)]
        kept = memory.kept()
        run_parts = [part for part in simulator.batches if part.status == "completed"]
        refused = sum(part.status == "failed" for part in simulator.batches)
    assert sorted(len(part.requests) for part in run_parts if len(part.requests) > 3) == [PART] * (
        COUNT // PART
    )
    return [
        Figure(f"create of {COUNT:,} requests", "s", [created.seconds]),
        Figure(MEMORY, "MB", [create_peak]),
        Figure("  all parts run, by one worker", "s", [ran]),
        Figure("  results archived, too", "s", [archived]),
        Figure("  parts that had no room at first", "", [float(refused)]),
        Figure("  memory of the worker", "MB", [worker_peak]),
        Figure(f"results of {COUNT:,}", "s", [seconds for seconds, _, _ in results]),
        Figure("  first byte", "ms", [first * 1000 for _, first, _ in results]),
        Figure(MEMORY, "MB", [peak for _, _, peak in results], bar="<= 64 MB"),
        Figure("  memory that all this has left", "MB", [kept], bar="<= 64 MB"),
    ]


@contextmanager
def _web(simulator: Simulator, folder: Path) -> Iterator[tuple[str, Memory]]:
    app = f"tests.benchmarks.ours:create_app(part={PART})"
    with gunicorn(simulator, folder, "--workers=1", "--threads=4", "--timeout=600", app=app) as server:
        url = f"{server.url}/v1/batches"
        call(url, method="POST", body=json_body(3))
        yield url, Memory(*server.workers())


@contextmanager
def _worker(simulator: Simulator, folder: Path) -> Iterator[Memory]:
    environment = {
        **os.environ,
        "HOST_DATABASE": _database(folder),
        "HOST_PROVIDERS": json.dumps({"openai": simulator.settings}),
        "HOST_SPOOL": str(folder / "spool"),
    }
    app = f"tests.benchmarks.ours:create_app(part={PART})"
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", app, "llm-batches", "worker"], env=environment
    )
    try:
        while query(_database(folder), "SELECT COUNT(*) FROM llm_batches_worker") == [(0,)]:
            time.sleep(0.1)
        memory = Memory(process.pid)
        memory.reset()
        yield memory
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _archived(folder: Path, started: float) -> float:
    """Wait until the rows of all parts are in one archive, and return the seconds since the create."""
    waiting = "SELECT COUNT(*) FROM llm_batches_batch WHERE state = 'split' AND archived_at IS NULL"
    while query(_database(folder), waiting) != [(0,)]:
        time.sleep(0.5)
    return time.perf_counter() - started


def _read(memory: Memory, at: str) -> tuple[float, float, float]:
    """Read the results, check that every request has one, and return seconds, first byte and memory."""
    memory.reset()
    answer = call(f"{at}/results", accept="application/x-ndjson")
    peak = memory.peak()
    seen = bytearray(COUNT)
    for found in _ID.finditer(answer.body):
        seen[int(found[1])] += 1
    assert seen == b"\x01" * COUNT, "rows are missing, or are there twice"
    return answer.seconds, answer.first_byte, peak


def _pieces(sent: list[bytes]) -> Iterator[bytes]:
    for at in range(0, len(sent), _PIECE):
        yield b"\n".join(sent[at : at + _PIECE]) + b"\n"


def _database(folder: Path) -> str:
    return f"sqlite:///{folder / 'host.sqlite3'}"
