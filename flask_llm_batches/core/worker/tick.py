"""The tick: finds what is due, does it step by step, and records when it is due again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from flask import Flask, current_app

from flask_llm_batches.batch import own_id
from flask_llm_batches.core.heartbeat import Heartbeat
from flask_llm_batches.core.worker.steps import Next, Step
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.log import caused_by, get_logger
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import Record, Task
from flask_llm_batches.store.tasks import Tasks
from flask_llm_batches.tracing import span

logger = get_logger(__name__)

# A step that fails is retried after 5 seconds, then 10, and so on.
_FIRST_RETRY, _LAST_RETRY = 5, 900


class Ticker:
    """Runs the steps that are due in one app."""

    def __init__(
        self, tasks: Tasks, batches: Batches, heartbeat: Heartbeat, steps: Mapping[str, Step]
    ) -> None:
        self._tasks = tasks
        self._batches = batches
        self._heartbeat = heartbeat
        self._steps = steps

    def tick(self, *, budget: float | None, stop: Callable[[], bool]) -> int:
        """Run steps until none is due, and return their number.

        Args:
            budget: Seconds after which no further step begins; None for no limit.
            stop: Called before each step: whether to begin no further one.

        Raises:
            RecordUnavailable: The database does not answer.
        """
        ends_at = None if budget is None else time.monotonic() + budget
        done = 0
        task = None if stop() else self._tasks.claim()
        if task is None:
            return done
        with span("tick"):
            while task is not None:
                self._run(task)
                done += 1
                if stop() or (ends_at is not None and time.monotonic() >= ends_at):
                    break
                task = self._tasks.claim()
        return done

    def run(self, batch_uid: str, step: str) -> None:
        """Run one step of a batch, if it is due and nobody runs it."""
        task = self._tasks.claim(batch_uid=batch_uid, step=step)
        if task is not None:
            self._run(task)

    def _run(self, task: Task) -> None:
        record = self._batches.by_uid(task.batch_uid)
        with caused_by(None if record is None else record.request_id):
            self._do(task, record)

    def _do(self, task: Task, record: Record | None) -> None:
        step = self._steps.get(task.step)
        # the batch was purged, or a newer version of this package made the task
        if record is None or step is None:
            self._tasks.done(task, then={})
            return
        # A context of its own has a session of its own. The lease shows other workers that this one is alive.
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself
        with (
            app.app_context(),
            self._heartbeat.during(partial(self._tasks.extend_lease, task)),
            span(task.step, provider=record.provider, batch=own_id(record.uid)),
        ):
            result = _attempt(step, record, task)
        if result is None:
            delay = min(_FIRST_RETRY * 2 ** min(task.failures, 20), _LAST_RETRY)
            self._tasks.again(task, due_at=int(time.time()) + delay, failures=task.failures + 1)
            return
        note, after, then = result
        name = record.batch_id or own_id(record.uid)
        logger.info("%s %r at %r: %s", task.step, name, record.provider, note)
        if after is None:
            self._tasks.done(task, then=then)
        else:
            self._tasks.again(task, due_at=int(time.time() + after), failures=0)


def _attempt(step: Step, record: Record, task: Task) -> Next | None:
    """Run a step, and log what it raises; None if it failed."""
    name = record.batch_id or own_id(record.uid)
    try:
        return step(record, task.failures)
    except LLMBatchesError as error:
        logger.warning("%s %r at %r failed: %s", task.step, name, record.provider, error)
    except Exception:
        logger.exception("%s %r at %r failed", task.step, name, record.provider)
    return None
