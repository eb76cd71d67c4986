"""Finds batches in the record, and lists them."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from itertools import islice

from sqlalchemy import Connection, Text, bindparam, cast, func, or_, select, text, update

from flask_llm_batches.batch import FINISHED, STATUSES, uid_of
from flask_llm_batches.store.models import UNSETTLED, BatchRow, Record
from flask_llm_batches.store.store import Store, is_owned, transaction
from flask_llm_batches.store.usage import Usage, find_usage

# Rows are read and written without the ORM's session: that takes a third of the time, in every call.
RECORD = select(*(getattr(BatchRow, name) for name in Record.__slots__))
_SHOWN = RECORD.where(BatchRow.status.is_not(None), BatchRow.part_of.is_(None))
_FIND = RECORD.where(BatchRow.batch_id == bindparam("batch_id"), BatchRow.part_of.is_(None))

_SEARCHED, _LIKELY = 50_000, 1000  # batches whose metadata is searched, and read in full


class BatchQueries(Store):
    """Queries of the batches of one app."""

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
    def usage_of(self, connection: Connection, record: Record) -> Usage:
        """Return the usage of a create, as it was recorded."""
        return find_usage(connection, record, "create") or {}

    @transaction
    def claim_refresh(
        self, connection: Connection, records: Sequence[Record], *, before: int
    ) -> Sequence[Record]:
        """Return the records that were not refreshed after ``before``. No other process gets the same."""
        now = int(time.time())
        claimed = []
        for record in records:
            stale = or_(BatchRow.refreshed_at.is_(None), BatchRow.refreshed_at <= before)
            claim = update(BatchRow).where(BatchRow.id == record.id, stale).values(refreshed_at=now)
            if connection.execute(claim).rowcount == 1:
                claimed.append(record)
        return claimed

    @transaction
    def not_refreshed(self, connection: Connection, record: Record) -> None:
        """Record that a batch could not be refreshed, so that the next reader asks the provider."""
        connection.execute(update(BatchRow).where(BatchRow.id == record.id).values(refreshed_at=None))

    @transaction
    def find(self, connection: Connection, batch_id: str) -> list[Record]:
        """Find the batches with a provider's id, or an id of ours; parts of batches are not among them.

        There are several if two providers use the same id.
        """
        rows = connection.execute(_FIND, {"batch_id": batch_id}).all()
        if not rows and (uid := uid_of(batch_id)) is not None:
            # A refused batch was never shown to anybody.
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
        metadata: tuple[str, str] | None = None,
    ) -> tuple[list[Record], bool]:
        """Return batches, newest first, and whether there are more.

        Unsettled batches are among them, and those that were not found at the provider. Batches that the
        provider refused are not. With a pair of ``metadata``, only the newest 50,000 are searched.
        """
        query, index = _SHOWN, "PRIMARY" if status is None else "ix_llm_batches_batch_status_id"
        if owner is not None:
            query = query.where(is_owned(BatchRow.owner, owner))
            index = f"ix_llm_batches_batch_owner_{'id' if status is None else 'status_id'}"
        if status is not None:
            query = query.where(BatchRow.status == status)
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        if after is not None:
            query = query.where(BatchRow.id < after.id)
        # MariaDB would read all that is newer than the page.
        hint = f"FORCE INDEX ({index})"
        query = query.with_hint(BatchRow, hint, "mysql").with_hint(BatchRow, hint, "mariadb")
        query = query.order_by(BatchRow.id.desc())
        if metadata is None:
            rows = [Record(*row) for row in connection.execute(query.limit(limit + 1))]
        else:
            newest = connection.execute(select(func.max(BatchRow.id))).scalar() or 0
            # The host may write JSON with or without escapes. This search leaves few rows to read in full.
            text_of = cast(BatchRow.snapshot, Text)
            likely = [
                or_(
                    *(
                        text_of.contains(json.dumps(word, ensure_ascii=escaped)[1:-1], autoescape=True)
                        for escaped in (True, False)
                    )
                )
                for word in metadata
            ]
            near = query.where(BatchRow.id > newest - _SEARCHED, *likely).limit(_LIKELY)
            found = (Record(*row) for row in connection.execute(near))
            rows = list(islice((one for one in found if _has(one, *metadata)), limit + 1))
        return rows[:limit], len(rows) > limit

    @transaction
    def counts(
        self, connection: Connection, *, owner: str | None, statuses: Sequence[str], most: int
    ) -> dict[str, int]:
        """Return how many batches have each status, at most ``most`` each: no more rows are read."""
        counts = {}
        for status in statuses:
            query = select(BatchRow.id).where(BatchRow.status == status, BatchRow.part_of.is_(None))
            if owner is not None:
                query = query.where(is_owned(BatchRow.owner, owner))
            hint = f"FORCE INDEX (ix_llm_batches_batch_{'status_id' if owner is None else 'owner_status_id'})"
            query = query.with_hint(BatchRow, hint, "mysql").with_hint(BatchRow, hint, "mariadb")
            counted = select(func.count()).select_from(query.limit(most).subquery())
            counts[status] = connection.execute(counted).scalar_one()
        return counts

    @transaction
    def running(
        self, connection: Connection, *, owner: str | None, provider: str | None, limit: int
    ) -> Sequence[Record]:
        """Return the newest batches that a provider has and that have not ended."""
        query = RECORD.where(
            BatchRow.status.in_(STATUSES - FINISHED),
            BatchRow.batch_id.is_not(None),
            BatchRow.state != "split",
        )
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
        # As text: SQLite uses the partial index only for exactly this condition.
        query = RECORD.where(text(UNSETTLED))
        if owner is not None:
            query = query.where(is_owned(BatchRow.owner, owner))
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        # Sorted in Python: with ORDER BY, SQLite would use the index of all batches of the owner.
        return sorted((Record(*row) for row in connection.execute(query)), key=lambda record: record.id)


def _has(record: Record, key: str, value: str) -> bool:
    return (record.snapshot.get("metadata") or {}).get(key) == value
