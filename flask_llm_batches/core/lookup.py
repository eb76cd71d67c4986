"""Finds a batch: its owner, its provider, and its present state."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

from flask_llm_batches.batch import FINISHED, Batch, own_id
from flask_llm_batches.config import Settings, provider_name
from flask_llm_batches.core.adoption import Adopter, is_submitting
from flask_llm_batches.core.reconcile import FRESH, Reconciler
from flask_llm_batches.core.worker.alive import WorkerAlive
from flask_llm_batches.errors import (
    REQUIRED,
    SOUGHT,
    BatchFailed,
    BatchNotComplete,
    BatchNotFound,
    ResultsGone,
    ValidationFailed,
)
from flask_llm_batches.fields import is_id
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.signals import batch_finished, send
from flask_llm_batches.store.batches import SETTLED, Batches
from flask_llm_batches.store.models import Record

logger = get_logger(__name__)


class Place(NamedTuple):
    """The place of a batch.

    Attributes:
        provider: The provider's name.
        batch_id: The provider's id, as far as it is known.
        record: What is recorded of it; None if it was not made here.
    """

    provider: str
    batch_id: str
    record: Record | None


class Lookup:
    """Finds the batches of one app. An ``owner`` of None stands for everyone."""

    def __init__(
        self,
        settings: Settings,
        batches: Batches,
        providers: Providers,
        reconciler: Reconciler,
        adopter: Adopter,
        worker_alive: WorkerAlive,
    ) -> None:
        self._settings = settings
        self._batches = batches
        self._providers = providers
        self._reconciler = reconciler
        self._adopter = adopter
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
        if not known and owner is not None:
            self._adopter.look_up(batch_id, owner=owner, provider=name)
            known = self._batches.find(batch_id)
        theirs = [
            record for record in known if owner in (None, record.owner) and name in (None, record.provider)
        ]
        if len(theirs) == 1:
            record = theirs[0]
            if record.state not in SETTLED:
                record = self._reconciler.settled(record)
            return Place(record.provider, record.batch_id or batch_id, record)
        if name is None:
            raise ValidationFailed.of(
                f"{REQUIRED} No batch of yours here has this id: name the provider that has it, "
                "as in provider=openai.",
                "provider",
            )
        name = self._providers.name_of(name)
        if not known and (owner is None or self._is_untracked(name, batch_id)):
            return Place(name, batch_id, None)
        raise BatchNotFound(f"Batch '{batch_id}' not found")

    def record_of(self, batch_id: str) -> Record:
        """Return the record of a batch, whoever owns it.

        Raises:
            BatchNotFound: There is none.
        """
        record = self.locate(batch_id, owner=None, provider=None).record if is_id(batch_id) else None
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
        if place.record is None or self._providers.has(place.provider):
            return self._fresh(place.record) or self._now(place)
        logger.warning("batch %r is shown as last seen: %r is not in the settings", batch_id, place.provider)
        return place.record.last_seen()

    def ended(self, batch_id: str, *, owner: str | None, provider: str | None) -> tuple[Batch, Record | None]:
        """Return a batch that has results, and its record.

        Raises:
            BatchNotComplete: It still runs, or is being submitted or looked for at the provider.
            BatchFailed: It failed before any request ran.
            ResultsGone: The provider no longer has them.
        """
        batch, record = self.current(batch_id, owner=owner, provider=provider)
        self._check_ended(batch, record)
        return batch, record

    def ended_of(self, record: Record) -> Batch:
        """Return a batch of the record that has results, or raise as ``ended`` does."""
        batch = self.refresh(record)
        self._check_ended(batch, record)
        return batch

    def _check_ended(self, batch: Batch, record: Record | None) -> None:
        if record is not None:
            self.check_settled(record)
        if batch.status == "failed":
            raise BatchFailed(batch.id, reasons=_reasons(batch))
        if not batch.finished:
            raise BatchNotComplete(batch.id, status=batch.status, provider=batch.provider)
        if record is not None and record.batch_id is None:
            raise ResultsGone(batch.id, provider=batch.provider)

    def cancel(self, batch_id: str, *, owner: str | None, provider: str | None) -> Batch:
        """Cancel a batch, and return it."""
        place = self.locate(batch_id, owner=owner, provider=provider)
        record = place.record
        if record is not None and record.batch_id is None:
            self.check_settled(record)
            return record.last_seen()
        if record is None:
            self._providers.retrieve(place.provider, place.batch_id)  # checks the spelling of the id
        return self.seen(record, self._providers.cancel(place.provider, place.batch_id))

    def check_settled(self, record: Record) -> None:
        """Check that it is known whether the provider has a batch.

        Raises:
            BatchNotComplete: It is being submitted, or looked for at the provider.
        """
        if record.state not in SETTLED:
            raise BatchNotComplete(
                own_id(record.uid),
                status=record.status or "validating",
                provider=record.provider,
                why="It is still being submitted." if is_submitting(record) else f"It {SOUGHT}.",
                retry_after=self._reconciler.retry_after(record),
            )

    def seen(self, record: Record | None, batch: Batch) -> Batch:
        """Record a batch that its provider has just returned, and return it as it is now."""
        if record is None:
            return batch.remembering({})
        batch, changed = self._batches.seen(record, batch.remembering(record.snapshot))
        if changed and batch.finished:
            send(batch_finished, batch=batch, owner=record.owner)
        return replace(batch, owner=record.owner)

    def refresh(self, record: Record) -> Batch:
        """Return a batch of the record as its provider has it now.

        Raises:
            BatchNotFound: The provider does not have it. After a day of that, it has failed.
        """
        place = Place(record.provider, record.batch_id or own_id(record.uid), record)
        return self._fresh(record) or self._now(place)

    def missing(self, record: Record) -> Batch | None:
        """Record that a provider does not have a batch; return the batch if it counts as failed now."""
        batch = self._batches.missing(record)
        if batch is not None:
            logger.warning("batch %r has been missing at %r for a day: it failed", batch.id, record.provider)
            send(batch_finished, batch=batch, owner=record.owner)
            batch = replace(batch, owner=record.owner)
        return batch

    def _fresh(self, record: Record | None) -> Batch | None:
        """Return a running batch as last seen, if that was within seconds or is being done elsewhere.

        That is so only while a worker is alive: without one, a poll always shows what the provider has.
        """
        if record is None or record.batch_id is None or record.status in FINISHED or not self._worker_alive():
            return None
        before = int(time.time()) - FRESH
        if (record.refreshed_at or 0) > before or not self._batches.claim_refresh([record], before=before):
            return Batch.from_dict(record.snapshot, record.provider)
        return None

    def _now(self, place: Place) -> Batch:
        record = place.record
        if record is not None and (record.status in FINISHED or record.batch_id is None):
            batch = record.last_seen()
            if record.batch_id is None or record.missing_since is not None or record.archived_at is not None:
                return batch  # the provider is not needed for it any more
            if self._providers.adapter_of(place.provider).is_final(batch):
                return batch
        try:
            batch = self._providers.retrieve(place.provider, place.batch_id)
        except BatchNotFound:
            gone = None if record is None else self.missing(record)
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
        uid = self._providers.retrieve(provider, batch_id).uid
        return uid is None or self._batches.by_uid(uid) is None


def _reasons(batch: Batch) -> str:
    problems = (batch.errors or {}).get("data") or []
    return " ".join(
        f"Line {problem['line']}: {problem['message']}" if problem.get("line") else str(problem["message"])
        for problem in problems[:10]
    )
