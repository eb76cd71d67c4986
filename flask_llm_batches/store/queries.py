"""Finds batches in the record, and lists them."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from sqlalchemy import Connection, bindparam, or_, select, text, update

from flask_llm_batches.batch import FINISHED, STATUSES, uid_of
from flask_llm_batches.store.models import UNSETTLED, BatchRow, Record
from flask_llm_batches.store.store import Store, is_owned, transaction

# Rows are read and written without the ORM's session: that takes a third of the time, in every call.
RECORD = select(*(getattr(BatchRow, name) for name in Record.__slots__))
_SHOWN = RECORD.where(BatchRow.status.is_not(None))
_FIND = RECORD.where(BatchRow.batch_id == bindparam("batch_id"))


class BatchQueries(Store):
    """What is asked of the batches of one app."""

    @transaction
    def by_uid(self, connection: Connection, uid: str) -> Record | None:
        """Find a batch by our own id."""
        row = connection.execute(RECORD.where(BatchRow.uid == uid)).first()
        return None if row is None else Record(*row)

    @transaction
    def by_uids(self, connection: Connection, uids: Collection[str]) -> Sequence[Record]:
        """Find the batches with any of our own ids."""
        return [Record(*row) for row in connection.execute(RECORD.where(BatchRow.uid.in_(uids)))]

    @transaction
    def claim_refresh(
        self, connection: Connection, records: Sequence[Record], *, before: int
    ) -> Sequence[Record]:
        """Return those records that have not been refreshed since then. No other process gets the same."""
        now = int(time.time())
        claimed = []
        for record in records:
            stale = or_(BatchRow.refreshed_at.is_(None), BatchRow.refreshed_at <= before)
            claim = update(BatchRow).where(BatchRow.id == record.id, stale).values(refreshed_at=now)
            if connection.execute(claim).rowcount == 1:
                claimed.append(record)
        return claimed

    @transaction
    def find(self, connection: Connection, batch_id: str) -> list[Record]:
        """Find the batches with a provider's id, or an id of ours.

        There are several if two providers use the same id.
        """
        rows = connection.execute(_FIND, {"batch_id": batch_id}).all()
        if not rows and (uid := uid_of(batch_id)) is not None:
            # One that was refused was never shown to anybody.
            rows = connection.execute(_SHOWN.where(BatchRow.uid == uid)).all()
        return [Record(*row) for row in rows]

    @transaction
    def find_all(self, connection: Connection, batch_ids: Collection[str]) -> Sequence[Record]:
        """Find the batches with any of these ids."""
        query = RECORD.where(BatchRow.batch_id.in_(batch_ids))
        return [Record(*row) for row in connection.execute(query)]

    @transaction
    def list(
        self,
        connection: Connection,
        *,
        owner: str | None,
        provider: str | None,
        status: str | None,
        after: Record | None,
        limit: int,
    ) -> tuple[list[Record], bool]:
        """Return batches, newest first, and whether there are more.

        Unsettled batches are among them, and those that were not found at the provider. Batches that the
        provider refused are not.
        """
        query, index = _SHOWN, "status_id"
        if owner is not None:
            query = query.where(is_owned(BatchRow.owner, owner))
            index = "owner_id" if status is None else "owner_status_id"
        if status is not None:
            query = query.where(BatchRow.status == status)
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        if after is not None:
            query = query.where(BatchRow.id < after.id)
        # MariaDB would read all that is newer than the page.
        hint = f"FORCE INDEX (ix_llm_batches_batch_{index})"
        query = query.with_hint(BatchRow, hint, "mysql").with_hint(BatchRow, hint, "mariadb")
        rows = connection.execute(query.order_by(BatchRow.id.desc()).limit(limit + 1)).all()
        return [Record(*row) for row in rows[:limit]], len(rows) > limit

    @transaction
    def running(
        self, connection: Connection, *, owner: str | None, provider: str | None, limit: int
    ) -> Sequence[Record]:
        """Return the newest batches that a provider has and that have not ended."""
        query = RECORD.where(BatchRow.status.in_(STATUSES - FINISHED), BatchRow.batch_id.is_not(None))
        if owner is not None:
            query = query.where(is_owned(BatchRow.owner, owner))
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        return [Record(*row) for row in connection.execute(query.order_by(BatchRow.id.desc()).limit(limit))]

    @transaction
    def unsettled(
        self, connection: Connection, *, owner: str | None = None, provider: str | None = None
    ) -> Sequence[Record]:
        """Return the unsettled batches, oldest first. Those that are being submitted are among them."""
        # In these words, or SQLite does not see which index has them.
        query = RECORD.where(text(UNSETTLED))
        if owner is not None:
            query = query.where(is_owned(BatchRow.owner, owner))
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        # Sorted here, or SQLite takes the index of all the owner's batches, which has their order.
        return sorted((Record(*row) for row in connection.execute(query)), key=lambda record: record.id)
