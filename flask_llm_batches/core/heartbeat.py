"""Repeats calls every few seconds, such as those that extend a lease while a step runs."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Flask, current_app

from flask_llm_batches.log import get_logger

logger = get_logger(__name__)

BEAT = 5.0
"""Seconds between two beats: a third of a lease."""

Beat = Callable[[], bool]
"""Called in a context of the app; returns False when it need not be called again."""


class Heartbeat:
    """Repeats calls for one app, on one daemon thread that ends when there is nothing to repeat.

    A call that is removed within one period is never made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._beats: dict[object, tuple[Flask, Beat, float]] = {}
        self._thread: threading.Thread | None = None
        _heartbeats.add(self)

    def add(self, beat: Beat) -> object:
        """Call a function every few seconds until it returns False. Returns what ``remove`` takes."""
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself
        key = object()
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="llm-batches-heartbeat", daemon=True)
                thread.start()  # which fails if the system has no more threads: the next call tries again
                self._thread = thread
            self._beats[key] = (app, beat, time.monotonic())
        return key

    def remove(self, key: object) -> None:
        """Stop calling a function."""
        with self._lock:
            self._beats.pop(key, None)

    @contextmanager
    def during(self, beat: Beat) -> Iterator[None]:
        """Call a function every few seconds while the block runs."""
        key = self.add(beat)
        try:
            yield
        finally:
            self.remove(key)

    def _run(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                if not self._beats:
                    self._thread = None
                    return
            self._beat()

    def _beat(self) -> None:
        young = time.monotonic() - BEAT
        with self._lock:
            due = [(key, app, beat) for key, (app, beat, since) in self._beats.items() if since <= young]
        for key, app, beat in due:
            if not _goes_on(app, beat):
                self.remove(key)

    def forget(self) -> None:
        """Start again in a child process: the thread does not run there, and the leases are the parent's."""
        self._lock = threading.Lock()
        self._beats = {}
        self._thread = None


def _goes_on(app: Flask, beat: Beat) -> bool:
    try:
        with app.app_context():
            return beat()
    except Exception:
        logger.exception("a heartbeat failed, and is tried again")
        return True


_heartbeats: weakref.WeakSet[Heartbeat] = weakref.WeakSet()


def _forget_parents() -> None:
    for heartbeat in _heartbeats:
        heartbeat.forget()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_parents)
