"""Decides which unsettled batch and which provider's batch belong together.

A batch that carries our uid is adopted wherever it is seen. Where a provider keeps no metadata, only an
operator can say which batch was made by which create.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence

from flask_llm_batches.batch import Batch, uid_of
from flask_llm_batches.core.search import MARGIN
from flask_llm_batches.errors import (
    AdoptionRefused,
    LLMBatchesError,
    ProviderFailed,
    ProviderTimeout,
    RateLimited,
)
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.signals import batch_finished, batch_submitted, send, usage_recorded
from flask_llm_batches.store.batches import UNSETTLED_STATES, Batches, IdTaken
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.usage import Usage

logger = get_logger(__name__)


class Adopter:
    """Adopts the batches of one app."""

    def __init__(self, batches: Batches, providers: Providers) -> None:
        self._batches = batches
        self._providers = providers

    def look_up(self, batch_id: str, *, owner: str, provider: str | None) -> None:
        """Adopt the batch with a provider's id if it is an unsettled batch, without a search.

        Only providers at which the owner has an unsettled batch are called. In this way, a create whose
        answer could not be recorded is found at once, even while its process is still alive.

        Raises:
            LLMBatchesError: A provider did not answer.
        """
        failure: LLMBatchesError | None = None
        unsettled = self._batches.unsettled(owner=owner, provider=provider)
        for name in dict.fromkeys(record.provider for record in unsettled):
            try:
                if self._providers.adapter_of(name).keeps_metadata:
                    self.notice(name, [self._providers.retrieve(name, batch_id)], submitting=True)
            except (ProviderFailed, ProviderTimeout, RateLimited) as error:
                failure = error
            except LLMBatchesError:  # it has no such batch, or is not configured any more
                continue
        if failure is not None:
            raise failure

    def notice(self, provider: str, batches: Iterable[Batch], *, submitting: bool = False) -> Collection[str]:
        """Adopt batches that have the uid of an unsettled record in their metadata.

        Args:
            provider: The name of the provider.
            batches: Batches as the provider returned them.
            submitting: Whether to adopt one whose create is still running, too.

        Returns:
            The uids that were seen, whether adopted or not.
        """
        marked = {batch.uid: batch for batch in batches if batch.uid is not None}
        for record in self._batches.by_uids(list(marked)) if marked else ():
            wanted = record.provider == provider and record.state not in ("accepted", "queued", "split")
            if wanted and (submitting or not is_submitting(record)):
                self._adopt(record, marked[record.uid])
        return marked.keys()

    def adopt(self, uid: str, batch_id: str) -> Batch:
        """Record that an unsettled batch is the one with a provider's id, as an operator decided.

        Raises:
            AdoptionRefused: It cannot be that batch.
        """
        record = self._batches.by_uid(uid_of(uid) or uid)
        if record is None:
            raise AdoptionRefused(f"There is no record of a batch {uid!r}")
        uid = record.uid
        if record.state in ("accepted", "queued", "split"):
            raise AdoptionRefused(f"The batch {uid} is recorded as {record.shown_id!r} already")
        if is_submitting(record):
            raise AdoptionRefused(f"The batch {uid} is being submitted at this moment")
        batch = self._providers.retrieve(record.provider, batch_id)
        if batch.id != batch_id:
            raise AdoptionRefused(f"Provider {record.provider!r} shows another batch, {batch.id!r}")
        if batch.uid not in (None, uid):
            raise AdoptionRefused(f"The batch {batch_id!r} was made for another record")
        if _total(batch) not in (record.requests, 0):
            raise AdoptionRefused(
                f"The batch {batch_id!r} has {_total(batch)} requests, and {uid} has {record.requests}"
            )
        if not self._adopt(record, batch):
            raise AdoptionRefused(f"The batch {batch_id!r} is recorded for somebody already")
        return record.shown(batch.remembering(record.snapshot))

    def give_up(self, uid: str) -> None:
        """Record that the provider does not have an unsettled batch, as an operator decided.

        Raises:
            AdoptionRefused: It is settled, or its create is still running.
        """
        record = self._batches.by_uid(uid_of(uid) or uid)
        if record is None or record.state not in UNSETTLED_STATES or is_submitting(record):
            raise AdoptionRefused(f"There is no batch {uid!r} that is being looked for")
        self._batches.not_there(record)

    def strangers(self, provider: str, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return the batches without a uid that are not recorded for any provider of the same kind."""
        known = self._recorded(provider, [batch.id for batch in batches])
        return [batch for batch in batches if batch.id not in known and batch.uid is None]

    def _recorded(self, provider: str, batch_ids: Collection[str]) -> set[str | None]:
        """Return the ids that are recorded for a provider, or another one of the same or an unknown kind."""
        kind = self._providers.kind_of(provider)
        return {
            one.batch_id
            for one in self._batches.find_all(batch_ids)
            if self._kind_of(one.provider) in (kind, None)
        }

    def _kind_of(self, provider: str) -> str | None:
        try:
            return self._providers.kind_of(provider)
        except LLMBatchesError:  # it is not configured any more
            return None

    def _adopt(self, record: Record, batch: Batch) -> bool:
        if self._recorded(record.provider, [batch.id]):
            return False
        batch = batch.remembering(record.snapshot)
        try:
            usage = self._batches.accepted(record, batch, requested_by=record.owner)
        except IdTaken:  # another process has just recorded it
            return False
        if usage is not None:
            logger.info("batch %r at %r is adopted as %s", batch.id, record.provider, record.uid)
            send_accepted(record, batch, usage, requested_by=record.owner)
        return usage is not None


def is_submitting(record: Record) -> bool:
    """Return whether a batch is being submitted by a process that is known to be alive."""
    return record.state == "submitting" and (record.lease_until or 0) > time.time()


def may_be(record: Record, batch: Batch) -> bool:
    """Return whether a batch without a uid may be an unsettled one, by its time and number of requests."""
    given_up_at = record.lease_until or record.created_at
    in_time = record.created_at - MARGIN <= batch.created_at <= given_up_at + MARGIN
    return in_time and _total(batch) in (record.requests, 0)


def _total(batch: Batch) -> int:
    """Return how many requests a batch has; 0 until the provider has counted them."""
    return (batch.request_counts or {}).get("total") or 0


def send_accepted(record: Record, batch: Batch, usage: Usage, *, requested_by: str) -> None:
    """Send the signals of a batch that is now known to be at its provider; a part has none."""
    if record.part_of is not None:
        return
    batch = record.shown(batch)
    send(batch_submitted, batch=batch, owner=record.owner, requested_by=requested_by)
    send(usage_recorded, usage=usage)
    if batch.finished:  # no later call will see it end
        send(batch_finished, batch=batch, owner=record.owner)
