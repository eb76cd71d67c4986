"""How far the rows of batches are delivered, and which were set aside."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from flask_llm_batches.store.models import BatchRow, Record, SetAside, SetAsideRow
from flask_llm_batches.store.store import Store, transaction

_UNFIT = re.compile("[\0\ud800-\udfff]")
_SET_ASIDE = select(*(getattr(SetAsideRow, name) for name in SetAside.__slots__))


class Refused(NamedTuple):
    """A row that a handler refuses: its place in the archive, its id, and why."""

    number: int
    custom_id: str
    error: str


def _storable(text: str) -> str:
    # An error that quotes its row may have what models wrote. PostgreSQL takes no NUL, and no database half a
    # character; a row that cannot be set aside would hold up those behind it for good.
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)


class Overtaken(Exception):
    """Another worker has delivered these rows meanwhile."""


class Deliveries(Store):
    """The deliveries of one app."""

    @contextmanager
    def deliver(
        self, record: Record, *, start: int, end: int, refused: Collection[Refused] = ()
    ) -> Iterator[None]:
        """Run the block in a transaction of the host's session, which also records the rows as delivered.

        What the block writes through that session is committed with the delivery, or neither is. That is so
        if the record is in the database of the session.

        Args:
            record: The batch.
            start: The number of rows that were delivered before.
            end: The number of rows that are delivered after the block.
            refused: Those of them that are set aside.

        Raises:
            Overtaken: Another number of rows was delivered before.
        """
        this = BatchRow.id == record.id, BatchRow.delivered == start
        with self._database.host_transaction() as execute:
            yield
            if execute(update(BatchRow).where(*this).values(delivered=end)).rowcount != 1:
                raise Overtaken
            now = int(time.time())
            for row in refused:
                texts = {"custom_id": _storable(row.custom_id), "error": _storable(row.error)}
                values = {"batch_uid": record.uid, "created_at": now, "number": row.number, **texts}
                execute(insert(SetAsideRow).values(values))

    @contextmanager
    def deliver_again(self, row: SetAside) -> Iterator[None]:
        """Run the block in a transaction of the host's session, which also deletes a row that was set aside.

        Raises:
            Overtaken: The row is not set aside any more.
        """
        with self._database.host_transaction() as execute:
            yield
            if execute(delete(SetAsideRow).where(SetAsideRow.id == row.id)).rowcount != 1:
                raise Overtaken

    @transaction
    def all_set_aside(
        self, connection: Connection, *, batch_uid: str | None, limit: int
    ) -> Sequence[SetAside]:
        """Return rows that are set aside, oldest first."""
        query = _SET_ASIDE.order_by(SetAsideRow.id).limit(limit)
        if batch_uid is not None:
            query = query.where(SetAsideRow.batch_uid == batch_uid)
        return [SetAside(*row) for row in connection.execute(query)]
