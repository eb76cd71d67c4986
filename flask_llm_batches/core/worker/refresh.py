"""Retrieves a running batch, and settles one whose create got no answer."""

from __future__ import annotations

import time

from flask_llm_batches.batch import FINISHED
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.parts import Parts
from flask_llm_batches.core.reconcile import FRESH, Reconciler
from flask_llm_batches.core.webhooks import Targets
from flask_llm_batches.core.worker.steps import Next
from flask_llm_batches.store.batches import UNSETTLED_STATES
from flask_llm_batches.store.models import Record

# A batch is retrieved again after this share of its age: after seconds at first, five minutes at most.
_SHARE, _LONGEST = 0.1, 300


class Refresh:
    """The step that follows a batch until it has ended."""

    def __init__(self, lookup: Lookup, reconciler: Reconciler, parts: Parts, targets: Targets) -> None:
        self._parts = parts
        self._lookup = lookup
        self._reconciler = reconciler
        self._targets = targets

    def __call__(self, record: Record, _failures: int) -> Next:
        if record.state in UNSETTLED_STATES:
            record = self._reconciler.settled(record)
            if record.state in UNSETTLED_STATES:
                return Next("it is not known yet", after=self._reconciler.retry_after(record))
        if record.status is None:  # the provider refused it
            return Next("it was refused")
        if record.state == "split":  # its end has been seen, or will be, by who sees that of its last part
            return Next("its parts are looked at")
        if record.part_of is not None and (record.state == "failed" or record.status in FINISHED):
            # its provider does not have it, or this process is the second one that sees its end
            self._parts.follow(record, record.last_seen())
            return Next(str(record.status), then={"archive": 0.0})
        batch = self._lookup.refresh(record)
        if batch.finished and record.part_of is not None:
            return Next(batch.status, then={"archive": 0.0})
        if batch.finished:
            then = {"archive": 0.0, "notify": 0.0} if self._targets.of(record) else {"archive": 0.0}
            return Next(batch.status, then=then)
        age = time.time() - record.created_at
        return Next(batch.status, after=min(max(FRESH, _SHARE * age), _LONGEST))
