"""Lists batches: those of an owner from the record, and those of everyone from a provider."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from flask_llm_batches.batch import FINISHED, STATUSES, Batch
from flask_llm_batches.config import provider_name
from flask_llm_batches.core.adoption import Adopter
from flask_llm_batches.core.lookup import Lookup, shown
from flask_llm_batches.core.reconcile import FRESH, Reconciler
from flask_llm_batches.errors import REQUIRED, BatchNotFound, ValidationFailed
from flask_llm_batches.fields import is_id
from flask_llm_batches.principal import is_owner
from flask_llm_batches.providers.adapters import Page
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import Record

MAX_PAGE = 100
"""The most batches of a page."""


class Lists:
    """Lists the batches of one app. An ``owner`` of None stands for everyone."""

    def __init__(
        self,
        batches: Batches,
        providers: Providers,
        reconciler: Reconciler,
        adopter: Adopter,
        lookup: Lookup,
    ) -> None:
        self._batches = batches
        self._providers = providers
        self._reconciler = reconciler
        self._adopter = adopter
        self._lookup = lookup

    def list(
        self,
        *,
        owner: str | None,
        provider: str | None,
        status: str | None,
        after: str | None,
        limit: int,
    ) -> Page:
        """List batches, newest first.

        Batches of an owner, or with a status, come from the record. Otherwise the provider lists them.
        """
        _check_page(limit, status)
        if owner is None and status is None:
            return self._list_provider(provider, after, limit)
        name = None if provider is None else provider_name(provider)
        last = None if after is None else self._last(after, owner=owner, provider=name)
        if owner is not None:
            self._reconciler.settle_theirs(owner=owner, provider=name)
        if status is not None:
            self._refreshed(self._batches.running(owner=owner, provider=name, limit=MAX_PAGE))
        records, has_more = self._batches.list(
            owner=owner, provider=name, status=status, after=last, limit=limit
        )
        if name is not None and not records:
            # which raises if it is unknown; a removed provider may have batches here
            self._providers.name_of(name)
        if status is not None:
            return Page([record.shown(record.last_seen()) for record in records], has_more)
        pairs = zip(records, self._refreshed(records), strict=True)
        return Page([record.shown(batch) for record, batch in pairs], has_more)

    def browse(
        self,
        *,
        owner: str | None,
        provider: str | None,
        status: str | None,
        search: str | None,
        after: str | None,
        limit: int,
    ) -> Page:
        """List batches of the record, newest first, as they were last seen."""
        _check_page(limit, status)
        name, metadata = None if provider is None else provider_name(provider), None
        if search is not None:
            found = self._batches.find(search) if is_id(search) else ()
            mine = [
                one
                for one in found
                if owner in (None, one.owner)
                and name in (None, one.provider)
                and status in (None, one.status)
            ]
            key, equals, value = search.partition("=")
            if found:
                return Page([one.shown(one.last_seen()) for one in mine], has_more=False)
            if equals:
                metadata = key.strip(), value.strip()
            elif not is_owner(search) or owner not in (None, search):
                return Page([], has_more=False)
            else:
                owner = search
        last = None if after is None else self._last(after, owner=owner, provider=name)
        records, has_more = self._batches.list(
            owner=owner, provider=name, status=status, after=last, limit=limit, metadata=metadata
        )
        return Page([record.shown(record.last_seen()) for record in records], has_more)

    def _last(self, after: str, *, owner: str | None, provider: str | None) -> Record:
        for one in self._batches.find(after) if is_id(after) else ():
            if owner in (None, one.owner) and provider in (None, one.provider):
                return one
        raise ValidationFailed.of("Not the id of a batch in this list.", "after")

    def _list_provider(self, provider: str | None, after: str | None, limit: int) -> Page:
        if provider is None:
            raise ValidationFailed.of(
                f"{REQUIRED} An admin lists what a provider has: name it, as in provider=openai.", "provider"
            )
        name = self._providers.name_of(provider)
        if after is not None and not is_id(after):
            raise ValidationFailed.of("Not the id of a batch in this list.", "after")
        page = self._providers.list(name, after=after, limit=limit)
        found = self._batches.find_all([batch.id for batch in page.batches])
        ours = {record.batch_id: record for record in found if record.provider == name}
        self._adopter.notice(name, [batch for batch in page.batches if batch.id not in ours])
        pairs = [(ours.get(batch.id), batch) for batch in page.batches]
        return Page([shown(one, self._lookup.seen(one, batch)) for one, batch in pairs], page.has_more)

    def _refreshed(self, records: Sequence[Record]) -> Sequence[Batch]:
        before = int(time.time()) - FRESH
        running = [
            one
            for one in records
            if one.batch_id is not None and one.status not in FINISHED and one.state != "split"
        ]
        stale = [one for one in running if (one.refreshed_at or 0) <= before]
        due = list(self._batches.claim_refresh(stale, before=before)) if stale else []
        random.shuffle(due)  # there may be no time for all of them, and next time others come first
        answers = self._providers.retrieve_many([(one.provider, str(one.batch_id)) for one in due])
        fresh = {
            record.id: self._lookup.missing(record)
            if isinstance(answer, BatchNotFound)
            else self._lookup.seen(record, answer)
            for record, answer in zip(due, answers, strict=True)
            if answer is not None
        }
        return [fresh.get(one.id) or one.last_seen() for one in records]


def _check_page(limit: int, status: str | None) -> None:
    if not 1 <= limit <= MAX_PAGE:
        raise ValidationFailed.of(
            f"Must be greater than or equal to 1 and less than or equal to {MAX_PAGE}.", "limit"
        )
    if status is not None and status not in STATUSES:
        raise ValidationFailed.of(f"Must be one of: {', '.join(sorted(STATUSES))}.", "status")
