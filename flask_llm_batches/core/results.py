"""The rows of a batch that has ended: streamed, and exactly one for every request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, count
from typing import Any, Literal

from flask import Flask, current_app

from flask_llm_batches.batch import MISSING, NOT_EXECUTED, TOO_LARGE, UNREADABLE, Batch, Row
from flask_llm_batches.core.archive import Archive
from flask_llm_batches.core.counting import TokenCount
from flask_llm_batches.core.prices import cost
from flask_llm_batches.errors import ProviderFailed
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.signals import send, usage_recorded
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.manifests import Manifests
from flask_llm_batches.store.models import Record

logger = get_logger(__name__)

BEAT = 0.4
"""Seconds without a row after which a reader gets None, and can check whether its caller is there."""

Groups = Iterator[Sequence[Row] | None]
"""Rows in groups as they come, and None whenever none came for a while."""

_LEFT_OUT = 1_000_000  # a provider that sends more rows of no request may never end


class Results:
    """The rows of a batch, which can be read once: as dicts by iterating, or in groups.

    The first rows are fetched at once, so that early errors are raised before anything is sent.

    Args:
        groups: The rows.
        status: ``succeeded`` or ``failed`` selects rows.
        keep_waiting: Called whenever no row came for a while: whether to keep waiting for the first one.

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
        """Yield ``{"custom_id", "result", "error"}``; exactly one of the last two is None."""
        for group in self.groups():
            for row in group or ():
                yield row.to_dict()

    def groups(self) -> Groups:
        """Yield the rows in groups as they come, and None whenever none came for a while."""
        for group in chain(self._first, self._groups):
            if group is None or self._status is None:
                yield group
            else:
                yield [row for row in group if (row.error is None) == (self._status == "succeeded")]

    def close(self) -> None:
        """End the download, if it has not ended."""
        self._groups.close()  # type: ignore[attr-defined]  # a generator, whose iterator type has no close


class ResultReader:
    """Reads the results of one app's batches."""

    def __init__(
        self, batches: Batches, manifests: Manifests, providers: Providers, archive: Archive
    ) -> None:
        self._batches = batches
        self._manifests = manifests
        self._providers = providers
        self._archive = archive

    def read(
        self,
        batch: Batch,
        record: Record | None,
        *,
        status: Literal["succeeded", "failed"] | None,
        requested_by: str,
        keep_waiting: Callable[[], bool],
    ) -> Results:
        """Read the results of a batch that has ended, from the archive if they are in it."""
        if record is not None and record.archived_at is not None:
            return Results(self._archive.rows(record), status=status, keep_waiting=keep_waiting)
        groups = self._complete(self._providers.rows(batch, beat=BEAT), record, batch)
        if record is not None and record.accounted_at is None:
            groups = self._accounted(groups, record, batch, requested_by)
        return Results(groups, status=status, keep_waiting=keep_waiting)

    def archive(self, record: Record, batch: Batch, *, keep: bool) -> int:
        """Read the results of a batch that has ended into the archive, and account for them.

        Args:
            record: The batch.
            batch: The batch as its provider has it.
            keep: Whether to keep the rows, and not only to account for them.

        Returns:
            The number of rows.

        Raises:
            DamagedRows: Rows are damaged, and may be whole later.
        """
        ends: list[tuple[TokenCount, int, int]] = []
        groups = accounted(
            self._complete(self._providers.rows(batch, beat=BEAT), record, batch),
            lambda *end: ends.append(end),
        )
        with self._archive.write(record) if keep else nullcontext(_drop) as add:
            for group in groups:
                add(group or ())
            ((counted, rows, damaged),) = ends
            if damaged and not batch.settled:
                raise DamagedRows(f"{damaged} rows are damaged")
        if record.accounted_at is None:
            self._account(record, counted, rows, requested_by=record.owner)
        if keep:
            self._batches.set_archived(record, at=int(time.time()))
        return rows

    def delete_archive(self, record: Record) -> None:
        """Delete the results of a batch from the archive."""
        self._batches.set_archived(record, at=None)
        self._archive.delete(record.uid)

    def _complete(self, groups: Groups, record: Record | None, batch: Batch) -> Groups:
        # Rows are read after the request and its context have ended, so each query has a context of its own.
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself

        def custom_ids() -> Iterator[Sequence[str]]:
            for part in count():
                with app.app_context():
                    ids = self._manifests.custom_ids(record.uid, part) if record is not None else ()
                if not ids:
                    return
                yield ids

        adapter = self._providers.adapter_of(batch.provider)
        promised = adapter.promised(batch)
        uncounted = promised == (0, 0) and batch.status == "completed" and not batch.settled
        if uncounted and record is not None and adapter.streams_results:
            promised = 0, record.requests  # without counts, a download that was cut looks like any other
        return each_once(groups, batch=batch, promised=promised, parts=custom_ids)

    def _accounted(self, groups: Groups, record: Record, batch: Batch, requested_by: str) -> Groups:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself

        def try_to_account(counted: TokenCount, rows: int, damaged: int) -> None:
            if damaged and not batch.settled:
                logger.warning("batch %r: not accounted for yet, as %d rows are damaged", batch.id, damaged)
                return
            try:
                with app.app_context():
                    self._account(record, counted, rows, requested_by=requested_by)
            except Exception:
                # The rows are complete, and must end so. The next reader accounts for them.
                logger.exception("batch %r: its results are not accounted for yet", batch.id)

        return accounted(groups, try_to_account)

    def _account(self, record: Record, counted: TokenCount, rows: int, *, requested_by: str) -> None:
        kind = self._providers.kind_of(record.provider)
        price = cost(counted.models, kind=kind, model=record.model, at=record.created_at)
        usage = self._batches.account(
            record, counted.tokens, requested_by=requested_by, rows=rows, cost=price
        )
        if usage is not None:
            send(usage_recorded, usage=usage)


def _drop(_rows: Sequence[Row]) -> None:
    """Keep no rows."""


class DamagedRows(Exception):
    """Rows that are damaged may be whole when they are read later."""


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
        ProviderFailed: There are fewer: the download broke off without an error.
    """
    awaited = {hash(custom_id) for part in parts() for custom_id in part}
    known = bool(awaited)
    counter = _Counter(awaited)
    for group in groups:
        yield None if group is None else counter.take(group)
        if counter.left_out > _LEFT_OUT:
            logger.warning("batch %r: more than %d rows are of no request of it", batch.id, _LEFT_OUT)
            raise ProviderFailed("LLM provider error")
    if counter.left_out:
        logger.warning(
            "batch %r: %d rows are left out: of no request of it, or of one that has its row already",
            batch.id,
            counter.left_out,
        )
    if known and not awaited:
        return
    lacking = counter.lacks(promised)
    if lacking > counter.damaged:  # one that has lost its custom_id is there all the same
        logger.warning("batch %r: the download broke off, %d rows before its end", batch.id, lacking)
        raise ProviderFailed("LLM provider error")
    error = UNREADABLE if lacking else NOT_EXECUTED.get(batch.status, MISSING)
    for part in parts():
        yield [Row(custom_id, error=error) for custom_id in part if hash(custom_id) in awaited]


def accounted(groups: Groups, account: Callable[[TokenCount, int, int], None]) -> Groups:
    """Yield the groups, and account for their rows after the last one.

    ``account`` is called with their tokens, their number, and the number of damaged ones.
    """
    counted, rows, damaged = TokenCount(), 0, 0
    for group in groups:
        for row in group or ():
            rows += 1
            if row.result is not None:
                counted.add(row.result)
            else:
                damaged += row.error is UNREADABLE
        yield group
    account(counted, rows, damaged)
