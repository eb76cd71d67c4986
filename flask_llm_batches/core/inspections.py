"""Calls of the service for people: an overview of batches, and the details of one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing

from flask_llm_batches.batch import Batch, Row
from flask_llm_batches.core.detail import Details
from flask_llm_batches.core.inspected import (
    MOST_COUNTED,
    Exchange,
    Failure,
    Failures,
    Inspected,
    Overview,
    Some,
)
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.parts import Parts
from flask_llm_batches.core.results import ResultReader
from flask_llm_batches.core.sources import Sources
from flask_llm_batches.core.worker.alive import WorkerAlive
from flask_llm_batches.errors import (
    BatchNotFound,
    LLMBatchesError,
    RecordUnavailable,
    RequestsGone,
    ValidationFailed,
)
from flask_llm_batches.principal import Owner, owner_or_everyone
from flask_llm_batches.store.batches import UNSETTLED_STATES, Batches
from flask_llm_batches.store.deliveries import Deliveries
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.usage import UsageSums
from flask_llm_batches.store.webhooks import Webhooks

_NEWEST = 5
_DAY = 24 * 3600
_SHOWN = 100  # rows that were set aside, webhooks, and codes of failures
_SAMPLES = 3
_LONGEST_CODE, _LONGEST_MESSAGE = 100, 500
_GROUPS = {
    "running": ("in_progress", "finalizing", "cancelling"),
    "queued": ("validating",),
    "failed": ("failed",),
    "completed": ("completed",),
}


class Inspections:
    """The calls that only show something, within a bounded time. ``Service`` has them, too."""

    _batches: Batches
    _deliveries: Deliveries
    _details: Details
    _lookup: Lookup
    _parts: Parts
    _results: ResultReader
    _sources: Sources
    _usage: UsageSums
    _webhooks: Webhooks
    _worker_alive: WorkerAlive

    def overview(self, *, owner: Owner, days: int = 30) -> Overview:
        """Return what runs, waits and failed, as last seen, and what each of the last days cost.

        Args:
            owner: Whose batches.
            days: How many days, today included; 0 if their cost is not needed. They begin at midnight UTC.
        """
        name = owner_or_everyone(owner)
        statuses = [status for group in _GROUPS.values() for status in group]
        counts = self._batches.counts(owner=name, statuses=statuses, most=MOST_COUNTED)
        groups = {
            group: Some(
                sum(counts[status] for status in members),
                self._newest(name, [status for status in members if counts[status]]),
            )
            for group, members in _GROUPS.items()
        }
        since = (int(time.time()) // _DAY - days + 1) * _DAY
        spent = self._usage.spent(owner=name, since=since) if days else {}
        return Overview(**groups, days=spent, worker_alive=self._worker_alive())

    def _newest(self, owner: str | None, statuses: Sequence[str]) -> Sequence[Batch]:
        found: list[Record] = []
        for status in statuses:
            found += self._batches.list(owner=owner, provider=None, status=status, after=None, limit=_NEWEST)[
                0
            ]
        newest = sorted(found, key=lambda record: record.id, reverse=True)[:_NEWEST]
        return [record.shown(record.last_seen()) for record in newest]

    def inspect(self, batch_id: str, *, owner: Owner, provider: str | None = None) -> Inspected:
        """Return everything about a batch except its rows. If its provider fails, it is shown as last seen.

        Args:
            batch_id: The id.
            owner: Whose batch it must be.
            provider: Whose id it is; may be left out if no other provider has used it.

        Raises:
            BatchNotFound: It has no record.
        """
        record, stale = self._record(batch_id, owner, provider), None
        try:
            batch = self._lookup.refresh(record)
        except RecordUnavailable:
            raise
        except LLMBatchesError as error:
            batch, stale = record.last_seen(), str(error)
        record = self._batches.by_uid(record.uid) or record
        return Inspected(
            record.shown(batch),
            stale,
            record.state in UNSETTLED_STATES,
            self._details.of_record(record),
            self._usage.sums(group_by="model", owner=None, since=None, until=None, batch_uid=record.uid),
            record.archived_at,
            record.on_results,
            record.delivered,
            self._deliveries.all_set_aside(batch_uid=record.uid, limit=_SHOWN),
            self._webhooks.all(batch_uid=record.uid, limit=_SHOWN),
        )

    def failures(
        self, batch_id: str, *, owner: Owner, provider: str | None = None, seconds: float = 5.0
    ) -> Failures:
        """Return the requests of a batch that failed, by code, from one reading of its results.

        Args:
            batch_id: The id.
            owner: Whose batch it must be.
            provider: Whose id it is; may be left out if no other provider has used it.
            seconds: For how long rows are read. This may be too short for a large batch.

        Raises:
            BatchNotComplete: The batch still runs.
            BatchFailed: The batch failed before any request ran.
            ResultsGone: The provider no longer has the results.
        """
        reading = _Reading(time.monotonic() + seconds)
        found: dict[str, Failure] = {}
        others = 0
        for row in self._rows(self._record(batch_id, owner, provider), reading):
            if row.error is None:
                continue
            code = row.error.code[:_LONGEST_CODE]
            known = found.get(code)
            if known is None and len(found) >= _SHOWN:
                others += 1
                continue
            total, samples = (0, ()) if known is None else (known.total, known.samples)
            if total < _SAMPLES:
                samples = (*samples, (row.custom_id, row.error.message[:_LONGEST_MESSAGE]))
            retryable = row.error.retryable if known is None else known.retryable
            found[code] = Failure(code, total + 1, retryable, samples)
        groups = sorted(found.values(), key=lambda group: group.total, reverse=True)
        return Failures(groups, others, reading.rows, reading.complete)

    def exchange(
        self,
        batch_id: str,
        custom_id: str,
        *,
        owner: Owner,
        provider: str | None = None,
        seconds: float = 5.0,
    ) -> Exchange:
        """Return a request of a batch, if it is still kept anywhere, and its row of the results.

        Args:
            batch_id: The id.
            custom_id: Which request.
            owner: Whose batch it must be.
            provider: Whose id it is; may be left out if no other provider has used it.
            seconds: For how long to look for the request, and then for the row.
        """
        record = self._record(batch_id, owner, provider)
        request, no_request = self._request(record, custom_id, time.monotonic() + seconds)
        reading, row, no_row = _Reading(time.monotonic() + seconds), None, None
        try:
            with closing(self._rows(record, reading)) as rows:  # type: ignore[type-var]  # a generator
                row = next((row for row in rows if row.custom_id == custom_id), None)
            if row is None:
                no_row = "The results have no such custom_id." if reading.complete else _TOO_LONG
        except RecordUnavailable:
            raise
        except LLMBatchesError as error:
            no_row = str(error)
        return Exchange(request, no_request, row, no_row)

    def _request(self, record: Record, custom_id: str, until: float) -> tuple[bytes, None] | tuple[None, str]:
        why = "The requests have no such custom_id."
        # Of several parts with the request, the last one counts.
        for part in reversed(self._parts.of(record) or [record]):
            try:
                line = self._sources.find(part, custom_id, until=until)
            except RequestsGone:
                why = "The requests of this batch are not kept any more."
            except TimeoutError:
                return None, _TOO_LONG
            except RecordUnavailable:
                raise
            except LLMBatchesError as error:
                why = str(error)
            else:
                if line is not None:
                    return line, None
        return None, why

    def _record(self, batch_id: str, owner: Owner, provider: str | None) -> Record:
        try:
            return self._lookup.record_of(batch_id, owner=owner_or_everyone(owner), provider=provider)
        except ValidationFailed:  # no provider is named, and no batch of this record has the id
            raise BatchNotFound(f"Batch '{batch_id}' not found") from None

    def _rows(self, record: Record, reading: _Reading) -> Iterator[Row]:
        results = self._results.read(
            self._lookup.ended_of(record),
            record,
            status=None,
            requested_by=record.owner,
            keep_waiting=reading.is_in_time,
        )
        with closing(results):
            for group in results.groups():
                reading.rows += len(group or ())
                yield from group or ()
                if not reading.is_in_time():
                    return
        reading.complete = True


_TOO_LONG = "It was not found in the time that a page may take: the batch is large, or its provider slow."


class _Reading:
    """How far the rows of a batch were read, and until when they may be."""

    def __init__(self, until: float) -> None:
        self._until = until
        self.rows = 0
        self.complete = False

    def is_in_time(self) -> bool:
        return time.monotonic() < self._until
