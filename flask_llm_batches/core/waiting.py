"""Batches that are recorded, and whose parts wait to be submitted."""

from __future__ import annotations

import uuid

from flask_llm_batches.batch import Batch
from flask_llm_batches.core.adoption import send_accepted
from flask_llm_batches.core.asked import Asked
from flask_llm_batches.core.sources import Sources
from flask_llm_batches.core.spool import Spool, tokens_of
from flask_llm_batches.core.worker.alive import WorkerAlive
from flask_llm_batches.errors import LLMBatchesError, RateLimited
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import SubmitFailed
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.intents import NewPart
from flask_llm_batches.store.manifests import pack
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.queue import Queue

logger = get_logger(__name__)


class Waiting:
    """The waiting batches of one app."""

    def __init__(self, batches: Batches, queue: Queue, sources: Sources, worker_alive: WorkerAlive) -> None:
        self._batches = batches
        self._queue = queue
        self._sources = sources
        self._worker_alive = worker_alive

    def told(self, whole: Record, spool: Spool, asked: Asked, requested_by: str) -> Batch:
        """Log that a batch of several parts is recorded, send its signals, and return it."""
        if spool.renamed:
            logger.warning("batch %s: %s", whole.uid, renamed(spool, asked))
        logger.info("batch %r of %d requests waits", whole.shown_id, whole.requests)
        batch = whole.last_seen()
        send_accepted(whole, batch, self._batches.usage_of(whole), requested_by=requested_by)
        return whole.shown(batch)

    def discard(self, spool: Spool) -> None:
        """Delete the requests of parts that are not recorded."""
        self._sources.discard(spool.parts)

    def queued(
        self, record: Record, spool: Spool, asked: Asked, failure: SubmitFailed, requested_by: str
    ) -> Batch | None:
        """Queue a batch if its provider has no room for it and a worker is alive; otherwise return None."""
        error = failure.error
        has_no_room = isinstance(error, RateLimited) and error.passes and not failure.maybe_created
        if not has_no_room or not self._worker_alive():
            return None
        try:
            return self._queue_now(record, spool, asked, requested_by)
        except LLMBatchesError as error:  # then the caller gets the provider's answer
            logger.warning("batch %s cannot be queued: %r", record.uid, str(error))
            return None

    def _queue_now(self, record: Record, spool: Spool, asked: Asked, requested_by: str) -> Batch | None:
        with spool.path.open("rb") as file:
            source = self._sources.keep(file, owner=record.owner)
        uid = uuid.uuid4().hex
        part = NewPart(
            uid,
            record.provider,
            record.model,
            record.requests,
            tokens_of(spool.size),
            source,
            pack(uid, spool.custom_ids),
        )
        whole = self._queue.split(record, [part], requested_by=requested_by)
        return None if whole is None else self.told(whole, spool, asked, requested_by)


def renamed(spool: Spool, asked: Asked) -> str:
    """Return the warning that requests name another model."""
    return f"{spool.renamed} requests name another model; all run with {asked.model.name!r}."
