"""Batches of which nobody knows whether the provider has them: found in its list, or noted as failed.

A create leaves one behind when its process died, the connection broke or the provider said 5xx. It is never
sent again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from flask_llm_batches.batch import UID_KEY, Batch
from flask_llm_batches.config import Settings
from flask_llm_batches.core.spool import sweep
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.store.records import SETTLED, Record, Records
from flask_llm_batches.store.usage import Usage

logger = logging.getLogger(__name__)

FRESH = 2
"""Seconds in which a provider is not asked again after what a list or a look-up asked for."""

_PAGE = 100

# Seconds that the provider's clock may differ from ours, and that it may take to list a batch.
_SLACK = 60


class Settled(NamedTuple):
    """How a batch stands of which nobody knew.

    Attributes:
        uid: Our own id of it.
        provider: Where it may be.
        owner: Whose it is.
        state: ``accepted`` when it was found, ``failed`` when it is not there; ``submitting`` or ``unknown``
            as before.
    """

    uid: str
    provider: str
    owner: str
    state: str


class Reconciler:
    """Settles the unsettled batches of one app.

    Args:
        settings: Say how long a create may take.
        records: Where they are kept.
        providers: Where they may be.
        adopted: Hears of each that was found: its record, the batch, and the usage that was written.
    """

    def __init__(
        self,
        settings: Settings,
        records: Records,
        providers: Providers,
        adopted: Callable[[Record, Batch, Usage], None],
    ) -> None:
        self._records = records
        self._providers = providers
        self._adopted = adopted
        self._spool_dir = settings.spool_dir
        self._longest = settings.transfer_timeout + _SLACK

    def settle(self, record: Record, *, older_than: float | None = None) -> str:
        """Look for a batch, and say how it stands now: ``accepted``, ``failed``, or as before.

        Args:
            record: As it was a moment ago.
            older_than: Seconds after which nobody is submitting it any more, and the provider lists it if it
                has it; how long a create may take unless given.

        Raises:
            LLMBatchesError: The provider gives no list.
        """
        if record.state in SETTLED:  # whoever made it was quicker
            return record.state
        now = time.time()
        if record.state == "submitting" and now - record.created_at < (
            self._longest if older_than is None else older_than
        ):
            return record.state
        found = self._find(record)
        if len(found) > 1:
            return record.state
        if not found and older_than is None and now - self._records.given_up_at(record) < _SLACK:
            return record.state
        if not found:
            self._records.not_there(record)
            return "failed"
        batch = found[0].remembering(record.snapshot)
        usage = self._records.accepted(record, batch, requested_by=record.owner)
        if usage is not None:
            self._adopted(record, batch, usage)
        return "accepted"

    def settle_theirs(self, *, owner: str, provider: str | None) -> None:
        """Settle an owner's, unless tried a moment ago; a provider that gives no list is asked once."""
        unsettled = self._records.unsettled(owner=owner, provider=provider)
        if not unsettled:
            return
        silent = set()
        for record in self._records.claim_refresh(unsettled, before=int(time.time()) - FRESH):
            if record.provider in silent:
                continue
            try:
                self.settle(record)
            except LLMBatchesError:
                silent.add(record.provider)
                logger.warning("batch %s stays %s: its provider gives no list", record.uid, record.state)

    def settle_every(self, *, older_than: float | None) -> Iterator[Settled]:
        """Settle all of them, and delete the spooled requests of creates that were killed."""
        for record in self._records.unsettled():
            try:
                state = self.settle(record, older_than=older_than)
            except LLMBatchesError:
                state = record.state
            yield Settled(record.uid, record.provider, record.owner, state)
        sweep(self._spool_dir, older_than=self._longest)

    def _find(self, record: Record) -> list[Batch]:
        """Give the one batch that it is, none, or all that it may be."""
        similar = []
        after = None
        latest = record.created_at + self._longest
        if record.state == "unknown":  # somebody saw it fail
            latest = self._records.given_up_at(record) + _SLACK
        while True:
            page = self._providers.list(record.provider, after=after, limit=_PAGE)
            for batch in page.batches:
                uid = (batch.metadata or {}).get(UID_KEY)
                if uid == record.uid:
                    return [batch]
                if uid is None and _is_similar(record, batch, latest):
                    similar.append(batch)
            if not (page.has_more and page.batches) or (
                page.batches[-1].created_at < record.created_at - _SLACK
            ):
                break
            after = page.batches[-1].id
        if self._providers.adapter_of(record.provider).keeps_metadata:
            return []
        # By id alone: two entries of LLM_BATCHES_PROVIDERS may be the same account.
        strange = [batch for batch in similar if not self._records.find(batch.id)]
        # With a second record that one of them may be, or a count that is not there yet, none is certain.
        certain = all(_total(batch) == record.requests for batch in strange) and not self._has_rival(record)
        return strange if certain else strange * 2

    def _has_rival(self, record: Record) -> bool:
        return any(
            other.uid != record.uid
            and other.requests == record.requests
            and abs(other.created_at - record.created_at) <= self._longest + _SLACK
            for other in self._records.unsettled(provider=record.provider)
        )


def _is_similar(record: Record, batch: Batch, latest: float) -> bool:
    in_time = record.created_at - _SLACK <= batch.created_at <= latest
    return in_time and _total(batch) in (record.requests, 0)


def _total(batch: Batch) -> int:
    """Say how many requests a batch has; 0 until the provider has counted them."""
    return (batch.request_counts or {}).get("total") or 0
