"""Workers that are killed at random lose no row, no usage and no webhook, and deliver nothing twice."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from flask_llm_batches import current_llm_batches
from flask_llm_batches.testing import Simulator
from tests.databases import query
from tests.delivering import EVERY, create_app
from tests.hosts import dispose, requests
from tests.test_webhooks import running_target

pytestmark = pytest.mark.slow

logger = logging.getLogger(__name__)

KILLS = int(os.environ.get("TEST_WORKER_KILLS", "6"))
BATCHES, ROWS = (40, 2500) if KILLS >= 100 else (4, 500)
WORKERS = 3


@pytest.mark.parametrize("refuses", [False, True], ids=["all taken", "one in 100 refused"])
def test_workers_killed_at_random(
    database_url: str, llm_provider: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """Every row is applied once or set aside, every usage is one row, every webhook has one id."""
    monkeypatch.setenv("HOST_DATABASE", database_url)
    monkeypatch.setenv("HOST_SPOOL", str(tmp_path))
    monkeypatch.setenv("HOST_KEY", llm_provider.settings["api_key"])
    monkeypatch.setenv("HOST_BASE", llm_provider.settings["api_base"])
    if refuses:
        monkeypatch.setenv("HOST_REFUSES", "1")
    command = [sys.executable, "-m", "flask", "--app", "tests.delivering:logged()", "llm-batches", "worker"]
    with running_target() as target, (tmp_path / "worker.log").open("ab") as log:
        monkeypatch.setenv("HOST_WEBHOOK", target.url)
        _submit(llm_provider)

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

        workers = [start() for _ in range(WORKERS)]
        try:
            for _ in range(KILLS):
                time.sleep(random.uniform(0.5, 3))
                place = random.randrange(WORKERS)
                workers[place].kill()
                workers[place].wait()
                workers[place] = start()
            _wait_until_done(database_url)
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.wait(60)
    total = BATCHES * ROWS
    aside = total // EVERY if refuses else 0
    times = dict(query(database_url, "SELECT times, COUNT(*) FROM counter GROUP BY times"))
    assert times == ({1: total - aside} | ({0: aside} if refuses else {}))
    set_aside = [int(one) for (one,) in query(database_url, "SELECT custom_id FROM llm_batches_set_aside")]
    assert sorted(set_aside) == (list(range(0, total, EVERY)) if refuses else [])
    usage = query(
        database_url,
        "SELECT COUNT(*), SUM(requests) FROM llm_batches_usage WHERE event = 'results' GROUP BY batch_uid",
    )
    assert [tuple(map(int, one)) for one in usage] == [(1, ROWS)] * BATCHES
    ids = Counter(taken.body for taken in target.taken)
    assert len(ids) == len({taken.headers["webhook-id"] for taken in target.taken}) == BATCHES
    logger.info(
        "%s: %d kills, %d rows once, %d set aside, %d usage rows, %d webhooks sent %d times",
        *(database_url.partition(":")[0], KILLS, times[1], aside, len(usage), len(ids), ids.total()),
    )
    assert "Traceback" not in (tmp_path / "worker.log").read_text() or refuses


def _submit(simulator: Simulator) -> None:
    app = create_app()
    with app.app_context():
        db = app.extensions["sqlalchemy"]
        numbers = [{"id": number, "times": 0} for number in range(BATCHES * ROWS)]
        db.session.execute(db.metadata.tables["counter"].insert(), numbers)
        db.session.commit()
        for batch in range(BATCHES):
            wanted = [
                {**one, "custom_id": str(batch * ROWS + number)} for number, one in enumerate(requests(ROWS))
            ]
            current_llm_batches.create(owner="o", model="openai:m", requests=wanted, on_results="count")
    for one in simulator.batches:
        one.finish()
    dispose(app)


def _wait_until_done(database: str) -> None:
    deadline = time.monotonic() + 120 + 3 * KILLS
    left = "SELECT COUNT(*) FROM llm_batches_task WHERE step <> 'expire'"
    while query(database, left) != [(0,)] and time.monotonic() < deadline:
        time.sleep(0.5)
