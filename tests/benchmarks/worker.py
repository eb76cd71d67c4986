"""What a worker does: results from the archive, rows into a table, and many batches that run."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flask import Flask
from sqlalchemy import Engine, event

from flask_llm_batches import Batch, DeliveredRow, LLMBatches, current_llm_batches
from flask_llm_batches.core.worker.deliver import GROUP
from flask_llm_batches.testing import Simulator
from tests.benchmarks.bulk import COUNT, MEMORY, ROUNDS, fetched, in_turns, peaks, seconds_of
from tests.benchmarks.measure import Figure, Memory
from tests.benchmarks.servers import ours
from tests.databases import KINDS, database, query
from tests.hosts import create_host, dispose, requests

DELIVERED = 20_000
RUNNING = 5_000


def bench_archive(simulator: Simulator) -> list[Figure]:
    """Fetch 50,000 results from the archive, and from the provider."""
    with tempfile.TemporaryDirectory() as folder, ours(simulator, Path(folder)) as our:
        archived = [our.create(COUNT) for _ in range(ROUNDS)]
        host = create_host(database=Path(folder) / "host.sqlite3", providers={"openai": simulator.settings})
        query(_url(folder), "UPDATE llm_batches_task SET due_at = 0")
        with host.app_context():
            current_llm_batches.tick()
        dispose(host)
        there = query(_url(folder), "SELECT COUNT(*) FROM llm_batches_batch WHERE archived_at IS NOT NULL")
        assert there[0][0] >= ROUNDS, there
        others = [our.create(COUNT) for _ in range(ROUNDS)]
        mine, alone = in_turns(
            (lambda: fetched(our, our.at(archived.pop(), "/results"), COUNT), ROUNDS),
            (lambda: fetched(our, our.at(others.pop(), "/results"), COUNT), ROUNDS),
        )
    beside = ("the provider", statistics.median(seconds_of(alone)))
    return [
        Figure(f"archived results of {COUNT:,}", "s", seconds_of(mine), beside=beside, bar="<= 1 x provider"),
        Figure("  first byte", "ms", [one.first_byte * 1000 for one in mine]),
        Figure(MEMORY, "MB", peaks(mine), bar="<= 32 MB"),
    ]


def bench_delivery(simulator: Simulator) -> list[Figure]:
    """Deliver rows to a handler that updates a row for each, and do the same updates in a plain loop."""
    kind = "postgresql" if "TEST_POSTGRES_URL" in os.environ else KINDS[0]
    delivered, plain = [], []
    with tempfile.TemporaryDirectory() as folder, database(kind, Path(folder)) as url:
        for _ in range(ROUNDS):
            delivered.append(DELIVERED / _deliver(simulator, url, folder))
            plain.append(DELIVERED / _plain_loop(url, folder))
            query(url, "DROP TABLE label")
    beside = ("plain loop", statistics.median(plain))
    return [
        Figure(f"delivered rows, {kind}", "/s", delivered, beside=beside, bar=">= 0.8 x plain loop"),
    ]


def _host(url: str, folder: str, simulator: Simulator | None = None) -> tuple[Flask, Callable[..., None]]:
    """Make a host with a table of labels, and what updates rows of it."""
    from flask_sqlalchemy import SQLAlchemy

    db = SQLAlchemy()
    app = Flask("host", instance_path=folder)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    if simulator is not None:
        app.config["LLM_BATCHES_PROVIDERS"] = {"openai": simulator.settings}
    db.init_app(app)
    extension = LLMBatches(db=db)
    extension.init_app(app)
    labels = db.Table("label", db.Column("id", db.String(20), primary_key=True), db.Column("text", db.Text))

    @extension.on_results("label")
    def label(rows: Sequence[DeliveredRow], _batch: Batch | None = None) -> None:
        for row in rows:
            db.session.execute(labels.update().where(labels.c.id == row.custom_id).values(text=row.text))

    with app.app_context():
        db.create_all()
        if db.session.execute(db.select(db.func.count()).select_from(labels)).scalar_one() == 0:
            numbered = [{"id": f"r{number}", "text": None} for number in range(DELIVERED)]
            db.session.execute(labels.insert(), numbered)
            db.session.commit()
    return app, label


def _deliver(simulator: Simulator, url: str, folder: str) -> float:
    app, _ = _host(url, folder, simulator)
    with app.app_context():
        current_llm_batches.create(
            owner="o", model="openai:m", requests=requests(DELIVERED), on_results="label"
        )
        while query(url, "SELECT COUNT(*) FROM llm_batches_task WHERE step = 'deliver'") == [(0,)]:
            query(url, "UPDATE llm_batches_task SET due_at = 0 WHERE step = 'refresh'")
            current_llm_batches.tick(budget=0)
        started = time.perf_counter()
        current_llm_batches.tick()
        took = time.perf_counter() - started
    dispose(app)
    assert query(url, "SELECT COUNT(*) FROM label WHERE text IS NOT NULL") == [(DELIVERED,)]
    return took


def _plain_loop(url: str, folder: str) -> float:
    app, label = _host(url, folder)
    rows = [
        DeliveredRow(f"r{number}", {"choices": [{"message": {"content": "x" * 200}}]}, None, "")
        for number in range(DELIVERED)
    ]
    with app.app_context():
        db = app.extensions["sqlalchemy"]
        started = time.perf_counter()
        for start in range(0, DELIVERED, GROUP):
            label(rows[start : start + GROUP])
            db.session.commit()
        took = time.perf_counter() - started
    dispose(app)
    return took


def bench_running(simulator: Simulator) -> list[Figure]:
    """Follow 5,000 batches that run and are an hour old: each is due again after 5 minutes."""
    statements, took = 0, 0.0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "host.sqlite3"
        app = create_host(database=path, providers={"openai": simulator.settings})
        with app.app_context():
            for _ in range(RUNNING):
                current_llm_batches.create(
                    owner="o", model="openai:m", requests=requests(1), metadata={"state": "in_progress"}
                )
        hour_ago = int(time.time()) - 3600
        query(_url(folder), f"UPDATE llm_batches_batch SET created_at = {hour_ago}")
        query(_url(folder), "UPDATE llm_batches_task SET due_at = 0")
        memory, stop = Memory(os.getpid()), threading.Event()
        memory.reset()
        event.listen(Engine, "before_cursor_execute", count)
        with app.app_context():
            work = threading.Thread(target=lambda: _work(app, stop), name="worker")
            started = time.perf_counter()
            work.start()
            while query(_url(folder), "SELECT COUNT(*) FROM llm_batches_task WHERE due_at = 0") != [(0,)]:
                time.sleep(0.5)
            took = time.perf_counter() - started
            stop.set()
            work.join()
        event.remove(Engine, "before_cursor_execute", count)
        dispose(app)
    return [
        Figure(f"a pass over {RUNNING:,} running", "s", [took], bar="<= 300 s"),
        Figure("  statements for each", "", [statements / RUNNING]),
        Figure(MEMORY, "MB", [memory.peak()], bar="<= 32 MB"),
    ]


def _work(app: Flask, stop: threading.Event) -> None:
    with app.app_context():
        current_llm_batches.work(stop, concurrency=4)


def _url(folder: str) -> str:
    return f"sqlite:///{Path(folder) / 'host.sqlite3'}"
