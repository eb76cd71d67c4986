"""Web processes and workers that are killed submit no part twice, and lose no row."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from flask.testing import FlaskClient

from flask_llm_batches import current_llm_batches
from flask_llm_batches.providers.adapters.openai import OpenAIAdapter
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import WINDOW, reconcile, time_passes
from tests.hosts import requests
from tests.killed import SMALL
from tests.servers import gunicorn
from tests.test_killed import ROUNDS

pytestmark = pytest.mark.slow

logger = logging.getLogger(__name__)

COUNT = 5 * SMALL - 3
KILLS = ROUNDS // 2


class Worker:
    """A worker that is started again whenever it was killed."""

    def __init__(self, database: str, simulator: Simulator, folder: Path) -> None:
        self._environment = {
            **os.environ,
            "HOST_DATABASE": database,
            "HOST_PROVIDERS": json.dumps({"openai": simulator.settings}),
            "HOST_SPOOL": str(folder / "spool"),
        }
        self._log = (folder / "worker.log").open("ab")
        self.start()

    def start(self) -> None:
        command = ["-m", "flask", "--app", "tests.killed:parted()", "llm-batches", "worker"]
        self.process = subprocess.Popen(
            [sys.executable, *command], env=self._environment, stdout=self._log, stderr=subprocess.STDOUT
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self.start()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(30)
        self._log.close()


@contextmanager
def worker(database: str, simulator: Simulator, folder: Path) -> Iterator[Worker]:
    working = Worker(database, simulator, folder)
    try:
        yield working
    finally:
        working.stop()


def named(key: str) -> list[dict[str, object]]:
    """Return requests whose ids are those of no other batch."""
    return [one | {"custom_id": f"{key}-{one['custom_id']}"} for one in requests(COUNT)]


def create(url: str, name: int, stopped: threading.Event) -> dict[str, str]:
    """Create batches until the end, each until it is answered, and return their ids."""
    made: dict[str, str] = {}
    number = 0
    with httpx.Client(base_url=url, headers={"X-User": "ada"}, timeout=30) as http:
        while not stopped.is_set():
            key = f"{name}-{number}"
            body = {"model": "openai:m", "requests": named(key), "retries": number % 2}
            with suppress(httpx.TransportError):
                answer = http.post("/v1/batches", json=body, headers={"Idempotency-Key": key})
                assert answer.status_code in (200, 409, 502, 503), answer.text
                if answer.status_code == 200:
                    made[key] = answer.json()["id"]
                    number += 1
            stopped.wait(8)
    return made


def finished(ada: FlaskClient, database: str, batch_ids: list[str]) -> list[str]:
    """Work until batches have ended, and return their statuses."""
    for _ in range(400):
        query(database, "UPDATE llm_batches_task SET due_at = 0, lease_until = NULL")
        query(database, "UPDATE llm_batches_lane SET refused_until = NULL, lease_until = NULL")
        with ada.application.app_context():
            current_llm_batches.tick()
        waiting = "SELECT COUNT(*) FROM llm_batches_batch WHERE state = 'split' AND status <> 'completed'"
        if query(database, waiting) == [(0,)]:
            break
    return [ada.get(f"/v1/batches/{batch_id}").get_json()["status"] for batch_id in batch_ids]


def test_parts_killed_at_random(
    make_host: MakeHost,
    llm_provider: Simulator,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever dies at whatever moment, every request of every batch runs once, and has its row."""
    stopped, chance = threading.Event(), random.Random(5)
    llm_provider.seconds = 5
    llm_provider.token_limit = 700  # two parts at once
    options = ["--preload", "--workers=2", "--threads=4", "--log-level=critical"]
    with (
        gunicorn(
            llm_provider, tmp_path, *options, app="tests.killed:parted()", database=database_url
        ) as server,
        worker(database_url, llm_provider, tmp_path) as working,
        ThreadPoolExecutor(2) as threads,
    ):
        creating = [threads.submit(create, server.url, name, stopped) for name in range(2)]
        try:
            for number in range(KILLS):
                time.sleep(chance.uniform(0.5, 5))  # a worker needs two seconds to begin
                if number % 2:
                    working.kill()
                elif workers := server.workers():
                    os.kill(chance.choice(workers), signal.SIGKILL)
        finally:
            stopped.set()
        made = {key: batch_id for one in creating for key, batch_id in one.result().items()}
    monkeypatch.setattr(OpenAIAdapter, "max_requests", SMALL)
    llm_provider.seconds = 0
    app = make_host(database=database_url)
    ada = client_of(app, "ada")
    time_passes(database_url, WINDOW + 60)
    assert reconcile(app).endswith(" 0 still unknown")
    statuses = Counter(finished(ada, database_url, list(made.values())))
    ran = Counter(
        line["custom_id"]
        for batch in llm_provider.batches
        if batch.status != "failed"
        for line in batch.requests
    )
    lost = wrong = 0
    for key, batch_id in made.items():
        rows = ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]
        expected = Counter(str(one["custom_id"]) for one in named(key))
        lost += Counter(row["custom_id"] for row in rows if row["error"] is None) != expected
        wrong += any(ran[name] != 1 for name in expected)
    logger.warning(
        "%d kills, %d batches of %d requests, %s, %d parts at the provider, of which %d had no room; "
        "batches with lost rows: %d, with requests that did not run exactly once: %d",
        *(KILLS, len(made), COUNT, dict(statuses), len(llm_provider.batches)),
        *(sum(batch.status == "failed" for batch in llm_provider.batches), lost, wrong),
    )
    assert made
    assert set(statuses) == {"completed"}
    assert (lost, wrong, max(ran.values())) == (0, 0, 1)
