"""Processes that are killed in the middle of creates lose nothing, and do nothing twice."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from flask_llm_batches.store.leases import LEASE
from flask_llm_batches.testing import Simulator
from tests.chaos import Chaos
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import STILL_UNKNOWN, WINDOW, own_ids, reconcile, time_passes
from tests.hosts import requests
from tests.killed import POINTS, body
from tests.servers import gunicorn

pytestmark = pytest.mark.slow

logger = logging.getLogger(__name__)

ROUNDS = int(os.environ.get("TEST_KILL_ROUNDS", "30"))

HELD = "while the provider answers"


def accepted(database: str) -> list[str]:
    """Return the provider's ids of the batches that are recorded as accepted."""
    return [
        batch_id
        for (batch_id,) in query(database, "SELECT batch_id FROM llm_batches_batch WHERE state = 'accepted'")
    ]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("point", [*POINTS, HELD])
def test_killed_anywhere(
    make_host: MakeHost,
    llm_provider: Simulator,
    spool_dir: Path,
    tmp_path: Path,
    point: str,
    provider: str,
) -> None:
    """Wherever a create is killed, its batch is found or there is none, and sent again it is one batch.

    Anthropic cannot tell which batch it is, so there somebody must.
    """
    database, model = f"sqlite:///{tmp_path / 'host.sqlite3'}", f"{provider}:m"
    app = make_host(database=database, providers=llm_provider.providers)
    environment = {
        **os.environ,
        "HOST_DATABASE": database,
        "HOST_PROVIDERS": json.dumps(llm_provider.providers),
        "HOST_SPOOL": str(spool_dir),
    }
    if point == HELD:
        llm_provider.delay_next(60, on=f"POST {'' if provider == 'openai' else '/messages'}/batches", after=0)
    command = [sys.executable, "-m", "tests.killed", "never" if point == HELD else point, model]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        while point == HELD and not llm_provider.batches:
            time.sleep(0.05)
        if point == HELD:
            process.kill()
        process.communicate(timeout=60)
    assert process.returncode == (0 if point == "never" else -signal.SIGKILL)
    there = [batch.id for batch in llm_provider.batches]
    assert len(there) == (list(POINTS).index("after the create") <= [*POINTS, HELD].index(point))

    ada = client_of(app, "ada")
    ask = {"path": "/v1/batches", "json": body(model), "headers": {"Idempotency-Key": "k"}}
    if point not in ("before the intent", "in the intent"):
        answer = ada.post(**ask)
        assert answer.status_code == (200 if accepted(database) else 409)
    time_passes(database, WINDOW + LEASE)
    said = reconcile(app)
    if there and provider == "anthropic" and not accepted(database):
        assert said == STILL_UNKNOWN
        assert ada.post(**ask).status_code == 409
        (own,) = own_ids(database)
        assert ada.get(f"/v1/batches/{own}").get_json()["status"] == "validating"
        reconcile(app, "--adopt", f"{own.removeprefix('batch_')}={there[0]}")
    assert accepted(database) == there
    again = ada.post(**ask)
    assert (again.status_code, again.headers.get("Idempotent-Replayed")) == (200, "true" if there else None)
    assert [batch.id for batch in llm_provider.batches] == [again.get_json()["id"]] == accepted(database)
    listed = ada.get("/v1/batches").get_json()["data"]
    assert [batch["id"] for batch in listed if batch["status"] != "failed"] == accepted(database)
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert used["batches"] == 1


def test_workers_killed_at_random(
    make_host: MakeHost, llm_provider: Simulator, database_url: str, tmp_path: Path
) -> None:
    """Workers die while eight clients create: every batch has one record, every answer and key one batch."""
    answered: dict[str, str] = {}
    asked: set[str] = set()
    stopped = threading.Event()
    chance = random.Random(1)

    def create(http: httpx.Client, key: str) -> httpx.Response:
        asked.add(key)
        made = {"model": "openai:m", "requests": requests(2), "metadata": {"key": key}}
        return http.post("/v1/batches", json=made, headers={"Idempotency-Key": key})

    def client(name: int) -> None:
        number = 0
        with httpx.Client(base_url=server.url, headers={"X-User": "ada"}, timeout=30) as http:
            while not stopped.is_set():
                key = f"{name}-{number // 2}"  # each is asked for twice
                with suppress(httpx.TransportError):
                    answer = create(http, key)
                    assert answer.status_code in (200, 409, 502, 503), answer.text
                    if answer.status_code == 200:
                        assert answered.setdefault(key, answer.json()["id"]) == answer.json()["id"]
                number += 1
                stopped.wait(0.05)

    options = ["--preload", "--workers=2", "--threads=4", "--log-level=critical"]
    with (
        gunicorn(
            llm_provider, tmp_path, *options, app="tests.killed:ready()", database=database_url
        ) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        running = [clients.submit(client, name) for name in range(8)]
        try:
            for _ in range(ROUNDS):
                time.sleep(chance.uniform(0.05, 1))
                if workers := server.workers():
                    os.kill(chance.choice(workers), signal.SIGKILL)
        finally:
            stopped.set()
        for one in running:
            one.result()
    spooled = list(server.spool.iterdir())
    unsettled = query(database_url, "SELECT state FROM llm_batches_batch WHERE state <> 'accepted'")
    app = make_host(database=database_url)
    time_passes(database_url, WINDOW + LEASE)
    assert reconcile(app).endswith(" 0 still unknown")
    there = Counter(batch.id for batch in llm_provider.batches)
    known = Counter(accepted(database_url))
    keys = Counter((batch.metadata or {})["key"] for batch in llm_provider.batches)
    states = Counter(query(database_url, "SELECT state FROM llm_batches_batch"))
    logger.warning(
        "%d rounds, %d keys, %d batches at the provider, records before %s and after %s; "
        "orphans %d, doubles %d, keys with two batches %d; %d files left in the spool",
        *(ROUNDS, len(asked), there.total(), Counter(unsettled), states),
        *(len(there - known), len(known - there), len([key for key in keys if keys[key] > 1])),
        len(spooled),
    )
    assert known == there
    assert set(answered.values()) <= known.keys()
    assert unsettled, "nobody was killed at a bad time"
    assert set(keys.values()) == {1}
    ada = client_of(app, "ada")
    for key in list(asked - answered.keys())[:50]:
        made = {"model": "openai:m", "requests": requests(2), "metadata": {"key": key}}
        again = ada.post("/v1/batches", json=made, headers={"Idempotency-Key": key})
        assert (again.status_code, again.headers.get("Idempotent-Replayed") == "true") == (200, key in keys)


ENDED = "cancel", 400  # the provider refuses to cancel a batch that has ended


class Caller:
    """A client that creates, follows, cancels and reads batches, and notes every answer that is wrong."""

    def __init__(self, url: str, name: int, wrong: Counter[str], answered: dict[str, str]) -> None:
        self._http = httpx.Client(base_url=url, headers={"X-User": "ada"}, timeout=30)
        self._name = name
        self._wrong = wrong
        self._answered = answered
        self._chance = random.Random(name)

    def run(self, stopped: threading.Event, asked: set[str]) -> None:
        with self._http:
            number = 0
            while not stopped.is_set():
                key = f"{self._name}-{number // 2}"  # each is asked for twice
                asked.add(key)
                with suppress(httpx.TransportError):
                    self._create(key)
                with suppress(httpx.TransportError):
                    self._follow(f"{self._name}-{self._chance.randint(max(0, number // 2 - 9), number // 2)}")
                number += 1
                stopped.wait(0.02)

    def _create(self, key: str) -> None:
        body = {"model": "openai:m", "requests": requests(2), "metadata": {"key": key}}
        answer = self._http.post("/v1/batches", json=body, headers={"Idempotency-Key": key})
        if answer.status_code == 200:
            batch_id = answer.json()["id"]
            if self._answered.setdefault(key, batch_id) != batch_id:
                self._wrong["another batch for the same key"] += 1
        elif answer.status_code not in (409, 429, 502, 503, 504):
            self._wrong[f"create {answer.status_code}"] += 1

    def _follow(self, key: str) -> None:
        batch_id = self._answered.get(key)
        if batch_id is None:
            return
        path = f"/v1/batches/{batch_id}"
        do = self._chance.choice(("retrieve", "retrieve", "list", "cancel", "results", "results"))
        if do == "cancel" and self._chance.random() > 0.3:
            do = "retrieve"
        if do == "results":
            self._read(path)
            return
        answer = {
            "retrieve": lambda: self._http.get(path),
            "list": lambda: self._http.get("/v1/batches"),
            "cancel": lambda: self._http.post(f"{path}/cancel"),
        }[do]()
        if (
            answer.status_code not in (200, 404, 409, 429, 502, 503, 504)
            and (do, answer.status_code) != ENDED
        ):
            self._wrong[f"{do} {answer.status_code}"] += 1

    def _read(self, path: str) -> None:
        answer = self._http.get(f"{path}/results")
        if answer.status_code == 200:
            for problem in wrong_rows(answer.json()["results"], may_be_damaged=True):
                self._wrong[problem] += 1
        elif answer.status_code not in (404, 409, 429, 502, 503, 504):
            self._wrong[f"results {answer.status_code}"] += 1


def wrong_rows(rows: list[dict[str, Any]], *, may_be_damaged: bool = False) -> list[str]:
    """Return what is wrong with the rows of a batch of two requests."""
    if sorted(row["custom_id"] for row in rows) != ["r0", "r1"]:
        return ["rows that are not those of the requests"]
    fine = {"batch_cancelled"} | ({"unreadable"} if may_be_damaged else set())
    return [
        f"row {row['error'] and row['error']['code']}"
        for row in rows
        if (
            row["error"]["code"] not in fine
            if row["error"]
            else row["custom_id"][1] not in str(row["result"])
        )
    ]


def test_workers_killed_while_the_provider_does_everything_wrong(
    make_host: MakeHost, llm_provider: Simulator, database_url: str, tmp_path: Path
) -> None:
    """Whatever goes wrong at once, no batch is lost, made twice, made up or stuck, and no answer is wrong."""
    wrong: Counter[str] = Counter()
    answered: dict[str, str] = {}
    asked: set[str] = set()
    stopped = threading.Event()
    chance, chaos, kills = random.Random(2), Chaos(llm_provider, 3), 0
    llm_provider.seconds = 0.5
    options = ["--preload", "--workers=2", "--threads=8", "--log-level=critical"]
    with (
        gunicorn(
            llm_provider, tmp_path, *options, app="tests.killed:impatient()", database=database_url
        ) as server,
        ThreadPoolExecutor(8) as clients,
    ):
        chaos.start()
        running = [
            clients.submit(Caller(server.url, name, wrong, answered).run, stopped, asked) for name in range(8)
        ]
        try:
            while kills < ROUNDS:
                time.sleep(chance.uniform(0.05, 1))
                if workers := server.workers():
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills += 1
        finally:
            stopped.set()
        for one in running:
            one.result()
    chaos.stop()
    app = make_host(database=database_url)
    time_passes(database_url, WINDOW + LEASE)
    reconcile(app)
    ada = client_of(app, "ada")
    there = Counter(batch.id for batch in llm_provider.batches)
    known = Counter(accepted(database_url))
    keys = Counter((batch.metadata or {})["key"] for batch in llm_provider.batches)
    states = Counter(state for (state,) in query(database_url, "SELECT state FROM llm_batches_batch"))
    for batch in llm_provider.batches:
        if batch.status not in ("completed", "cancelled"):
            batch.finish()
    for key in asked:
        body = {"model": "openai:m", "requests": requests(2), "metadata": {"key": key}}
        again = ada.post("/v1/batches", json=body, headers={"Idempotency-Key": key})
        if again.status_code != 200 or (key in keys) != ("Idempotent-Replayed" in again.headers):
            wrong[f"a key that is stuck: {again.status_code}"] += 1
        elif answered.get(key, again.get_json()["id"]) != again.get_json()["id"]:
            wrong["another batch for the same key"] += 1
    for batch_id in known:
        answer = ada.get(f"/v1/batches/{batch_id}/results")
        problems = wrong_rows(answer.get_json()["results"]) if answer.status_code == 200 else [answer.text]
        wrong.update(problems)
    counts = {
        "orphans": len(there - known),
        "doubles": sum(count > 1 for count in keys.values()),
        "phantoms": len(known - there),
        "stuck": states.total() - states["accepted"] - states["failed"],
        "wrong answers": wrong.total(),
    }
    logger.warning(
        "%d kills, %d faults of %d kinds %s, %d keys, %d batches at the provider: %s %s",
        *(kills, chaos.counts.total(), len(chaos.counts), dict(chaos.counts), len(asked), there.total()),
        *(counts, dict(wrong)),
    )
    assert len(chaos.counts) >= 8
    assert counts == dict.fromkeys(counts, 0), wrong
