"""Delivers the rows of a batch from the archive to the host's handler, each once."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Awaitable, Iterator, Sequence
from itertools import chain, islice

from flask import current_app

from flask_llm_batches.batch import Row, parsed
from flask_llm_batches.core.archive import Archive
from flask_llm_batches.core.handlers import Handler, Handlers
from flask_llm_batches.core.worker.steps import Next
from flask_llm_batches.delivery import DeliveredRow
from flask_llm_batches.log import get_logger
from flask_llm_batches.store.deliveries import Deliveries, Overtaken, Refused
from flask_llm_batches.store.models import Record, SetAside

logger = get_logger(__name__)

GROUP = 200
"""The most rows that a handler gets at once."""

_BUDGET = 20.0  # seconds after which a worker looks at what else is due
_ALONE = 2  # failures after which rows are delivered one by one
_BROKEN = 6  # failures after which rows are set aside even if the handler takes none
_NO_HANDLER = 60
_DAY = 24 * 3600
_LONGEST_ERROR = 500


class Deliver:
    """The step that delivers the rows of a batch.

    Args:
        handlers: Take the rows.
        archive: Where the rows are.
        deliveries: How far they are delivered.
        retention: Days for which the archive is kept; with 0 it is deleted after the delivery.
    """

    def __init__(
        self, handlers: Handlers, archive: Archive, deliveries: Deliveries, *, retention: int
    ) -> None:
        self._handlers = handlers
        self._archive = archive
        self._deliveries = deliveries
        self._retention = retention

    def __call__(self, record: Record, failures: int) -> Next:
        if record.archived_at is None:
            logger.warning("the archive of %r expired after %d rows", record.shown_id, record.delivered)
            return Next("its results are deleted from the archive")
        handler = self._handlers.find(record.on_results or "")
        if handler is None:
            return Next(f"this process has no handler {record.on_results!r}", after=_NO_HANDLER)
        ends_at = time.monotonic() + _BUDGET
        done, aside = record.delivered, 0
        try:
            for group in _groups(self._archive.rows(record), record):
                try:
                    self._deliver(handler, record, group, start=done)
                except Overtaken:
                    raise
                except Exception:
                    if failures < _ALONE:
                        raise
                    broken = failures >= _BROKEN
                    aside += self._deliver_alone(handler, record, group, start=done, broken=broken)
                done += len(group)
                if time.monotonic() >= ends_at:
                    return Next(f"{done} rows so far", after=0)
        except Overtaken:
            return Next("another worker delivers it")
        return Next(f"{done} rows, {aside} set aside", then=self._expiry(record))

    def _expiry(self, record: Record) -> dict[str, float]:
        if self._retention > 0:  # the archive has an end already
            return {}
        is_aside = self._deliveries.all_set_aside(batch_uid=record.uid, limit=1)
        return {"expire": 30 * _DAY if is_aside else 0}

    def again(self, record: Record, rows: Sequence[SetAside]) -> int:
        """Deliver rows that were set aside, one by one, and return how many the handler takes now."""
        handler = self._handlers.find(record.on_results or "")
        left, done = {row.number: row for row in rows}, 0
        if handler is None or not left:
            return 0
        for number, found in enumerate(chain.from_iterable(self._archive.rows(record))):
            if (row := left.pop(number, None)) is None:
                continue
            try:
                with self._deliveries.deliver_again(row):
                    _call(handler, record, [_delivered(record, number, found)])
            except Exception:
                logger.exception("a handler still refuses row %r of %s", row.custom_id, record.shown_id)
            else:
                done += 1
            if not left:
                break
        return done

    def _deliver(self, handler: Handler, record: Record, rows: Sequence[DeliveredRow], *, start: int) -> None:
        with self._deliveries.deliver(record, start=start, end=start + len(rows)):
            _call(handler, record, rows)

    def _deliver_alone(
        self, handler: Handler, record: Record, rows: Sequence[DeliveredRow], *, start: int, broken: bool
    ) -> int:
        """Deliver rows one by one, set aside those that the handler refuses, and return their number.

        If it refuses all of them, its error is raised: the fault is not in the rows. With ``broken``, they
        are set aside all the same.
        """
        refused: list[Refused] = []
        at, aside = start, 0
        for number, row in enumerate(rows, start):
            try:
                with self._deliveries.deliver(record, start=at, end=number + 1, refused=refused):
                    _call(handler, record, [row])
            except Overtaken:
                raise
            except Exception as error:
                if number == start + len(rows) - 1 and at == start and not broken:
                    raise
                logger.warning("a handler refuses row %r of %s", row.custom_id, record.shown_id)
                refused.append(Refused(number, row.custom_id, _told(error)[:_LONGEST_ERROR]))
            else:
                at, aside, refused = number + 1, aside + len(refused), []
        if refused:
            with self._deliveries.deliver(record, start=at, end=start + len(rows), refused=refused):
                pass
        return aside + len(refused)


def _groups(groups: Iterator[Sequence[Row]], record: Record) -> Iterator[list[DeliveredRow]]:
    """Yield the rows that are not delivered yet, some at a time."""
    rows = islice(chain.from_iterable(groups), record.delivered, None)
    numbered = (_delivered(record, number, row) for number, row in enumerate(rows, record.delivered))
    while group := list(islice(numbered, GROUP)):
        yield group


def _delivered(record: Record, number: int, row: Row) -> DeliveredRow:
    result = None if row.result is None else parsed(row.result)
    return DeliveredRow(row.custom_id, result, row.error, f"{record.uid}-{number}")


def _call(handler: Handler, record: Record, rows: Sequence[DeliveredRow]) -> None:
    try:
        answer = current_app.ensure_sync(handler)(rows, record.shown(record.last_seen()))
        if inspect.isawaitable(answer):  # of a function that only calls an async one
            current_app.ensure_sync(_wait)(answer)
        elif inspect.isgenerator(answer) or inspect.isasyncgen(answer):
            raise TypeError("a handler with a yield takes no rows")
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        # An exit() in a library, or a task that was cancelled. In the main thread, it may be meant to end the
        # process. In a worker's, it would end one thread after the other, until none is left.
        if isinstance(error, SystemExit) and threading.current_thread() is threading.main_thread():
            raise
        raise RuntimeError(f"the handler raised {type(error).__name__}") from error


async def _wait(answer: Awaitable[None]) -> None:
    await answer


def _told(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # the host's own class
        return type(error).__name__
