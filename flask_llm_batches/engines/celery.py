"""Celery as the worker: a task that ticks, and a beat entry that sends it."""

from __future__ import annotations

from contextlib import nullcontext

from celery import Celery
from flask import Flask

from flask_llm_batches.current import current_llm_batches

TICK = "llm_batches.tick"
"""The name of the task, and of its entry in the beat schedule."""

_BUDGET = 20.0  # seconds of a task


def register_tasks(celery: Celery, app: Flask | None = None, *, every: float = 2.0) -> None:
    """Add the task and its beat entry to a host's Celery app.

    Celery's workers do the work then, and ``flask llm-batches worker`` is not needed. What is due is in the
    database, so a task that is lost or sent twice does no harm.

    Args:
        celery: The host's Celery app.
        app: The Flask app. It is not needed if the tasks of ``celery`` run in an app context, as in Flask's
            documentation: https://flask.palletsprojects.com/en/stable/patterns/celery/
        every: Seconds between two ticks.
    """

    @celery.task(name=TICK, ignore_result=True)  # type: ignore[untyped-decorator]  # celery ships no types
    def tick() -> None:
        with nullcontext() if app is None else app.app_context():
            current_llm_batches.tick(budget=_BUDGET, worker="celery")

    schedule = dict(celery.conf.beat_schedule or {})
    # A task that no worker has taken expires when the next one is sent.
    schedule[TICK] = {"task": TICK, "schedule": every, "options": {"expires": every}}
    celery.conf.beat_schedule = schedule
