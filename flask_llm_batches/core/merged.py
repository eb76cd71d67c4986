"""Computes a batch from its parts: its status, its counts, its errors and its times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from flask_llm_batches.batch import Batch
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.reasons import NOT_THERE

NO_ROOM = "token_limit_exceeded"
"""OpenAI's code of a batch that failed because too many tokens wait already.

https://github.com/openai/openai-python/issues/2084 has such a batch.
"""

_MAX_ERRORS = 50


def is_cancelled(whole: Record) -> bool:
    """Return whether a batch is being cancelled, or was."""
    return whole.snapshot.get("cancelling_at") is not None


def is_refused(record: Record, batch: Batch) -> bool:
    """Return whether a batch failed because its provider has no room for it, or never got it."""
    reason = NO_ROOM if record.state == "accepted" else NOT_THERE["code"]
    return batch.status == "failed" and reason_of(batch).get("code") == reason


def count_replaced(parts: Iterable[Record]) -> Counter[str]:
    """Return how many requests of each part are submitted again by other parts, by the uid of the part."""
    replaced: Counter[str] = Counter()
    for part in parts:
        if part.replaces is not None:
            replaced[part.replaces] += part.requests
    return replaced


def merged(whole: Record, parts: Sequence[Record]) -> Batch:
    """Return a batch as it is now, computed from its parts."""
    replaced = count_replaced(parts)
    cancelled = is_cancelled(whole)
    outcomes = [_Outcome.of(part, replaced[part.uid]) for part in parts]
    running = [one for one in outcomes if not one.is_done(is_cancelled=cancelled)]
    completed, failed = sum(one.completed for one in outcomes), sum(one.failed for one in outcomes)
    batches = [one.batch for one in outcomes]
    status = _status_of(running, is_cancelled=cancelled) if running else _end_of(outcomes)
    ended_at = max((getattr(one, f"{one.status}_at") or 0 for one in batches if one.finished), default=0)
    times: dict[str, Any] = {} if running else {f"{status}_at": ended_at or int(time.time())}
    problems = [
        problem for one in outcomes if one.failed for problem in (one.batch.errors or {}).get("data", ())
    ]
    return replace(
        whole.last_seen(),
        status=status,
        request_counts={"total": whole.requests, "completed": completed, "failed": failed},
        in_progress_at=min((one.in_progress_at for one in batches if one.in_progress_at), default=None),
        expires_at=max((one.expires_at for one in batches if one.expires_at), default=None),
        errors={"object": "list", "data": problems[:_MAX_ERRORS]} if status == "failed" else None,
        **times,
    )


class _Outcome(NamedTuple):
    """What a part adds to its batch.

    Attributes:
        part: The part.
        batch: The part, as it was last seen.
        completed: How many of its requests have succeeded.
        failed: How many have failed, and are not submitted again by other parts.
        replaced: How many of its requests other parts submit again. If it is all of them, the part does not
            count.
    """

    part: Record
    batch: Batch
    completed: int
    failed: int
    replaced: int

    @classmethod
    def of(cls, part: Record, replaced: int) -> _Outcome:
        batch = part.last_seen()
        if replaced >= part.requests:
            return cls(part, batch, 0, 0, replaced)
        # Rows that were read are counted here; until then, the provider's own counts have to do.
        counts = batch.request_counts or {}
        completed, failed = (_at_most(part.requests, counts.get(name)) for name in ("completed", "failed"))
        if part.failed_rows is not None:
            completed = part.requests - part.failed_rows
        if batch.finished:
            failed = part.requests - completed
        return cls(part, batch, completed, max(0, failed - replaced), replaced)

    def is_done(self, *, is_cancelled: bool) -> bool:
        """Return whether the batch need not wait for this part any more."""
        if self.replaced >= self.part.requests:
            return True
        if not self.batch.finished:
            return False
        return (
            is_cancelled or self.replaced > 0 or not (self.part.retries or is_refused(self.part, self.batch))
        )


def _status_of(running: Sequence[_Outcome], *, is_cancelled: bool) -> str:
    statuses = {one.batch.status for one in running}
    if is_cancelled:
        return "cancelling"
    return (
        statuses.pop() if len(statuses) == 1 and statuses <= {"validating", "finalizing"} else "in_progress"
    )


def _end_of(outcomes: Sequence[_Outcome]) -> str:
    """Return the status of a batch whose parts have all ended."""
    statuses = {one.batch.status for one in outcomes if one.failed}
    for status in ("cancelled", "expired"):
        if status in statuses:
            return status
    return "failed" if statuses == {"failed"} and not any(one.completed for one in outcomes) else "completed"


def _at_most(most: int, count: object) -> int:
    return min(count, most) if isinstance(count, int) else 0


def reason_of(batch: Batch) -> Mapping[str, Any]:
    """Return the first error of a batch; empty if it has none."""
    problems = (batch.errors or {}).get("data") or [{}]
    return problems[0] if isinstance(problems[0], Mapping) else {}
