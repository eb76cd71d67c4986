"""The rows of results while they are read: each request has one, and they are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from flask_llm_batches.batch import MISSING, NOT_EXECUTED, TOO_LARGE, UNREADABLE, Batch, Row, RowError
from flask_llm_batches.core.counting import TokenCount
from flask_llm_batches.errors import ProviderFailed
from flask_llm_batches.log import get_logger

logger = get_logger(__name__)

Groups = Iterator[Sequence[Row] | None]
"""Rows in groups as they come, and None whenever none came for a while."""

_LEFT_OUT = 1_000_000  # a provider that sends more rows of unknown requests may never stop


class Counted:
    """What was counted in rows of one model.

    Attributes:
        tokens: Their tokens.
        rows: Their number.
        failed: How many have no result.
        damaged: How many are damaged.
    """

    def __init__(self) -> None:
        self.tokens = TokenCount()
        self.rows = self.failed = self.damaged = 0


class Counts:
    """What was counted in the rows of a batch.

    Attributes:
        of: By provider and model.
    """

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], Counted] = {}

    def counted(self, groups: Groups, provider: str, model: str) -> Groups:
        """Yield rows of a model at a provider, and count them."""
        counted = self.of.setdefault((provider, model), Counted())
        for group in groups:
            for row in group or ():
                counted.rows += 1
                if row.result is not None:
                    counted.tokens.add(row.result)
                else:
                    counted.failed += 1
                    counted.damaged += row.error is UNREADABLE
            yield group

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.of.values())

    @property
    def failed(self) -> int:
        return sum(one.failed for one in self.of.values())

    @property
    def damaged(self) -> int:
        return sum(one.damaged for one in self.of.values())


class DamagedRows(Exception):
    """Rows are damaged, and may be intact when they are read later."""


class _Counter:
    """Counts the rows of a batch.

    Args:
        awaited: The hashes of the ``custom_id``s that have no row yet; empty if they are not known.
    """

    def __init__(self, awaited: set[int]) -> None:
        self.awaited = awaited
        self.rows = self.failed = self.damaged = self.left_out = 0
        self._known = bool(awaited)

    def take(self, group: Sequence[Row]) -> Sequence[Row]:
        """Count rows, and return those that are the first of a request."""
        rows: list[Row] = []
        for row in group:
            if self._known:
                try:
                    self.awaited.remove(hash(row.custom_id))
                except KeyError:
                    self.left_out += 1
                    self.damaged += row.error is UNREADABLE
                    continue
            rows.append(row)
            if row.error is not None and row.error not in _RESULTS:
                self.failed += 1
        self.rows += len(rows)
        return rows

    def lacks(self, promised: tuple[int, int]) -> int:
        """Return how many of the rows that the provider counted are missing."""
        results, rows = promised
        return max(0, results - (self.rows - self.failed), rows - self.rows)


# The errors of rows that may have had a result.
_RESULTS = (UNREADABLE, TOO_LARGE)


def each_once(
    groups: Groups,
    *,
    batch: Batch,
    promised: tuple[int, int],
    parts: Callable[[], Iterable[Sequence[str]]],
) -> Groups:
    """Yield exactly one row for every request.

    Args:
        groups: The provider's rows, in any order; some may be missing, and some may come twice.
        batch: Their batch.
        promised: The number of results, and the number of rows, that the provider has counted.
        parts: Returns all ``custom_id``s of the batch, some at a time; nothing if they are not known.

    Raises:
        ProviderFailed: Fewer rows came than ``promised``, as the download broke off without an error. Or far
            too many rows came.
    """
    awaited = {hash(custom_id) for part in parts() for custom_id in part}
    known = bool(awaited)
    counter = _Counter(awaited)
    for group in groups:
        yield None if group is None else counter.take(group)
        if counter.left_out > _LEFT_OUT:
            logger.warning("batch %r: more than %d rows belong to no request of it", batch.id, _LEFT_OUT)
            raise ProviderFailed("LLM provider error")
    if counter.left_out:
        logger.warning(
            "batch %r: %d rows are left out: they belong to no request of it, or to one that has a row",
            batch.id,
            counter.left_out,
        )
    if known and not awaited:
        return
    lacking = counter.lacks(promised)
    if lacking > counter.damaged:  # a damaged row may have lost its custom_id, but it came
        logger.warning("batch %r: the download broke off, %d rows before its end", batch.id, lacking)
        raise ProviderFailed("LLM provider error")
    error = UNREADABLE if lacking else NOT_EXECUTED.get(batch.status, MISSING)
    for part in parts():
        yield [Row(custom_id, error=error) for custom_id in part if hash(custom_id) in awaited]


def without(groups: Groups, replaced: AbstractSet[int]) -> Groups:
    """Yield rows except those of requests that other parts submit again: the hashes in ``replaced``."""
    for group in groups:
        yield [row for row in group if hash(row.custom_id) not in replaced] if group and replaced else group


def failure_of(batch: Batch) -> RowError:
    """Return why the requests of a part that failed have no results."""
    problems = (batch.errors or {}).get("data") or [{}]
    message = problems[0].get("message") if isinstance(problems[0], dict) else None
    return RowError.of("batch_failed", f"Its part of the batch failed: {message or 'no reason is known'}")
