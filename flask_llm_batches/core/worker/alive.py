"""Finds out whether a worker is alive."""

from __future__ import annotations

import time

from flask_llm_batches.store.tasks import Workers

_MEMORY = 1.0  # seconds


class WorkerAlive:
    """Returns whether a worker of one app is alive, on any machine.

    It asks the database once a second at most.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._until = 0.0
        self._known = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if now >= self._until:
            self._known = self._workers.alive() > 0
            self._until = now + _MEMORY
        return self._known
