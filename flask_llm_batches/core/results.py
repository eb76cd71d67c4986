"""The rows of a batch that has ended: streamed, and exactly one for every request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain, count
from typing import Any, Literal

from flask import Flask, current_app

from flask_llm_batches.batch import MISSING, NOT_EXECUTED, Batch, Row
from flask_llm_batches.core.archive import Archive
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.merged import count_replaced
from flask_llm_batches.core.parts import Parts
from flask_llm_batches.core.prices import cost
from flask_llm_batches.core.rows import Counts, DamagedRows, Groups, each_once, failure_of, without
from flask_llm_batches.errors import BatchNotFound, ProviderFailed, ResultsGone
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.signals import send, usage_recorded
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.manifests import Manifests
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.usage import Used

logger = get_logger(__name__)

BEAT = 0.4
"""Seconds without a row after which a reader gets None, and can check that its caller still waits."""


class ArchivedMeanwhile(Exception):
    """Another worker has archived the same rows meanwhile, and its archive counts."""


class Results:
    """The rows of a batch, which can be read once: as dicts by iterating, or in groups.

    The first rows are fetched at once, so that early errors are raised before anything is sent.

    Args:
        groups: The rows.
        status: ``succeeded`` or ``failed`` selects rows.
        keep_waiting: Called whenever no row came for a while; returns whether to wait for the first one.

    Raises:
        LLMBatchesError: The provider failed, now or while the rows are read.
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
        self,
        batches: Batches,
        manifests: Manifests,
        providers: Providers,
        archive: Archive,
        lookup: Lookup,
        parts: Parts,
    ) -> None:
        self._lookup = lookup
        self._parts = parts
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
        if record is None or record.accounted_at is not None:
            return Results(self._rows(batch, record), status=status, keep_waiting=keep_waiting)
        counts = Counts()
        groups = self._accounted(self._rows(batch, record, counts), counts, record, batch, requested_by)
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
            ArchivedMeanwhile: Another worker was faster.
            DamagedRows: Rows are damaged, and may be intact later.
        """
        counts = Counts()
        self._write(record, self._rows(batch, record, counts), counts, batch, keep=keep)
        if record.accounted_at is None:
            self._account(record, counts, requested_by=record.owner)
        if keep:
            self._batches.set_archived(record, at=int(time.time()))
        return counts.rows

    def archive_part(self, part: Record, batch: Batch) -> tuple[int, Sequence[str]]:
        """Read the rows of a part into the archive.

        Returns:
            How many of them have failed, and the ``custom_id``s of those that may succeed in another part.

        Raises:
            ArchivedMeanwhile: Another worker was faster.
            DamagedRows: Rows are damaged, and may be intact later.
        """
        counts = Counts()
        retryable: list[str] = []

        def noted(groups: Groups) -> Groups:
            for group in groups:
                retryable.extend(row.custom_id for row in group or () if row.error and row.error.retryable)
                yield group

        groups = noted(
            counts.counted(
                self._complete(self._providers.rows(batch, beat=BEAT), part, batch), part.provider, part.model
            )
        )
        self._write(part, groups, counts, batch, keep=True)
        return counts.failed, retryable

    def _write(self, record: Record, groups: Groups, counts: Counts, batch: Batch, *, keep: bool) -> None:
        with self._archive.write(record) if keep else nullcontext(_drop) as add:
            for group in groups:
                add(group or ())
            if counts.damaged and not batch.settled:
                raise DamagedRows(f"{counts.damaged} rows are damaged")
            # A provider may send the same rows in another order, and the first ones may be delivered by now.
            now = self._batches.by_uid(record.uid) if keep and record.archived_at is None else None
            if now is not None and now.archived_at is not None:
                raise ArchivedMeanwhile

    def delete_archive(self, record: Record) -> None:
        """Delete the results of a batch from the archive."""
        self._batches.set_archived(record, at=None)
        self._archive.delete(record.uid)

    def _rows(self, batch: Batch, record: Record | None, counts: Counts | None = None) -> Groups:
        """Return the rows of a batch that is not in the archive, or of its parts, and count them."""
        if record is not None and record.state == "split":
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself
            return self._merged(app, self._parts.of(record), counts)
        groups = self._complete(self._providers.rows(batch, beat=BEAT), record, batch)
        return (
            groups
            if counts is None or record is None
            else counts.counted(groups, record.provider, record.model)
        )

    def _merged(self, app: Flask, parts: Sequence[Record], counts: Counts | None) -> Groups:
        """Yield the rows of parts. If several parts have a request, the last one counts."""
        taken_over = count_replaced(parts)
        later: dict[str, list[Record]] = {}
        for part in parts:
            if part.replaces is not None:
                later.setdefault(part.replaces, []).append(part)
        for part in parts:
            if taken_over[part.uid] >= part.requests:
                continue
            replaced = {
                hash(custom_id)
                for other in later.get(part.uid, ())
                for ids in self._custom_ids(app, other)
                for custom_id in ids
            }
            groups = without(self._rows_of(app, part), replaced)
            yield from groups if counts is None else counts.counted(groups, part.provider, part.model)

    def _rows_of(self, app: Flask, part: Record) -> Groups:
        """Return the rows of a part that has ended."""
        if part.archived_at is not None:
            with app.app_context():
                return self._archive.rows(part)
        batch = part.last_seen()
        if part.batch_id is None or batch.status == "failed":
            error = NOT_EXECUTED.get(batch.status) or failure_of(batch)
            return ([Row(id_, error=error) for id_ in ids] for ids in self._custom_ids(app, part))
        return self._rows_there(app, part)

    def _rows_there(self, app: Flask, part: Record) -> Groups:
        """Yield the rows that the provider of a part has. If it lost them, they are missing."""
        begun = False
        try:
            with app.app_context():
                batch = self._lookup.refresh(part)
                groups = self._complete(self._providers.rows(batch, beat=BEAT), part, batch)
            for group in groups:
                begun = begun or bool(group)
                yield group
        except BatchNotFound:  # it may be there again in a moment, so its rows do not count as missing yet
            raise ProviderFailed("LLM provider error") from None
        except ResultsGone as error:
            if begun:
                raise
            logger.warning("the results of a part of batch %s are gone: %r", part.part_of, str(error))
            for ids in self._custom_ids(app, part):
                yield [Row(custom_id, error=MISSING) for custom_id in ids]

    def _custom_ids(self, app: Flask, record: Record) -> Iterator[Sequence[str]]:
        # Rows are read after the request and its context have ended, so each query has a context of its own.
        for part in count():
            with app.app_context():
                ids = self._manifests.custom_ids(record.uid, part)
            if not ids:
                return
            yield ids

    def _complete(self, groups: Groups, record: Record | None, batch: Batch) -> Groups:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself

        def custom_ids() -> Iterator[Sequence[str]]:
            return iter(()) if record is None else self._custom_ids(app, record)

        adapter = self._providers.adapter_of(batch.provider)
        promised = adapter.promised(batch)
        uncounted = promised == (0, 0) and batch.status == "completed" and not batch.settled
        if uncounted and record is not None and adapter.streams_results:
            promised = 0, record.requests  # without counts, nothing else shows that a download broke off
        return each_once(groups, batch=batch, promised=promised, parts=custom_ids)

    def _accounted(
        self, groups: Groups, counts: Counts, record: Record, batch: Batch, requested_by: str
    ) -> Groups:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself

        def then_account() -> Groups:
            yield from groups
            if counts.damaged and not batch.settled:
                logger.warning(
                    "batch %r: not accounted for yet, as %d rows are damaged", batch.id, counts.damaged
                )
                return
            try:
                with app.app_context():
                    self._account(record, counts, requested_by=requested_by)
            except Exception:
                # All rows were sent, so the response ends normally. The next reader accounts for them.
                logger.exception("batch %r: its results are not accounted for yet", batch.id)

        return then_account()

    def _account(self, record: Record, counts: Counts, *, requested_by: str) -> None:
        used = [
            Used(
                provider,
                model,
                counted.rows,
                counted.tokens.tokens,
                cost(
                    counted.tokens.models,
                    kind=self._providers.kind_of(provider),
                    model=model,
                    at=record.created_at,
                ),
            )
            for (provider, model), counted in counts.of.items()
        ]
        for usage in self._batches.account(record, used, requested_by=requested_by, failed=counts.failed):
            send(usage_recorded, usage=usage)


def _drop(_rows: Sequence[Row]) -> None:
    """Keep no rows."""
