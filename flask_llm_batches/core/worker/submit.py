"""Submits a batch that waits: one that was made from an input file, or one of several parts."""

from __future__ import annotations

from flask_llm_batches.batch import FINISHED
from flask_llm_batches.core.lanes import Dispatcher
from flask_llm_batches.core.queue import FileBatches
from flask_llm_batches.core.webhooks import Targets
from flask_llm_batches.core.worker.steps import Next
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import Record


class Submit:
    """The step that checks the file of a queued batch and submits its requests, or submits parts."""

    def __init__(
        self, file_batches: FileBatches, batches: Batches, dispatcher: Dispatcher, targets: Targets
    ) -> None:
        self._file_batches = file_batches
        self._batches = batches
        self._dispatcher = dispatcher
        self._targets = targets

    def __call__(self, record: Record, _failures: int) -> Next:
        if record.state == "split":
            return self._dispatcher(record)
        batch = self._file_batches.submit(record) if record.state == "queued" else None
        status = record.status if batch is None else batch.status
        if status in FINISHED and (batch is not None or record.batch_id is None):
            return Next(str(status), then={"notify": 0} if self._targets.of(record) else {})
        now = self._batches.by_uid(record.uid)
        if now is not None and now.state == "split":
            return self._dispatcher(now)
        return Next("it is submitted", then={"refresh": 0})
