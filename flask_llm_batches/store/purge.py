"""Deletes old batches."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from flask_llm_batches.batch import FINISHED
from flask_llm_batches.store import files
from flask_llm_batches.store.models import (
    BatchRow,
    FileRow,
    IdempotencyRow,
    ManifestRow,
    SetAsideRow,
    TaskRow,
    UsageRow,
    WebhookRow,
)
from flask_llm_batches.store.store import Store, transaction

_GROUP = 200
"""The number of batches that one transaction deletes."""

_UIDS = 500  # in one statement: databases have limits, and batches may have very many parts


class Purge(Store):
    """Deletes batches of one app that have ended."""

    @transaction
    def count(self, connection: Connection, *, before: int) -> int:
        """Return how many batches ``delete`` would delete."""
        query = select(func.count()).select_from(BatchRow)
        return connection.execute(query.where(*_is_old(before))).scalar_one()

    @transaction
    def oldest(self, connection: Connection, *, before: int) -> Sequence[str]:
        """Return the uids of some batches that have ended and were created before a time, oldest first."""
        query = select(BatchRow.uid).where(*_is_old(before)).order_by(BatchRow.id).limit(_GROUP)
        return connection.execute(query).scalars().all()

    @transaction
    def archived_parts(self, connection: Connection, uids: Sequence[str]) -> Sequence[str]:
        """Return the uids of those parts of batches that are in the archive."""
        query = select(BatchRow.uid).where(BatchRow.part_of.in_(uids), BatchRow.archived_at.is_not(None))
        return connection.execute(query).scalars().all()

    @transaction
    def delete(self, connection: Connection, uids: Sequence[str], *, usage: bool) -> None:
        """Delete batches with all that belongs to them, and with their usage if asked to."""
        tables: list[
            type[FileRow | ManifestRow | IdempotencyRow | TaskRow | SetAsideRow | WebhookRow | UsageRow]
        ] = [
            FileRow,
            ManifestRow,
            IdempotencyRow,
            TaskRow,
            SetAsideRow,
            WebhookRow,
        ]
        parts = connection.execute(select(BatchRow.uid).where(BatchRow.part_of.in_(uids))).scalars().all()
        every = [*uids, *parts]
        for start in range(0, len(every), _UIDS):
            some = every[start : start + _UIDS]
            for row in [*tables, UsageRow] if usage else tables:
                connection.execute(delete(row).where(row.batch_uid.in_(some)))
            sources = select(BatchRow.source).where(BatchRow.uid.in_(some), BatchRow.source.is_not(None))
            found = connection.execute(sources).scalars().all()
            files.let_expire(connection, [uid for uid in found if uid is not None], at=int(time.time()))
            connection.execute(delete(BatchRow).where(BatchRow.uid.in_(some)))

    @transaction
    def expire_inputs(self, connection: Connection, *, before: int) -> None:
        """Make input files expire now that were created before a time and that no batch waits for."""
        waits = select(BatchRow.input_file).where(
            BatchRow.state == "queued", BatchRow.input_file.is_not(None)
        )
        old = (
            FileRow.created_at < before,
            FileRow.batch_uid.is_(None),
            FileRow.bytes.is_not(None),
            FileRow.expires_at.is_not(None),
            FileRow.uid.not_in(waits),
        )
        connection.execute(update(FileRow).where(*old).values(expires_at=int(time.time())))


def _is_old(before: int) -> Sequence[ColumnElement[bool]]:
    refused = BatchRow.status.is_(None)
    ended = or_(BatchRow.status.in_(FINISHED), and_(refused, BatchRow.state == "failed"))
    return (
        BatchRow.created_at < before,
        ended,
        BatchRow.state.in_(("accepted", "failed", "split")),
        BatchRow.part_of.is_(None),
    )
