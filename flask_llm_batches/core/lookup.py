"""Finds a batch: its owner, its provider, and its present state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from flask_llm_batches.batch import FINISHED, NO_FILE, Batch, own_id
from flask_llm_batches.config import Settings, provider_name
from flask_llm_batches.core.adoption import Adopter, is_submitting
from flask_llm_batches.core.merged import is_refused
from flask_llm_batches.core.parts import Parts
from flask_llm_batches.core.reconcile import FRESH, Reconciler
from flask_llm_batches.core.worker.alive import WorkerAlive
from flask_llm_batches.errors import (
    REQUIRED,
    SOUGHT,
    BatchFailed,
    BatchNotComplete,
    BatchNotFound,
    LLMBatchesError,
    ProviderRejected,
    ResultsGone,
    ValidationFailed,
)
from flask_llm_batches.fields import is_id
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.signals import batch_finished, send
from flask_llm_batches.store.batches import UNSETTLED_STATES, Batches
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.queue import Queue

logger = get_logger(__name__)


class Place(NamedTuple):
    """Where a batch is.

    Attributes:
        provider: The provider's name.
        batch_id: The provider's id, as far as it is known.
        record: Its record; None if it was not made here.
    """

    provider: str
    batch_id: str
    record: Record | None


class Lookup:
    """Finds the batches of one app. An ``owner`` of None stands for everyone.

    Args:
        settings: The app's.
        batches: Where they are recorded.
        queue: Where they wait.
        providers: Where they run.
        reconciler: Looks for unsettled batches.
        adopter: Adopts them.
        parts: The parts of batches.
        worker_alive: Returns whether a worker is alive.
        advance: Submits a queued batch or parts without a worker, if that is due, and returns the record.
    """

    def __init__(
        self,
        settings: Settings,
        batches: Batches,
        queue: Queue,
        providers: Providers,
        reconciler: Reconciler,
        adopter: Adopter,
        parts: Parts,
        worker_alive: WorkerAlive,
        advance: Callable[[Record], Record],
    ) -> None:
        self._settings = settings
        self._batches = batches
        self._queue = queue
        self._advance = advance
        self._providers = providers
        self._reconciler = reconciler
        self._adopter = adopter
        self._parts = parts
        self._worker_alive = worker_alive

    def locate(self, batch_id: str, *, owner: str | None, provider: str | None) -> Place:
        """Find the place of a batch, before its provider is called.

        A caller cannot tell a batch of another owner from one that does not exist.

        Raises:
            BatchNotFound: There is no such batch, or it is somebody else's.
            ValidationFailed: The batch has no record that the owner may see, and no provider was named.
        """
        # A provider that is not in the settings any more still has batches in the record.
        name = None if provider is None else provider_name(provider)
        if not is_id(batch_id):
            raise BatchNotFound(f"Batch '{batch_id}' not found")
        known = self._batches.find(batch_id)
        # Also if it is somebody else's: without the call, the error of a provider would tell that it is.
        if owner is not None and all(record.owner != owner for record in known):
            self._adopter.look_up(batch_id, owner=owner, provider=name)
            known = self._batches.find(batch_id)
        theirs = [
            record for record in known if owner in (None, record.owner) and name in (None, record.provider)
        ]
        if len(theirs) == 1:
            record = theirs[0]
            if record.state in UNSETTLED_STATES:
                record = self._reconciler.settled(record)
            elif (
                record.state in ("queued", "split")
                and record.status not in FINISHED
                and not self._worker_alive()
            ):
                record = self._advance(record)
            return Place(record.provider, record.batch_id or batch_id, record)
        if name is None:
            raise ValidationFailed.of(
                f"{REQUIRED} No batch of yours here has this id. If it was not made here, "
                "name the provider that has it, as in provider=openai.",
                "provider",
            )
        name = self._providers.name_of(name)
        if not known and (owner is None or self._is_untracked(name, batch_id)):
            return Place(name, batch_id, None)
        raise BatchNotFound(f"Batch '{batch_id}' not found")

    def record_of(self, batch_id: str, *, owner: str | None = None, provider: str | None = None) -> Record:
        """Return the record of a batch; without ``owner``, of any owner.

        Raises:
            BatchNotFound: There is none.
            ValidationFailed: As ``locate`` does.
        """
        record = self.locate(batch_id, owner=owner, provider=provider).record
        if record is None:
            raise BatchNotFound(f"Batch '{batch_id}' not found")
        return record

    def current(
        self, batch_id: str, *, owner: str | None, provider: str | None
    ) -> tuple[Batch, Record | None]:
        """Return a batch as it is now, and its record. A batch that has ended is not retrieved again.

        Raises:
            ProviderNotConfigured: It had not ended when its provider was taken out of the settings.
        """
        place = self.locate(batch_id, owner=owner, provider=provider)
        return self._now(place), place.record

    def last_known(self, batch_id: str, *, owner: str | None, provider: str | None) -> Batch:
        """Return a batch as it is now, or as last seen if its provider is not in the settings any more."""
        place = self.locate(batch_id, owner=owner, provider=provider)
        record = place.record
        if record is None or record.batch_id is None or self._providers.has(place.provider):
            return shown(record, self._fresh(record) or self._now(place))
        logger.warning("batch %r is shown as last seen: %r is not in the settings", batch_id, place.provider)
        return shown(record, record.last_seen())

    def ended(self, batch_id: str, *, owner: str | None, provider: str | None) -> tuple[Batch, Record | None]:
        """Return a batch that has results, and its record.

        Raises:
            BatchNotComplete: It still runs, or is being submitted or looked for at the provider.
            BatchFailed: It failed before any request ran.
            ResultsGone: The provider no longer has them.
        """
        batch, record = self.current(batch_id, owner=owner, provider=provider)
        self.check_ended(batch, record)
        return batch, record

    def ended_of(self, record: Record) -> Batch:
        """Return a batch of the record that has results, or raise as ``ended`` does."""
        batch = self.refresh(record)
        self.check_ended(batch, record)
        return batch

    def check_ended(self, batch: Batch, record: Record | None) -> None:
        """Check that a batch has results, or raise as ``ended`` does."""
        if record is not None:
            self.check_settled(record)
        batch_id = batch.id if record is None else record.shown_id
        if batch.status == "failed":
            raise BatchFailed(batch_id, reasons=_reasons(batch))
        if not batch.finished:
            raise BatchNotComplete(batch_id, status=batch.status, provider=batch.provider)
        if record is not None and record.batch_id is None and record.state != "split":
            if record.status == "cancelled":
                never = "It was cancelled before it was submitted."
                raise BatchFailed(batch_id, reasons=never, status="cancelled")
            raise ResultsGone(batch_id, provider=batch.provider)

    def cancel(self, batch_id: str, *, owner: str | None, provider: str | None) -> Batch:
        """Cancel a batch, and return it."""
        place = self.locate(batch_id, owner=owner, provider=provider)
        record = place.record
        if record is not None and record.state == "queued":
            record = self._cancel_queued(record)
        if record is not None and record.state == "split":
            return self._cancel_parts(record)
        if record is not None and record.batch_id is None:
            self.check_settled(record)
            return shown(record, record.last_seen())
        if record is None:
            # which raises if the provider spells the id differently
            self._providers.retrieve(place.provider, place.batch_id)
        batch_id = place.batch_id if record is None else str(record.batch_id)
        try:
            batch = self._providers.cancel(place.provider, batch_id)
        except ProviderRejected as error:  # it may name the provider's id, which the caller does not know
            name = batch_id if record is None else record.shown_id
            raise ProviderRejected(str(error).replace(batch_id, name)) from None
        return shown(record, self.seen(record, batch))

    def _cancel_queued(self, record: Record) -> Record:
        batch = self._queue.cancelled(record)
        now = self._batches.by_uid(record.uid) or record
        if batch is not None:
            send(batch_finished, batch=now.shown(batch), owner=record.owner)
        return now

    def _cancel_parts(self, record: Record) -> Batch:
        if record.status in FINISHED - {"cancelled"}:
            raise ProviderRejected(f"Cannot cancel a batch with status '{record.status}'.")
        self._parts.cancel(record)
        now = self._batches.by_uid(record.uid) or record
        return now.shown(now.last_seen())

    def check_settled(self, record: Record) -> None:
        """Check that it is known whether the provider has a batch.

        Raises:
            BatchNotComplete: It waits, is being submitted, or is looked for at the provider.
        """
        if record.state in (*UNSETTLED_STATES, "queued"):
            submitting = record.state == "queued" or is_submitting(record)
            raise BatchNotComplete(
                own_id(record.uid),
                status=record.status or "validating",
                provider=record.provider,
                why="It is still being submitted." if submitting else f"It {SOUGHT}.",
                retry_after=self._reconciler.retry_after(record),
            )

    def seen(self, record: Record | None, batch: Batch) -> Batch:
        """Record a batch that its provider has just returned, and return it as it is now."""
        if record is None:
            return batch.remembering({})
        if record.part_of is None and is_refused(record, batch) and self._worker_alive():
            queued = self._parts.queue(record, batch)
            if queued is not None:
                return replace(queued, owner=record.owner)
        batch, changed = self._batches.seen(record, batch.remembering(record.snapshot))
        if record.part_of is not None:
            return replace(self._parts.follow(record, batch), owner=record.owner)
        if changed and batch.finished:
            send(batch_finished, batch=record.shown(batch), owner=record.owner)
        return replace(batch, owner=record.owner)

    def refresh(self, record: Record) -> Batch:
        """Return a batch of the record as its provider has it now.

        Raises:
            BatchNotFound: The provider does not have it. After a day without it, the batch counts as failed.
        """
        place = Place(record.provider, record.batch_id or own_id(record.uid), record)
        return self._fresh(record) or self._now(place)

    def missing(self, record: Record) -> Batch | None:
        """Record that a provider does not have a batch; return the batch if it counts as failed now."""
        batch = self._batches.missing(record)
        if batch is not None:
            logger.warning("batch %r has been missing at %r for a day: it failed", batch.id, record.provider)
        if batch is not None and record.part_of is not None:
            self._parts.changed(record)
        elif batch is not None:
            send(batch_finished, batch=record.shown(batch), owner=record.owner)
            batch = replace(batch, owner=record.owner)
        return batch

    def _fresh(self, record: Record | None) -> Batch | None:
        """Return a running batch as last seen, if it was refreshed just now or somebody else refreshes it.

        None means that the provider must be asked; without a worker, that is always so.
        """
        if record is None or record.batch_id is None or record.status in FINISHED or not self._worker_alive():
            return None
        before = int(time.time()) - FRESH
        if (record.refreshed_at or 0) > before or not self._batches.claim_refresh([record], before=before):
            return Batch.from_dict(record.snapshot, record.provider)
        return None

    def _now(self, place: Place) -> Batch:
        record = place.record
        if record is not None and record.state == "split":
            return record.last_seen()
        if record is not None and (record.status in FINISHED or record.batch_id is None):
            batch = record.last_seen()
            if record.batch_id is None or record.missing_since is not None or record.archived_at is not None:
                return batch  # the provider is not needed for it any more
            if self._providers.adapter_of(place.provider).is_final(batch):
                return batch
        try:
            batch = self._providers.retrieve(place.provider, place.batch_id)
        except LLMBatchesError as error:
            if record is not None:
                self._batches.not_refreshed(record)
            gone = self.missing(record) if isinstance(error, BatchNotFound) and record is not None else None
            if gone is None:
                raise
            return gone
        if record is None:
            self._adopter.notice(place.provider, [batch])
        return self.seen(record, batch)

    def _is_untracked(self, provider: str, batch_id: str) -> bool:
        """Return whether a batch without a record may be shown, because it was not made here."""
        if self._settings.untracked != "allow":
            return False
        batch = self._providers.retrieve(provider, batch_id)
        if batch.uid is not None:
            return self._batches.by_uid(batch.uid) is None
        return bool(self._adopter.strangers(provider, [batch]))  # it may be a part


def shown(record: Record | None, batch: Batch) -> Batch:
    """Return a batch as callers see it: no file id of a provider is in it."""
    if record is not None:
        return record.shown(batch)
    return replace(batch, input_file_id=NO_FILE, output_file_id=None, error_file_id=None)


def _reasons(batch: Batch) -> str:
    problems = (batch.errors or {}).get("data") or []
    return " ".join(
        f"Line {problem['line']}: {problem['message']}" if problem.get("line") else str(problem["message"])
        for problem in problems[:10]
    )
