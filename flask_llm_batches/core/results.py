"""The rows of a batch that has ended: streamed, and exactly one for every request that went in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

from flask_llm_batches.batch import NOT_EXECUTED, Row, RowError
from flask_llm_batches.core.usage import TokenCount

logger = logging.getLogger(__name__)

BEAT = 0.4
"""Seconds without a row after which a reader hears so, and can see whether anybody listens."""

Groups = Iterator[Sequence[Row] | None]
"""Rows as they come, some at a time; None says that there were none for a while."""

_MISSING = RowError("missing", "The provider gave no readable row for this request")


class Results:
    """Rows, to be read once: as dicts by iterating, or in groups as they come.

    The first rows are fetched when it is made, so that what is wrong by then is raised and not found halfway.

    Args:
        groups: The rows.
        status: Which of them to give, if not all.
        keep_waiting: Asked whenever there were no rows for a while whether to wait on for the first ones.

    Raises:
        LLMBatchesError: The provider failed; when reading, too.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        status: Literal["succeeded", "failed"] | None = None,
        keep_waiting: Callable[[], bool] = lambda: True,
    ) -> None:
        self._groups = groups
        self._status = status
        self._first: Groups = iter(())
        for group in groups:
            self._first = iter((group,))
            if group is not None or not keep_waiting():
                break

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Give ``{"custom_id", "result", "error"}``; exactly one of the last two is None."""
        for group in self.groups():
            for row in group or ():
                yield row.to_dict()

    def groups(self) -> Groups:
        """Give the rows as they come; None whenever there were none for a while."""
        for group in chain(self._first, self._groups):
            if group is None or self._status is None:
                yield group
            else:
                yield [row for row in group if (row.error is None) == (self._status == "succeeded")]

    def close(self) -> None:
        """End the download, if it has not ended."""
        self._groups.close()  # type: ignore[attr-defined]  # a generator, whose iterator type has no close


def each_once(
    groups: Groups, *, batch_id: str, batch_status: str, parts: Callable[[], Iterable[Sequence[str]]]
) -> Groups:
    """Give exactly one row for every request.

    Args:
        groups: What the provider gives: in any order, perhaps not all, perhaps some twice.
        batch_id: Whose they are, for the log.
        batch_status: Says why a request has no row.
        parts: Gives all ``custom_id``s that went in, some at a time; nothing when they are not known.
    """
    awaited = {hash(custom_id) for part in parts() for custom_id in part}
    if not awaited:
        yield from groups
        return
    strange = 0
    for group in groups:
        if group is None:
            yield None
            continue
        rows = []
        for row in group:
            try:
                awaited.remove(hash(row.custom_id))
            except KeyError:
                strange += 1
            else:
                rows.append(row)
        yield rows
    if strange:
        logger.warning(
            "batch %r: %d rows are left out: of no request of it, or of one that has its row already",
            batch_id,
            strange,
        )
    if awaited:
        error = NOT_EXECUTED.get(batch_status, _MISSING)
        for part in parts():
            yield [Row(custom_id, error=error) for custom_id in part if hash(custom_id) in awaited]


def accounted(groups: Groups, account: Callable[[TokenCount, int], None]) -> Groups:
    """Pass rows on, and account for them when the last one has been taken: their tokens, and how many."""
    count, rows = TokenCount(), 0
    for group in groups:
        for row in group or ():
            rows += 1
            if row.result is not None:
                count.add(row.result)
        yield group
    account(count, rows)
