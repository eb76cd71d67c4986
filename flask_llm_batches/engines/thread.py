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
    started: set[int] = set()

    def work() -> None:
        with app.app_context():
            current_llm_batches.work(threading.Event())

    @app.before_request
    def _start() -> None:
        pid = os.getpid()
        if pid in started:
            return
        with lock:
            if pid not in started:
                started.add(pid)
                threading.Thread(target=work, name="llm-batches-worker", daemon=True).start()
