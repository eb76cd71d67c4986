"""A real Celery worker, with beat and Redis, follows batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import redis

from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.databases import query
from tests.hosts import KEYS
from tests.test_worker import eventually, statuses

URL = os.environ.get("TEST_REDIS_URL")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        URL is None, reason="set TEST_REDIS_URL to a server such as redis://127.0.0.1:6379/15"
    ),
]


def test_celery_follows_batches(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> None:
    """Beat sends the ticks, a worker does them, and polls are answered from the record meanwhile."""
    database, queue = f"sqlite:///{tmp_path / 'host.sqlite3'}", f"llm-batches-{uuid.uuid4().hex}"
    ada = client_of(make_host(database=database), "ada")
    batch_id = create_batch(ada)
    llm_provider.batches[0].finish()
    environment = {
        **os.environ,
        "HOST_DATABASE": database,
        "HOST_PROVIDERS": json.dumps({"openai": llm_provider.settings}),
        "HOST_SPOOL": str(tmp_path),
        "HOST_QUEUE": queue,
    }
    options = ["worker", "--beat", "--concurrency=2", "--loglevel=INFO", f"--schedule={tmp_path / 'beat'}"]
    command = [sys.executable, "-m", "celery", "--app=tests.celery_app", *options]
    log = tmp_path / "celery.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: statuses(database) == ["completed"], 60)
        archived = "SELECT uid FROM llm_batches_batch WHERE archived_at IS NOT NULL"
        eventually(lambda: bool(query(database, archived)), 30)
        assert query(database, "SELECT uid FROM llm_batches_worker") == [("celery",)]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        redis.Redis.from_url(str(URL)).delete(queue)
    llm_provider.calls.clear()
    rows = ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]
    assert len(rows) == 3
    assert llm_provider.calls == []
    assert f"archive {batch_id!r} at 'openai': 3 rows" in log.read_text()
    assert not KEYS.search(log.read_text())
