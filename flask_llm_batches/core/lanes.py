"""Submits parts as their providers have room for them, owner by owner."""

from __future__ import annotations

import re
import time
from functools import partial

from flask_llm_batches.core.asked import Asked
from flask_llm_batches.core.create import Creator
from flask_llm_batches.core.heartbeat import Heartbeat
from flask_llm_batches.core.parts import Parts
from flask_llm_batches.core.sources import Sources
from flask_llm_batches.core.spool import Model
from flask_llm_batches.core.worker.steps import Next
from flask_llm_batches.errors import LLMBatchesError, RecordUnavailable
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.adapters import Submission
from flask_llm_batches.providers.clients import SubmitFailed, Withdrawn
from flask_llm_batches.store import lanes as store
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import Lane, Record
from flask_llm_batches.store.queue import Queue

logger = get_logger(__name__)

_BUDGET = 20.0  # seconds after which a worker looks at what else is due
_BUSY = 5.0  # seconds until the next look at a lane that another process serves, or whose part is validated
_FULL = 60.0  # the same for a lane that is full; if a part ends, the next look is earlier
_FIRST_WAIT, _LONGEST_WAIT = 5, 900
_PATIENCE = 0.1  # requests that cannot be read are read again after this share of the time since then
_DAY = 24 * 3600
_LEARNED = 3600  # seconds for which a limit is remembered
_MOST_FAILURES = 60  # in a row, within about fourteen hours, after which a part has failed


class Dispatcher:
    """Submits the parts of one app's batches.

    A lane is the queue of one model at one provider. One process at a time submits its parts. The provider
    validates one part at a time until its limit is known. Then parts are submitted as they fit.
    """

    def __init__(
        self,
        creator: Creator,
        batches: Batches,
        queue: Queue,
        lanes: store.Lanes,
        parts: Parts,
        sources: Sources,
        heartbeat: Heartbeat,
    ) -> None:
        self._creator = creator
        self._batches = batches
        self._queue = queue
        self._lanes = lanes
        self._parts = parts
        self._sources = sources
        self._heartbeat = heartbeat

    def __call__(self, whole: Record) -> Next:
        """Submit the waiting parts in all lanes that a batch has waiting parts in, whoever owns them."""
        ends_at = time.monotonic() + _BUDGET
        waiting = [part for part in self._parts.of(whole) if part.state == "queued"]
        waits = [
            self._serve(provider, model, ends_at)
            for provider, model in dict.fromkeys((part.provider, part.model) for part in waiting)
        ]
        left = sum(part.state == "queued" for part in self._parts.of(whole))
        if left:
            return Next(
                f"{left} parts wait", after=min((one for one in waits if one is not None), default=0.0)
            )
        return Next("no part of it waits")

    def _serve(self, provider: str, model: str, ends_at: float) -> float | None:
        """Submit the parts of a lane.

        Returns:
            The seconds until it is to be looked at again; None if no part waits.
        """
        lane = self._lanes.claim(provider, model)
        if lane is None:
            return _BUSY
        try:
            with self._heartbeat.during(partial(self._lanes.extend_lease, lane)):
                while (part := self._lanes.next(lane)) is not None:
                    wait = self._room(lane, part) if self._parts.is_wanted(part) else 0.0
                    if wait is None:
                        wait = self._submit(lane, part)
                    if wait > 0 or time.monotonic() >= ends_at:
                        return wait
                    now = self._lanes.find(lane)
                    if now.lease_token != lane.lease_token:  # it was too slow: another process serves it
                        return _BUSY
                    lane = now
        finally:
            self._lanes.release(lane)
        return None

    def _room(self, lane: Lane, part: Record) -> float | None:
        """Return the seconds until there may be room for a part; None if it is to be submitted now."""
        now = time.time()
        if (lane.refused_until or 0) > now:
            return (lane.refused_until or 0) - now
        flying = self._lanes.flying(lane)
        limit = lane.token_limit if (lane.learned_at or 0) + _LEARNED > now else None
        if limit is None:
            return _BUSY if flying.validating else None
        try:
            if (part.tokens or 0) > limit and self._parts.divide(part, tokens=limit):
                return 0.0
        except RecordUnavailable:
            raise
        except LLMBatchesError as error:
            return self._unreadable(part, error)
        has_room = flying.tokens + (part.tokens or 0) <= limit
        return None if has_room or not flying.batches else _FULL

    def _submit(self, lane: Lane, part: Record) -> float:
        """Submit a part, and return the seconds until the next one may be submitted."""
        snapshot = part.snapshot
        asked = Asked(
            part.provider,
            Model(part.model, f"{part.provider}:{part.model}", is_given=True),
            Submission(
                part.model, snapshot["endpoint"], snapshot["completion_window"], snapshot["metadata"] or {}
            ),
        )
        try:
            with self._sources.spool(part) as spool:
                batch = self._creator.submit(
                    part, asked, spool, requested_by=part.owner, begin=partial(self._begin, part)
                )
        except Withdrawn:
            return 0.0
        except SubmitFailed as failure:
            now = self._batches.by_uid(part.uid) or part
            if failure.maybe_created:
                self._creator.not_accepted(now, failure, part.owner)
                return 0.0
            self._queue.again(now)
            return self._refused(lane, part, failure.error)
        except RecordUnavailable:
            raise
        except LLMBatchesError as error:
            return self._unreadable(part, error)
        if batch.status != "validating":
            self._lanes.taken(lane.provider, lane.model)
        self._parts.changed(part)
        return 0.0

    def _begin(self, part: Record) -> Record:
        """Record that a part is submitted now.

        Raises:
            Withdrawn: It was cancelled, or another process submits it.
        """
        begun = self._queue.submitting_part(part)
        if begun is None:
            raise Withdrawn
        return begun

    def _unreadable(self, part: Record, error: LLMBatchesError) -> float:
        """Let a part whose requests cannot be read now wait behind the others, for a day at most."""
        since = self._queue.postponed(part)
        if not error.passes or time.time() >= since + _DAY:
            self._parts.fail(self._batches.by_uid(part.uid) or part, error)
            return 0.0
        logger.warning("the requests of a part of batch %s are not there: %r", part.part_of, str(error))
        return min(max(_FIRST_WAIT, _PATIENCE * (time.time() - since)), _LONGEST_WAIT)

    def _refused(self, lane: Lane, part: Record, error: LLMBatchesError) -> float:
        if not error.passes or lane.failures >= _MOST_FAILURES:
            self._parts.fail(self._batches.by_uid(part.uid) or part, error)
            return 0.0
        asked_for = error.retry_after or ""
        wait: int = max(
            int(asked_for) if re.fullmatch("[0-9]{1,6}", asked_for) else 0,
            _FIRST_WAIT * 2 ** min(lane.failures, 10),
        )
        wait = min(wait, _LONGEST_WAIT)
        logger.warning("a part of batch %s waits for %d seconds: %r", part.part_of, wait, str(error))
        self._lanes.refused(lane, until=int(time.time()) + wait)
        return wait
