"""Batches of several parts, and parts that take the place of others.

For its provider, a part is a batch of its own. It is as safe from crashes as any other batch: the intent is
recorded first, it has a uid of its own, and it is never submitted twice. If the provider has no room for a
part, or lost it, another part with the same requests replaces it.
"""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from flask_llm_batches.batch import FINISHED, Batch
from flask_llm_batches.core.merged import (
    NO_ROOM,
    count_replaced,
    is_cancelled,
    is_refused,
    merged,
    reason_of,
)
from flask_llm_batches.core.sources import Sources
from flask_llm_batches.core.webhooks import Targets
from flask_llm_batches.errors import LLMBatchesError, RequestsGone
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.signals import batch_finished, send
from flask_llm_batches.store import parts as store
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.intents import NewPart
from flask_llm_batches.store.lanes import Lanes
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.queue import Queue

logger = get_logger(__name__)

READ = 3600
"""Seconds for which somebody may still read the archives of parts when their batch has one of its own."""

_LIMIT = re.compile(r"Limit: ([0-9][0-9,]{0,20}) enqueued tokens")
_DAY = 24 * 3600
_RUN = ("in_progress", "finalizing", "completed")  # a part may have ended when it is looked at again
_MOST_PARTS = 2000  # of one batch, however small a limit its provider names
_LONGEST_MESSAGE = 2000
_WAIT = 30  # seconds until the next try, if the provider refused a part although it had no other
_MOST_REFUSALS = 40  # in a row, within about nine hours, after which a part has failed
_FEW_REFUSALS = 3  # the same, within some minutes, for one request above the limit that its provider names
_MOST_LOST = 24  # creates of the same requests in a row that made no batch: each takes a search window


class Parts:
    """The parts of one app's batches.

    Args:
        batches: Where batches are recorded.
        parts: Where their parts are found and changed.
        queue: Where parts wait.
        lanes: The limits of providers.
        sources: Where their requests are kept.
        providers: Where they run.
        targets: The targets of webhooks.
        retention: Days for which requests are kept after the end of a batch.
    """

    def __init__(
        self,
        batches: Batches,
        parts: store.Parts,
        queue: Queue,
        lanes: Lanes,
        sources: Sources,
        providers: Providers,
        targets: Targets,
        *,
        retention: int,
    ) -> None:
        self._batches = batches
        self._parts = parts
        self._queue = queue
        self._lanes = lanes
        self._sources = sources
        self._providers = providers
        self._targets = targets
        self._retention = retention

    def of(self, whole: Record) -> Sequence[Record]:
        """Return the parts of a batch, oldest first."""
        return self._parts.of(whole.uid)

    def in_the_way(self, whole: Record) -> Sequence[str]:
        """Return the uids of batches, of anybody, whose end parts of a batch may wait for."""
        return self._parts.in_the_way(whole)

    def whole(self, part: Record) -> Record | None:
        """Return the batch that has a part; None if it was purged."""
        return self._batches.by_uid(part.part_of or "")

    def changed(self, part: Record) -> None:
        """Update the batch of a part that has changed."""
        whole = self.whole(part)
        if whole is None or whole.status in FINISHED:
            return
        batch = merged(whole, self.of(whole))
        if batch.to_dict() == whole.snapshot:
            return
        then = {"archive": 0.0, "notify": 0.0} if self._targets.of(whole) else {"archive": 0.0}
        expire_at = int(time.time()) + self._retention * _DAY
        if self._parts.changed(whole, batch, then=then, expire_at=expire_at):
            logger.info("batch %r of %d requests is %s", whole.shown_id, whole.requests, batch.status)
            send(batch_finished, batch=whole.shown(batch), owner=whole.owner)

    def follow(self, part: Record, batch: Batch) -> Batch:
        """React to the state of a part that was just recorded, and return the part as it is then.

        The part is cancelled if its batch is being cancelled, or does not need it any more. If its provider
        had no room for it, its requests wait again. Its batch is updated.
        """
        if batch.status in ("validating", "in_progress") and not self._is_needed(part):
            batch = self._cancel(part) or batch
        if batch.status in _RUN and part.status == "validating":
            self._lanes.taken(part.provider, part.model)
        if is_refused(part, batch):
            self._wait_again(part, batch)
        if batch.finished:
            self._parts.hasten(part.provider, part.model)
        self.changed(part)
        return batch

    def _is_needed(self, part: Record) -> bool:
        """Return whether a running part is still needed: others may have replaced it before it was found."""
        whole = self.whole(part)
        if whole is None or whole.status in ("cancelling", *FINISHED):
            return False
        return count_replaced(self.of(whole))[part.uid] < part.requests

    def fail(self, part: Record, error: LLMBatchesError) -> None:
        """Record that a part that waits cannot be submitted."""
        described = {"code": error.code, "line": None, "message": str(error), "param": None}
        if self._queue.failed(part, [described]) is not None:
            # What a provider said is quoted: a line feed in it would start a new line of the log.
            logger.warning("a part of batch %s failed: %r", part.part_of, str(error))
            self.changed(part)

    def is_wanted(self, part: Record) -> bool:
        """Return whether a part that waits is to be submitted; one of a cancelled batch is cancelled."""
        whole = self.whole(part)
        if whole is not None and not is_cancelled(whole):
            return True
        self._queue.cancelled(part)
        self.changed(part)
        return False

    def divide(self, part: Record, *, tokens: int) -> bool:
        """Replace a part that waits by smaller ones of about so many tokens.

        Returns:
            Whether it is replaced. A part of one request is not, nor is one of a batch of very many parts.
        """
        pieces = max(2, -(-(part.tokens or 0) // tokens))
        most = -(-part.requests // pieces)
        whole = self.whole(part)
        if whole is None or most == part.requests:
            return False
        if len(self.of(whole)) + min(pieces, part.requests) > _MOST_PARTS:
            return False
        new = self._sources.pieces(part, of=most, retries=part.retries or 0)
        if self._parts.replace(whole, part, new):
            logger.info(
                "a part of batch %s is divided into %d, for a limit of %d tokens",
                whole.shown_id,
                len(new),
                tokens,
            )
        return True

    def retry(self, part: Record, custom_ids: Set[str], values: Mapping[str, Any]) -> None:
        """Queue the failed requests of a part again, if they are still kept, and record what was read."""
        whole = self.whole(part)
        if whole is not None and not is_cancelled(whole):
            try:
                new = self._sources.pieces(
                    part, of=part.requests, wanted=custom_ids, retries=(part.retries or 1) - 1
                )
            except RequestsGone:
                new = []
            if new:
                self._parts.replace(whole, part, new, values)
                return
        self.read(part, values)

    def read(self, part: Record, values: Mapping[str, Any]) -> None:
        """Record what was read of a part whose requests are not submitted again."""
        self._parts.collected(part, values)
        self.changed(part)

    def expire_archives(self, whole: Record) -> None:
        """Make the archives of the parts of a batch expire soon: the batch has its own archive now."""
        self._parts.expire_archives(whole.uid, at=int(time.time()) + READ)

    def cancel(self, whole: Record) -> None:
        """Cancel a batch: the parts that wait at once, and the others at their providers.

        Parts that are being submitted are cancelled by ``follow``, and so are those whose provider fails now.
        """
        at = int(time.time())
        batch = replace(whole.last_seen(), status="cancelling", cancelling_at=at)
        if not is_cancelled(whole) and not self._parts.cancel(whole, batch):
            return
        parts = self.of(whole)
        for part in parts:
            if part.state == "accepted" and part.status not in FINISHED:
                self._cancel(part)
        if parts:
            self.changed(parts[0])

    def _cancel(self, part: Record) -> Batch | None:
        try:
            batch = self._providers.cancel(part.provider, str(part.batch_id))
        except LLMBatchesError as error:
            logger.warning("a part of batch %s is not cancelled yet: %r", part.part_of, str(error))
            return None
        return self._batches.seen(part, batch.remembering(part.snapshot))[0]

    def queue(self, record: Record, batch: Batch) -> Batch | None:
        """Queue a batch that its provider has no room for, if the provider still has its requests.

        It keeps its id, and has one part from then on.
        """
        if not batch.input_file_id or not self._providers.adapter_of(record.provider).leaves_files:
            return None
        self._learn(record, batch)
        whole = self._queue.split(record, [_again(record, batch.input_file_id)], requested_by=None)
        whole = whole or self._batches.by_uid(record.uid)
        return None if whole is None or whole.state != "split" else whole.last_seen()

    def _wait_again(self, part: Record, batch: Batch) -> None:
        """Queue the requests of a part again, as its provider has no room for them or does not have them."""
        whole = self.whole(part)
        parts = [] if whole is None else self.of(whole)
        if whole is None or is_cancelled(whole) or any(one.replaces == part.uid for one in parts):
            return
        # Others wait behind it, and one request cannot be divided.
        is_too_large = part.requests == 1 and (part.tokens or 0) > (_limit_in(batch) or math.inf)
        most = _FEW_REFUSALS if is_too_large else _MOST_REFUSALS
        if reason_of(batch).get("code") == NO_ROOM and self._learn(part, batch) > most:
            self._give_up(part, batch, "no_room")
        elif _lost_in_a_row(part, parts) >= _MOST_LOST:
            self._give_up(part, batch, "no_answer")
        else:
            self._parts.replace(whole, part, [_again(part, batch.input_file_id)])

    def _give_up(self, part: Record, batch: Batch, code: str) -> None:
        """Let a part stay failed that would be submitted again."""
        final = {**reason_of(batch), "code": code}
        self._batches.seen(part, replace(batch, errors={"object": "list", "data": [final]}))

    def _learn(self, part: Record, batch: Batch) -> int:
        """Remember what a refusal says about the room; return how often the model was refused in a row."""
        return self._lanes.no_room(
            part.provider, part.model, tokens=part.tokens or 0, limit=_limit_in(batch), wait=_WAIT
        )


def _again(part: Record, input_file_id: str | None) -> NewPart:
    """Return a part with the same requests as another one."""
    return NewPart(
        uuid.uuid4().hex,
        part.provider,
        part.model,
        part.requests,
        part.tokens or 0,
        part.source,
        (),
        part.retries or 0,
        input_file_id=None if part.source else input_file_id,
        copies=part.uid,
    )


def _lost_in_a_row(part: Record, parts: Sequence[Record]) -> int:
    """Return how many parts with the same requests their provider never got, one after the other."""
    by_uid = {one.uid: one for one in parts}
    count, last = 0, by_uid.get(part.uid)
    while last is not None and last.state == "failed":
        count, last = count + 1, by_uid.get(last.replaces or "")
    return count


def _limit_in(batch: Batch) -> int | None:
    """Return the limit that OpenAI names in the words of a refusal."""
    message = reason_of(batch).get("message")
    found = _LIMIT.search(message[:_LONGEST_MESSAGE]) if isinstance(message, str) else None
    return int(found[1].replace(",", "")) or None if found else None
