"""Lists of batches: of an owner from the record, of everyone what a provider has."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from flask_llm_batches.batch import FINISHED, STATUSES, Batch
from flask_llm_batches.config import provider_name
from flask_llm_batches.core.adoption import Adopter
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.reconcile import FRESH, Reconciler
from flask_llm_batches.errors import REQUIRED, BatchNotFound, ValidationFailed
from flask_llm_batches.fields import is_id
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

        Those of an owner, or with a status, are from the record; otherwise it is what the provider has.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise ValidationFailed.of(
                f"Must be greater than or equal to 1 and less than or equal to {MAX_PAGE}.", "limit"
            )
        if status is not None and status not in STATUSES:
            raise ValidationFailed.of(f"Must be one of: {', '.join(sorted(STATUSES))}.", "status")
        if owner is None and status is None:
            return self._list_provider(provider, after, limit)
        name = None if provider is None else provider_name(provider)
        last = None
        if after is not None:
            found = self._batches.find(after) if is_id(after) else ()
            last = next(
                (one for one in found if owner in (None, one.owner) and name in (None, one.provider)), None
            )
            if last is None:
                raise ValidationFailed.of("Not the id of a batch in this list.", "after")
        if owner is not None:
            self._reconciler.settle_theirs(owner=owner, provider=name)
        if status is not None:
            self._refreshed(self._batches.running(owner=owner, provider=name, limit=MAX_PAGE))
        records, has_more = self._batches.list(
            owner=owner, provider=name, status=status, after=last, limit=limit
        )
        if name is not None and not records:
            self._providers.name_of(name)  # one that is not in the settings any more may have batches here
        if status is not None:
            return Page([record.last_seen() for record in records], has_more)
        return Page(self._refreshed(records), has_more)

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
        return Page([self._lookup.seen(ours.get(batch.id), batch) for batch in page.batches], page.has_more)

    def _refreshed(self, records: Sequence[Record]) -> Sequence[Batch]:
        before = int(time.time()) - FRESH
        running = [one for one in records if one.batch_id is not None and one.status not in FINISHED]
        stale = [one for one in running if (one.refreshed_at or 0) <= before]
        due = list(self._batches.claim_refresh(stale, before=before)) if stale else []
        random.shuffle(due)  # not all may get a turn, and next time it is the turn of others
        answers = self._providers.retrieve_many([(one.provider, str(one.batch_id)) for one in due])
        fresh = {
            record.id: self._lookup.missing(record)
            if isinstance(answer, BatchNotFound)
            else self._lookup.seen(record, answer)
            for record, answer in zip(due, answers, strict=True)
            if answer is not None
        }
        return [fresh.get(one.id) or one.last_seen() for one in records]
