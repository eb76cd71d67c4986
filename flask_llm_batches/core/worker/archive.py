"""Reads the results of a batch that has ended once: into the archive, and into the usage."""

from __future__ import annotations

from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.results import DamagedRows, ResultReader
from flask_llm_batches.core.worker.steps import Next
from flask_llm_batches.errors import BatchFailed, BatchNotComplete, ResultsGone
from flask_llm_batches.store.models import Record

_DAY = 24 * 3600
_WAIT = 30  # seconds until a provider is asked again for files that it lacks, or that are damaged


class ArchiveResults:
    """The step that keeps the results of a batch.

    Args:
        lookup: Finds the batch.
        results: Reads its results.
        retention: Days for which results are kept; with 0 they are only accounted for, or delivered.
    """

    def __init__(self, lookup: Lookup, results: ResultReader, *, retention: int) -> None:
        self._lookup = lookup
        self._results = results
        self._retention = retention

    def __call__(self, record: Record, _failures: int) -> Next:
        try:
            batch = self._lookup.ended_of(record)
        except BatchNotComplete:
            return Next("its results are not there yet", after=_WAIT)
        except (BatchFailed, ResultsGone) as reason:
            return Next(f"it has no results: {reason.code}")
        keep = self._retention > 0 or record.on_results is not None
        try:
            rows = self._results.archive(record, batch, keep=keep)
        except DamagedRows as damaged:
            return Next(str(damaged), after=_WAIT)
        then: dict[str, float] = {} if record.on_results is None else {"deliver": 0}
        if self._retention > 0:
            then["expire"] = self._retention * _DAY
        return Next(f"{rows} rows", then=then)
