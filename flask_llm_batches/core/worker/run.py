"""A worker: threads that tick until they are told to stop."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress

from flask import Flask, current_app

from flask_llm_batches.core.files import Files
from flask_llm_batches.core.worker.tick import Ticker
from flask_llm_batches.errors import RecordUnavailable, StorageUnavailable
from flask_llm_batches.log import get_logger
from flask_llm_batches.store.tasks import Workers

logger = get_logger(__name__)

PAUSE = 1.0
"""Seconds between two looks at what is due."""

_LONGEST_PAUSE = 30.0  # while the database does not answer

_SEEN_EVERY = 5.0
_DELETED = 50  # expired files between two of these: a slow storage must not make a worker look dead


class Runner:
    """Runs workers of one app."""

    def __init__(self, ticker: Ticker, workers: Workers, files: Files) -> None:
        self._ticker = ticker
        self._workers = workers
        self._files = files

    def seen(self, name: str) -> None:
        """Record that a worker is alive."""
        self._workers.seen(name)

    def work(self, stop: threading.Event, *, concurrency: int) -> None:
        """Work until ``stop`` is set, and then until the steps that are running have ended."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself
        uid = uuid.uuid4().hex
        threads = [
            threading.Thread(target=self._loop, args=(app, stop), name="llm-batches-worker", daemon=True)
            for _ in range(concurrency)
        ]
        for thread in threads:
            thread.start()
        while True:
            with suppress(RecordUnavailable, StorageUnavailable):  # which are logged
                self._workers.seen(uid)
                self._files.delete_expired(limit=_DELETED)
            if stop.wait(_SEEN_EVERY):
                break
        for thread in threads:
            thread.join()
        with suppress(RecordUnavailable):
            self._workers.ended(uid)

    def _loop(self, app: Flask, stop: threading.Event) -> None:
        pause = PAUSE
        while not stop.is_set():
            try:
                with app.app_context():
                    self._ticker.tick(budget=None, stop=stop.is_set)
                pause = PAUSE
            except RecordUnavailable:  # which is logged
                pause = min(2 * pause, _LONGEST_PAUSE)
            except BaseException:  # also an exit() in the host's code, which would end this thread only
                logger.exception("a worker failed, and goes on")
                pause = min(2 * pause, _LONGEST_PAUSE)
            stop.wait(pause)
