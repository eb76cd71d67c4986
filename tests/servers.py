"""Real servers, as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from werkzeug.serving import make_server

from flask_llm_batches.testing import Simulator
from tests.hosts import KEYS, create_host, dispose

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@contextmanager
def serving(app: WSGIApplication) -> Iterator[str]:
    """Run an app in this process, under a server with a thread for every call."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Running:
    """A server at work.

    Attributes:
        url: Where it listens.
        pid: Its first process.
        log: What it has printed so far.
        spool: Its folder for spooled requests.
    """

    url: str
    pid: int
    log_file: Path
    spool: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def workers(self) -> list[int]:
        """Return the process ids of its children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def gunicorn(
    simulator: Simulator,
    folder: Path,
    *options: str,
    app: str = "tests.hosts:from_environment()",
    database: str | None = None,
) -> AbstractContextManager[Running]:
    """Run an app under gunicorn, with the simulator as its provider."""
    defaults = "--bind=127.0.0.1:{port}", "--keep-alive=60"  # hanging up on a POST is not what is tested
    return serve(simulator, folder, "gunicorn", app, *defaults, *options, database=database)


@contextmanager
def serve(
    simulator: Simulator, folder: Path, module: str, *options: str, database: str | None = None
) -> Iterator[Running]:
    """Run a server's module, with the simulator as the provider of its app; on SQLite unless told."""
    database = database or f"sqlite:///{folder / 'host.sqlite3'}"
    port = free_port()
    spool, log_file = folder / "spool", folder / "server.log"
    spool.mkdir(exist_ok=True)
    dispose(create_host(database=database))  # the tables, once: workers that start together would race
    environment = {
        **os.environ,
        "HOST_DATABASE": database,
        "HOST_PROVIDERS": json.dumps({"openai": simulator.settings}),
        "HOST_ALL_PROVIDERS": json.dumps(simulator.providers),
        "HOST_SPOOL": str(spool),
        "PYTHONWARNINGS": "default",
    }
    command = [sys.executable, "-m", module, *(option.format(port=port) for option in options)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(f"http://127.0.0.1:{port}/v1/batches", process, log_file)
        yield Running(f"http://127.0.0.1:{port}", process.pid, log_file, spool)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert not KEYS.search(log_file.read_text())


def _wait_for(url: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the server did not start:\n{log_file.read_text()}")


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """Run an object store that speaks Amazon's protocol, with an empty bucket, and return its URL."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "--port", url.rpartition(":")[2]]
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(url, process, folder / "s3.log")
        httpx.put(f"{url}/bucket").raise_for_status()
        yield url
    finally:
        process.terminate()
        process.wait(30)
