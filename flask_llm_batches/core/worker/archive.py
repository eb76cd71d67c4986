"""Reads the results of a batch that has ended, archives them and records their usage."""

from __future__ import annotations

import time

from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.parts import READ, Parts
from flask_llm_batches.core.results import ArchivedMeanwhile, ResultReader
from flask_llm_batches.core.rows import DamagedRows
from flask_llm_batches.core.worker.steps import Next
from flask_llm_batches.errors import BatchFailed, BatchNotComplete, ResultsGone
from flask_llm_batches.store.models import Record

_DAY = 24 * 3600
_MOST_FAILURES = 100  # in a row, within about a day, after which a part counts as read
_WAIT = 30  # seconds until a provider is asked again for files that it lacks, or that are damaged


class ArchiveResults:
    """The step that keeps the results of a batch.

    Args:
        lookup: Finds the batch.
        results: Reads its results.
        parts: The parts of batches.
        retention: Days for which results are kept; with 0 they are only accounted for, or delivered.
    """

    def __init__(self, lookup: Lookup, results: ResultReader, parts: Parts, *, retention: int) -> None:
        self._parts = parts
        self._lookup = lookup
        self._results = results
        self._retention = retention

    def __call__(self, record: Record, failures: int) -> Next:
        if record.part_of is not None:
            return self._collect(record, failures)
        try:
            batch = self._lookup.ended_of(record)
        except BatchNotComplete:
            return Next("its results are not there yet", after=_WAIT)
        except (BatchFailed, ResultsGone) as reason:
            return Next(f"it has no results: {reason.code}")
        keep = self._retention > 0 or record.on_results is not None
        rows = record.requests
        # A process may have been killed after it archived them: the provider may not have them any more.
        if record.archived_at is None:
            try:
                rows = self._results.archive(record, batch, keep=keep)
            except DamagedRows as damaged:
                return Next(str(damaged), after=_WAIT)
            except ArchivedMeanwhile:
                return Next("another worker has archived it", after=0)
        if record.state == "split":
            self._parts.expire_archives(record)
        then: dict[str, float] = {} if record.on_results is None else {"deliver": 0}
        if self._retention > 0:
            then["expire"] = self._retention * _DAY
        return Next(f"{rows} rows", then=then)

    def _collect(self, part: Record, failures: int) -> Next:
        """Keep the rows of a part until its batch has ended, and queue again what failed."""
        whole = self._parts.whole(part)
        if whole is None or whole.accounted_at is not None:
            return Next("its batch has its rows already")
        if failures >= _MOST_FAILURES:
            self._parts.read(part, {})
            return Next("its results cannot be read")
        try:
            failed, retryable = self._results.archive_part(part, self._lookup.ended_of(part))
        except BatchNotComplete:
            return Next("its results are not there yet", after=_WAIT)
        except DamagedRows as damaged:
            return Next(str(damaged), after=_WAIT)
        except ArchivedMeanwhile:
            return Next("another worker has archived it", after=0)
        except (BatchFailed, ResultsGone) as reason:
            self._parts.read(part, {})
            return Next(f"it has no results: {reason.code}")
        values = {"failed_rows": failed, "archived_at": int(time.time())}
        if part.retries and retryable:
            self._parts.retry(part, frozenset(retryable), values)
            return Next(f"{len(retryable)} requests are submitted again")
        self._parts.read(part, values)
        whole = self._parts.whole(part)
        # If the rows of its batch were read meanwhile, nobody else lets this archive be deleted.
        is_over = whole is None or whole.accounted_at is not None
        return Next(f"{part.requests} rows", then={"expire": READ} if is_over else {})
