"""The demo shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from example_app.app import create_app
from example_app.tour import SECONDS
from tests.servers import free_port


@contextmanager
def demo(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    tmp_path.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "120"}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "example_app", *arguments]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_the_demo_shows_a_batch_from_end_to_end(tmp_path: Path) -> None:
    """The demo ends by itself with results, failures and usage, and its curl lines work as printed."""
    with demo(tmp_path / "tour") as tour:
        shown, errors = tour.communicate(timeout=60)
    assert not errors
    assert re.search(r"300 requests are batch batch_\w+", shown)
    assert "Reviews before: 300 unlabelled" in shown
    assert "Reviews after: 150 negative, 144 positive, 6 unlabelled" in shown
    assert "Failures: 6" in shown
    assert "messages[1].content must not be empty" in shown
    assert re.search(r"results .* openai .* gpt-4o-mini", shown)
    assert not list((tmp_path / "tour").iterdir())

    port = free_port()
    lines = shown[shown.index("  curl -s") : shown.index("With a real key")].replace(":5000/", f":{port}/")
    lines = lines.replace(f"  curl -u ada:lovelace http://127.0.0.1:{port}/v1/batches/$ID/results", "")
    with demo(tmp_path / "serve", "serve", str(port)) as server:
        assert server.stdout is not None
        assert "endpoints at" in server.stdout.readline()
        run = subprocess.run(["bash", "-ec", lines], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert run.stdout.count('"object":"batch"') == 3
        time.sleep(SECONDS)
        batch_id = run.stdout.partition('"id":"')[2].partition('"')[0]
        dashboard = f"http://127.0.0.1:{port}/batches/"
        assert httpx.get(dashboard).headers["WWW-Authenticate"] == "Basic realm=shop"
        assert batch_id in httpx.get(f"{dashboard}list", auth=("ada", "lovelace")).text
        url = f"http://127.0.0.1:{port}/v1/batches/{batch_id}/results"
        assert '"content":"negative"' in httpx.get(url, auth=("ada", "lovelace")).text
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 130
    assert not list((tmp_path / "serve").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.3, 2.0, 5.0])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, moment: float) -> None:
    """Ctrl-C at any moment ends the demo without a trace of it."""
    with demo(tmp_path) as running:
        time.sleep(moment + random.random())
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode in (0, 130, -signal.SIGINT)
    assert "Traceback" not in errors or moment < 1
    assert not list(tmp_path.iterdir())


def test_the_shop_keeps_its_own_pages(tmp_path: Path) -> None:
    """The example's own page and its own HTML 404 stay; its users are asked who is calling."""
    app = create_app(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'shop.sqlite3'}", LLM_BATCHES_WORKER=None
    )
    shop = app.test_client()
    assert "What people say" in shop.get("/").text
    assert "We do not have that" in shop.get("/nowhere").text
    assert shop.get("/v1/batches").status_code == 401
    assert shop.get("/v1/batches", auth=("ada", "wrong")).status_code == 401
    assert shop.get("/v1/batches", auth=("ada", "lovelace")).get_json()["data"] == []
