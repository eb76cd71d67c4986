"""The work that needs no caller: tasks and workers."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches import current_llm_batches
from flask_llm_batches.engines import thread
from flask_llm_batches.signals import batch_finished
from flask_llm_batches.store.leases import LEASE
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.databases import query, take_away
from tests.faults import create, go_wrong, states
from tests.hosts import KEYS, dispose

RETRIEVE = "GET /batches/"


def tick(app: Flask, database: str) -> int:
    """Let everything be due, and return the number of steps of a tick."""
    query(database, "UPDATE llm_batches_task SET due_at = 0")
    query(database, "UPDATE llm_batches_batch SET refreshed_at = 0")
    with app.app_context():
        return current_llm_batches.tick()


def tasks(database: str, columns: str = "step") -> list[tuple[object, ...]]:
    return [tuple(row) for row in query(database, f"SELECT {columns} FROM llm_batches_task ORDER BY id")]


def statuses(database: str) -> list[str]:
    return [status for (status,) in query(database, "SELECT status FROM llm_batches_batch ORDER BY id")]


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def retrieves(simulator: Simulator) -> int:
    return sum(call.method == "GET" and call.path.startswith("/batches/") for call in simulator.calls)


def is_alive(database: str, seconds_ago: int = 0) -> None:
    """Record a worker that was alive then."""
    seen_at = int(time.time()) - seconds_ago
    query(database, f"INSERT INTO llm_batches_worker (uid, seen_at) VALUES ('w', {seen_at})")


@contextmanager
def worker(
    database: str, simulator: Simulator, folder: Path, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command, and end it as a supervisor does."""
    environment = {
        **os.environ,
        "HOST_DATABASE": database,
        "HOST_PROVIDERS": json.dumps({"openai": simulator.settings}),
        "HOST_SPOOL": str(folder),
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    command = [
        sys.executable,
        "-m",
        "flask",
        "--app",
        "tests.hosts:logged()",
        "llm-batches",
        "worker",
        *options,
    ]
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert not KEYS.search((folder / "worker.log").read_text())


def test_a_tick_sees_a_batch_end(database_app: Flask, database_url: str, llm_provider: Simulator) -> None:
    """A batch is followed without a caller until it has ended, and is not retrieved after that."""
    create_batch(client_of(database_app, "ada"))
    assert tick(database_app, database_url) == 1
    assert tasks(database_url) == [("refresh",)]
    llm_provider.batches[0].finish()
    tick(database_app, database_url)
    assert statuses(database_url) == ["completed"]
    assert ("refresh",) not in tasks(database_url)
    calls = retrieves(llm_provider)
    tick(database_app, database_url)
    assert retrieves(llm_provider) == calls


def test_nothing_is_due_at_first(app: Flask, ada: FlaskClient) -> None:
    """A new batch is retrieved after some seconds."""
    create_batch(ada)
    with app.app_context():
        assert current_llm_batches.tick() == 0


def test_a_running_batch_is_retrieved_less_often_as_it_grows_older(
    app: Flask, ada: FlaskClient, tmp_path: Path
) -> None:
    """After a tenth of its age: seconds at first, five minutes at most."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    create_batch(ada)
    for age, wait in ((0, 2), (600, 60), (86_400, 300)):
        query(database, f"UPDATE llm_batches_batch SET created_at = {int(time.time()) - age}")
        tick(app, database)
        ((due_at,),) = query(database, "SELECT due_at FROM llm_batches_task")
        assert abs(due_at - time.time() - wait) < 3


def test_a_create_without_an_answer_is_settled_without_a_caller(
    database_app: Flask, database_url: str, llm_provider: Simulator
) -> None:
    """The worker looks for it at the provider, and follows it from then on."""
    go_wrong(llm_provider, "openai", done=True)
    create(client_of(database_app, "ada"), "openai")
    assert states(database_url) == ["unknown"]
    tick(database_app, database_url)
    assert states(database_url) == ["accepted"]
    assert tasks(database_url) == [("refresh",)]


def test_a_refused_create_leaves_no_task(
    database_app: Flask, database_url: str, llm_provider: Simulator
) -> None:
    """There is no batch to follow."""
    llm_provider.fail_next(400, on="POST /batches")
    create(client_of(database_app, "ada"), "openai")
    assert tasks(database_url) == []


def test_a_step_that_fails_backs_off(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is retried after seconds, then later and later; what goes well resets that, and others go on."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    create_batch(ada)
    create_batch(ada)
    for failures in (1, 2, 3):
        llm_provider.fail_next(500, on=RETRIEVE)
        assert tick(app, database) == 2
        found = sorted(int(str(row[0])) for row in tasks(database, "failures"))
        assert found[0] == 0
        assert found[1] <= failures
    assert any(record.levelno == logging.WARNING and "refresh" in record.message for record in caplog.records)
    tick(app, database)
    assert tasks(database, "failures") == [(0,), (0,)]


def test_a_lease_is_respected_until_it_ends(
    database_app: Flask, database_url: str, llm_provider: Simulator
) -> None:
    """What another worker does is left alone, and done again if that worker has died."""
    create_batch(client_of(database_app, "ada"))
    until = int(time.time()) + LEASE
    query(database_url, f"UPDATE llm_batches_task SET lease_token = 'other', lease_until = {until}")
    assert tick(database_app, database_url) == 0
    query(database_url, f"UPDATE llm_batches_task SET lease_until = lease_until - {LEASE}")
    assert tick(database_app, database_url) == 1
    assert tasks(database_url, "lease_token") == [(None,)]


def test_polls_are_answered_from_the_record_while_a_worker_is_alive(
    database_app: Flask, database_url: str, llm_provider: Simulator
) -> None:
    """Polls within two seconds share one call to the provider, whichever process they come to."""
    ada = client_of(database_app, "ada")
    batch_id = create_batch(ada)
    is_alive(database_url)
    before = retrieves(llm_provider)
    for _ in range(5):
        assert ada.get(f"/v1/batches/{batch_id}").get_json()["id"] == batch_id
    assert retrieves(llm_provider) - before <= 1 + 1  # a second may pass on a busy machine


@pytest.mark.parametrize("alive", [False, True])
def test_without_a_worker_every_poll_shows_what_the_provider_has(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, tmp_path: Path, *, alive: bool
) -> None:
    """Also where the last one died a while ago."""
    if alive:
        is_alive(f"sqlite:///{tmp_path / 'host.sqlite3'}", seconds_ago=60)
    batch_id = create_batch(ada)
    before = retrieves(llm_provider)
    for _ in range(3):
        ada.get(f"/v1/batches/{batch_id}")
    assert retrieves(llm_provider) - before == 3


def test_the_tick_command_says_how_much_it_did(app: Flask, ada: FlaskClient, tmp_path: Path) -> None:
    """It is for cron."""
    create_batch(ada)
    query(f"sqlite:///{tmp_path / 'host.sqlite3'}", "UPDATE llm_batches_task SET due_at = 0")
    result = app.test_cli_runner().invoke(args=["llm-batches", "tick", "--budget", "5"])
    assert (result.exit_code, result.output) == (0, "1 steps\n")
    result = app.test_cli_runner().invoke(args=["llm-batches", "tick"])
    assert (result.exit_code, result.output) == (0, "0 steps\n")


def test_a_worker_ends_within_its_step(
    database_app: Flask, database_url: str, llm_provider: Simulator, tmp_path: Path
) -> None:
    """On SIGTERM it finishes what it does, and is recorded as gone; one line of its log is one step."""
    batch_id = create_batch(client_of(database_app, "ada"))
    llm_provider.delay_next(2, on=RETRIEVE)
    with worker(database_url, llm_provider, tmp_path) as process:
        eventually(lambda: bool(query(database_url, "SELECT uid FROM llm_batches_worker")))
        eventually(lambda: retrieves(llm_provider) > 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert query(database_url, "SELECT uid FROM llm_batches_worker") == []
    assert tasks(database_url, "step, failures, lease_until") == [("refresh", 0, None)]
    lines = [line for line in (tmp_path / "worker.log").read_text().splitlines() if "refresh" in line]
    assert lines == [f"INFO flask_llm_batches.core.worker.tick refresh {batch_id!r} at 'openai': in_progress"]


@pytest.mark.slow
def test_a_killed_worker_is_replaced(
    database_app: Flask, database_url: str, llm_provider: Simulator, tmp_path: Path
) -> None:
    """What it was doing is done by another one when its lease has ended."""
    create_batch(client_of(database_app, "ada"))
    llm_provider.delay_next(60, on=RETRIEVE)
    with worker(database_url, llm_provider, tmp_path) as process:
        eventually(lambda: retrieves(llm_provider) > 0)
        process.kill()
        process.wait(20)
    llm_provider.batches[0].finish()
    with worker(database_url, llm_provider, tmp_path):
        eventually(lambda: statuses(database_url) == ["completed"], 2 * LEASE)


def test_a_worker_runs_in_the_web_process_if_asked(
    make_host: MakeHost, llm_provider: Simulator, tmp_path: Path
) -> None:
    """``LLM_BATCHES_WORKER = "thread"`` needs no other process: it begins with the first request."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    app = make_host(database=database, worker="thread")
    create_batch(client_of(app, "ada"))
    llm_provider.batches[0].finish()
    try:
        eventually(lambda: statuses(database) == ["completed"])
    finally:
        thread.stop(app)
    assert query(database, "SELECT uid FROM llm_batches_worker") == []


def test_no_receiver_ends_a_worker(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> None:
    """Regression: each receiver of a signal that called ``exit`` ended a thread, until none was left."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    app = make_host(database=database, worker="thread")

    def leave(_app: Flask, **_: object) -> None:
        raise SystemExit

    with batch_finished.connected_to(leave):
        try:
            for number in range(2):
                create_batch(client_of(app, "ada"))
                llm_provider.batches[number].finish()
                eventually(lambda: set(statuses(database)) == {"completed"})
        finally:
            thread.stop(app)


@pytest.mark.slow
def test_a_worker_outlives_what_is_away(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """It goes on when its database and its provider are there again, and does what was due meanwhile."""
    file = tmp_path / "host.sqlite3"
    database, log = f"sqlite:///{file}", tmp_path / "worker.log"
    create_batch(ada)
    dispose(app)
    llm_provider.batches[0].finish()
    for _ in range(2):
        llm_provider.drop_next(on=RETRIEVE)
    with worker(database, llm_provider, tmp_path) as process:
        eventually(lambda: "refresh" in log.read_text())
        kept = file.read_bytes()
        take_away(database)
        eventually(lambda: log.read_text().count("the record of batches is unavailable") > 2)
        file.write_bytes(kept)
        eventually(lambda: statuses(database) == ["completed"], 60)
        assert process.poll() is None


def test_a_look_that_fails_is_no_refresh(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """Regression: with a worker, polls of a provider that is down were a 502 and a stale 200 in turns."""
    batch_id = create_batch(ada)
    with app.app_context():
        current_llm_batches._runner.seen("worker")
    for _ in range(3):
        llm_provider.fail_next(500, on=f"GET /batches/{batch_id}")
        assert ada.get(f"/v1/batches/{batch_id}").status_code == 502
    assert ada.get(f"/v1/batches/{batch_id}").status_code == 200
