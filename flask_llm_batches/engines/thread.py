"""``LLM_BATCHES_WORKER = "thread"``: a worker inside of each web process."""

from __future__ import annotations

import os
import threading

from flask import Flask

from flask_llm_batches.current import current_llm_batches


def start_with_first_request(app: Flask) -> None:
    """Start a worker when a process of the app serves its first request.

    So it does not run in commands, and not in the parent of preforked processes.
    """
    lock = threading.Lock()
    workers: dict[int, _Worker] = {}  # by process
    app.extensions["llm_batches_workers"] = workers

    @app.before_request
    def _start() -> None:
        pid = os.getpid()
        if pid in workers:
            return
        with lock:
            if pid not in workers:
                workers[pid] = _Worker(app)


def stop(app: Flask) -> None:
    """Stop the worker of this process for good, and wait until the step that is running has ended."""
    worker = app.extensions["llm_batches_workers"].get(os.getpid())
    if worker is not None:
        worker.stop()


class _Worker:
    def __init__(self, app: Flask) -> None:
        self._app = app
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="llm-batches-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        with self._app.app_context():
            current_llm_batches.work(self._stop)
