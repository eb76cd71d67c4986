"""Deletes the results of a batch from the archive when they expire."""

from __future__ import annotations

from flask_llm_batches.core.results import ResultReader
from flask_llm_batches.core.worker.steps import Next
from flask_llm_batches.store.models import Record


class Expire:
    """The step that deletes the archive of a batch."""

    def __init__(self, results: ResultReader) -> None:
        self._results = results

    def __call__(self, record: Record, _failures: int) -> Next:
        self._results.delete_archive(record)
        return Next("its results are deleted from the archive")
