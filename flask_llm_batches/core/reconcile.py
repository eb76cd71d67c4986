"""Settles unsettled batches: those that the provider may or may not have.

A create leaves an unsettled batch if its process died, if the connection broke, or if the provider answered
with a 5xx. It is never submitted again. One process at a time searches the list of a provider for all of its
unsettled batches. A batch in the list that has our uid in its metadata is adopted. A batch that is not in the
whole list has failed, once the provider has had the time to list it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from flask_llm_batches.config import Settings
from flask_llm_batches.core.adoption import Adopter, is_submitting, may_be
from flask_llm_batches.core.heartbeat import Heartbeat
from flask_llm_batches.core.search import Walk
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.store.batches import UNSETTLED_STATES, Batches
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.searches import Searches

logger = get_logger(__name__)

FRESH = 2
"""Seconds for which a provider's answer to a list or a look-up counts as fresh."""

GRACE = 120
"""The least value of ``older_than``, in seconds: a provider needs time to list a new batch."""

# A batch that was not found is looked for again after this share of the time for which it has been missing.
_PATIENCE = 0.1

# Seconds for which an operator waits for the search of another process.
_LONGEST_WAIT = 150


class Settled(NamedTuple):
    """The outcome for an unsettled batch.

    Attributes:
        uid: Our own id of it.
        provider: The provider that may have it.
        owner: Its owner.
        state: ``accepted`` if it was found, ``failed`` if it is not there; ``submitting`` or ``unknown`` if
            it is still unsettled.
        candidates: The provider's ids of batches that may be it, at a provider that keeps no metadata.
    """

    uid: str
    provider: str
    owner: str
    state: str
    candidates: Sequence[str] = ()


class Reconciler:
    """Settles the unsettled batches of one app."""

    def __init__(
        self,
        settings: Settings,
        batches: Batches,
        searches: Searches,
        providers: Providers,
        heartbeat: Heartbeat,
        adopter: Adopter,
    ) -> None:
        self._settings = settings
        self._batches = batches
        self._searches = searches
        self._providers = providers
        self._heartbeat = heartbeat
        self._adopter = adopter

    def settled(self, record: Record) -> Record:
        """Look for a batch if a search is due, and return its record."""
        if record.state not in ("accepted", "queued", "split") and not is_submitting(record):
            self._search_if_due(record.provider, [record])
        return self._batches.by_uid(record.uid) or record

    def retry_after(self, record: Record) -> int:
        """Return the seconds until an unsettled batch is looked for again."""
        if record.state == "queued" or is_submitting(record):
            return FRESH
        due = self._due(record, self._searches.searched_at(record.provider))
        return max(FRESH, math.ceil(due - time.time()))

    def settle_theirs(self, *, owner: str, provider: str | None) -> None:
        """Look for the unsettled batches of an owner where a search is due."""
        for name, records in _by_provider(self._batches.unsettled(owner=owner, provider=provider)):
            self._search_if_due(name, records)

    def settle_every(self, *, older_than: float | None) -> Sequence[Settled]:
        """Look for all unsettled batches now.

        Args:
            older_than: Seconds after which a batch that is not there has failed; None for the search window.
        """
        window = None if older_than is None else max(older_than, GRACE)
        settled = []
        for provider, records in _by_provider(self._batches.unsettled()):
            candidates = self._search_now(provider, window)
            now = {record.uid: record for record in self._batches.by_uids([one.uid for one in records])}
            settled += [
                Settled(one.uid, provider, one.owner, now[one.uid].state, candidates.get(one.uid, ()))
                for one in records
                if one.uid in now
            ]
        return settled

    def _due(self, record: Record, searched_at: int | None) -> float:
        """Return the time of the next search for an unsettled batch."""
        given_up_at = record.lease_until or record.created_at
        if searched_at is None or searched_at < given_up_at:
            return given_up_at
        again = searched_at + max(FRESH, _PATIENCE * (searched_at - given_up_at))
        decided = given_up_at + self._settings.search_window
        return min(again, decided) if searched_at < decided else again

    def _search_if_due(self, provider: str, records: Sequence[Record]) -> None:
        searched_at = self._searches.searched_at(provider)
        now = time.time()
        if not any(self._due(one, searched_at) <= now for one in records if not is_submitting(one)):
            return
        token = self._searches.claim(provider, searched_at=searched_at)
        if token is not None:
            self._search(provider, token, self._settings.search_window, extra=records)

    def _search_now(self, provider: str, window: float | None) -> dict[str, list[str]]:
        """Search when no other process does, and return the candidates of batches that stay unsettled."""
        deadline = time.monotonic() + _LONGEST_WAIT
        while time.monotonic() < deadline:
            searched_at = self._searches.searched_at(provider)
            token = self._searches.claim(provider, searched_at=searched_at)
            if token is not None:
                window = self._settings.search_window if window is None else window
                return self._search(provider, token, window)
            time.sleep(0.2)
        logger.warning("another process searches the list of provider %r, and does not end", provider)
        return {}

    def _search(
        self, provider: str, token: str, window: float, *, extra: Sequence[Record] = ()
    ) -> dict[str, list[str]]:
        began_at = int(time.time())
        records = [*extra, *self._batches.unsettled(provider=provider)]
        missing = {one.uid: one for one in records if not is_submitting(one)}
        try:
            with self._heartbeat.during(partial(self._searches.extend_lease, provider, token)):
                return self._walk(provider, missing, given_up_before=began_at - window)
        except LLMBatchesError as error:
            logger.warning("%d batches at %r stay unknown: %s", len(missing), provider, type(error).__name__)
            return {}
        finally:
            self._searches.ended(provider, token, began_at=began_at)

    def _walk(
        self, provider: str, missing: dict[str, Record], *, given_up_before: float
    ) -> dict[str, list[str]]:
        if not missing:
            return {}
        keeps_metadata = self._providers.adapter_of(provider).keeps_metadata
        walk = Walk(self._providers, provider, back_to=min(one.created_at for one in missing.values()))
        candidates: dict[str, list[str]] = {uid: [] for uid in missing}
        for batches in walk.pages():
            for uid in self._adopter.notice(provider, batches):
                missing.pop(uid, None)
            if not missing:
                return {}
            if not keeps_metadata:
                unmarked = self._adopter.strangers(provider, batches)
                for uid, record in missing.items():
                    candidates[uid] += [batch.id for batch in unmarked if may_be(record, batch)]
        for uid, record in missing.items() if walk.complete else ():
            given_up_at = record.lease_until or record.created_at
            is_unsettled = record.state in UNSETTLED_STATES
            if given_up_at <= given_up_before and not candidates[uid] and is_unsettled:
                self._batches.not_there(record)
        return candidates


def _by_provider(records: Iterable[Record]) -> Iterable[tuple[str, list[Record]]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.provider, []).append(record)
    return found.items()
