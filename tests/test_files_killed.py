"""Processes that are killed while they upload, submit or read files lose nothing, and do nothing twice."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from sqlalchemy import Select, select

from flask_llm_batches.store.leases import LEASE
from flask_llm_batches.store.models import FileRow, ObjectRow
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import WINDOW, reconcile, time_passes
from tests.hosts import requests
from tests.servers import gunicorn
from tests.test_killed import ROUNDS

pytestmark = pytest.mark.slow

logger = logging.getLogger(__name__)

CONTENT = b"\n".join(
    json.dumps({**request, "body": {**request["body"], "model": "m"}}).encode() for request in requests(200)
)
DAY = 24 * 3600


class Program:
    """A program for OpenAI: it uploads, creates, polls and reads, each until it has an answer."""

    def __init__(self, url: str, name: int, stopped: threading.Event) -> None:
        self.created: dict[str, str] = {}
        self.wrong: Counter[str] = Counter()
        self.read = 0
        self._name = name
        self._stopped = stopped
        self._http = httpx.Client(base_url=url, headers={"X-User": "ada"}, timeout=30)

    def run(self) -> None:
        number = 0
        with self._http:
            while not self._stopped.is_set():
                self._batch(f"{self._name}-{number}")
                number += 1

    def _batch(self, key: str) -> None:
        form = {"files": {"file": ("in.jsonl", CONTENT)}, "data": {"purpose": "batch"}}
        file = self._ask("POST", "/v1/files", **form)
        made = {
            "input_file_id": file.get("id"),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"key": key},
        }
        batch = self._ask("POST", "/v1/batches", json=made, headers={"Idempotency-Key": key})
        if not batch:
            return
        self.created[key] = batch["id"]
        for _ in range(20):
            batch = self._ask("GET", f"/v1/batches/{self.created[key]}")
            if batch.get("status") == "completed":
                self._read(batch["output_file_id"])
                return
            self._stopped.wait(0.1)

    def _read(self, file_id: str) -> None:
        with suppress(httpx.TransportError):
            answer = self._http.get(f"/v1/files/{file_id}/content")
            rows = [json.loads(line)["custom_id"] for line in answer.text.splitlines()]
            if answer.status_code == 200:
                self.read += 1
                if Counter(rows) != Counter(f"r{number}" for number in range(200)):
                    self.wrong["rows that are not those of the file"] += 1

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        """Repeat a call until it is answered."""
        while not self._stopped.is_set():
            with suppress(httpx.TransportError):
                answer = self._http.request(method, path, **options)
                if answer.status_code == 200:
                    return answer.json()
                if answer.status_code not in (409, 502, 503):
                    self.wrong[f"{method} {path.partition('/batch_')[0]} {answer.status_code}"] += 1
            self._stopped.wait(0.05)
        return {}


def rows_of(app: Flask, statement: Select[Any]) -> list[Any]:
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        return list(connection.scalars(statement))


def test_files_killed_at_random(
    make_host: MakeHost, llm_provider: Simulator, database_url: str, tmp_path: Path
) -> None:
    """Web processes die at any moment: a batch that was answered is made once, or failed with the reason."""
    stopped, chance = threading.Event(), random.Random(4)
    llm_provider.seconds = 0
    options = ["--preload", "--workers=2", "--threads=4", "--log-level=critical"]
    with (
        gunicorn(
            llm_provider, tmp_path, *options, app="tests.killed:ready()", database=database_url
        ) as server,
        ThreadPoolExecutor(6) as threads,
    ):
        programs = [Program(server.url, name, stopped) for name in range(6)]
        running = [threads.submit(program.run) for program in programs]
        try:
            for _ in range(ROUNDS):
                time.sleep(chance.uniform(0.05, 1))
                if workers := server.workers():
                    os.kill(chance.choice(workers), signal.SIGKILL)
        finally:
            stopped.set()
        for one in running:
            one.result()
    app = make_host(database=database_url)
    ada = client_of(app, "ada")
    time_passes(database_url, LEASE)
    query(database_url, f"UPDATE llm_batches_task SET due_at = due_at - {DAY}, lease_until = NULL")
    created = {key: batch_id for program in programs for key, batch_id in program.created.items()}
    for batch_id in created.values():
        ada.get(f"/v1/batches/{batch_id}")
    time_passes(database_url, WINDOW + LEASE)
    assert reconcile(app).endswith(" 0 still unknown")
    keys = Counter((batch.metadata or {})["key"] for batch in llm_provider.batches)
    states: Counter[str] = Counter()
    for key, batch_id in created.items():
        batch = ada.get(f"/v1/batches/{batch_id}").get_json()
        states[batch["status"]] += 1
        if batch["status"] == "failed":
            assert batch["errors"]["data"][0]["code"] == "not_created"
            assert key not in keys
        else:
            rows = ada.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
            assert len(rows) == 200
            assert keys[key] == 1
    query(database_url, f"UPDATE llm_batches_file SET expires_at = expires_at - {DAY} WHERE bytes IS NULL")
    query(database_url, f"UPDATE llm_batches_object SET touched_at = touched_at - {DAY}")
    reconcile(app)
    unfinished = rows_of(app, select(FileRow.uid).where(FileRow.bytes.is_(None), FileRow.batch_uid.is_(None)))
    files = rows_of(app, select(FileRow.uid).where(FileRow.batch_uid.is_(None)))
    keys_of_objects = rows_of(app, select(ObjectRow.key))
    wrong = sum((program.wrong for program in programs), Counter[str]())
    logger.warning(
        "%d kills, %d batches answered, %d at the provider, %d read, %s; wrong: %s; left: %s %s",
        *(ROUNDS, len(created), len(llm_provider.batches), sum(program.read for program in programs)),
        *(dict(states), dict(wrong), len(unfinished), len(keys_of_objects) - len(files)),
    )
    assert not wrong
    assert set(keys.values()) == {1}
    assert not unfinished
    assert set(keys_of_objects) == {f"files/{uid}" for uid in files}
