"""Deletes what is old."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select

from flask_llm_batches.batch import FINISHED
from flask_llm_batches.store.models import (
    BatchRow,
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
    def delete(self, connection: Connection, uids: Sequence[str], *, usage: bool) -> None:
        """Delete batches with all that belongs to them, and with their usage if asked to."""
        tables: list[type[ManifestRow | IdempotencyRow | TaskRow | SetAsideRow | WebhookRow | UsageRow]] = [
            ManifestRow,
            IdempotencyRow,
            TaskRow,
            SetAsideRow,
            WebhookRow,
        ]
        for row in [*tables, UsageRow] if usage else tables:
            connection.execute(delete(row).where(row.batch_uid.in_(uids)))
        connection.execute(delete(BatchRow).where(BatchRow.uid.in_(uids)))


def _is_old(before: int) -> Sequence[ColumnElement[bool]]:
    refused = BatchRow.status.is_(None)
    ended = or_(BatchRow.status.in_(FINISHED), and_(refused, BatchRow.state == "failed"))
    return BatchRow.created_at < before, ended, BatchRow.state.in_(("accepted", "failed"))
