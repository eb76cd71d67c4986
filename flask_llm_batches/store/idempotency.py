"""The ``Idempotency-Key``s of creates."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from flask_llm_batches.batch import Batch
from flask_llm_batches.store.models import BatchRow, IdempotencyKey, IdempotencyRow
from flask_llm_batches.store.store import Store, transaction


class KeyUsed(Exception):
    """An ``Idempotency-Key`` was used before."""


_KEY = select(*(getattr(IdempotencyRow, name) for name in IdempotencyKey.__slots__))


class IdempotencyKeys(Store):
    """The keys that were used in one app."""

    @transaction
    def find(self, connection: Connection, key_hash: str) -> IdempotencyKey | None:
        """Return the use of an ``Idempotency-Key``; None if it was not used."""
        query = _KEY.where(IdempotencyRow.key_hash == key_hash)
        row = connection.execute(query).first()
        return None if row is None else IdempotencyKey(*row)

    @transaction
    def forget(self, connection: Connection, key: IdempotencyKey) -> None:
        """Delete the use of an ``Idempotency-Key``, unless it was used again, or its batch was found."""
        batch = select(BatchRow.id).where(BatchRow.uid == key.batch_uid, BatchRow.state != "failed")
        gone = delete(IdempotencyRow).where(
            IdempotencyRow.key_hash == key.key_hash,
            IdempotencyRow.batch_uid == key.batch_uid,
            ~batch.exists(),
        )
        connection.execute(gone)


def claim(connection: Connection, key: Mapping[str, str], *, batch_uid: str, at: int) -> None:
    """Record that a key is used: its ``key_hash`` and ``fingerprint``.

    Raises:
        KeyUsed: It was used before.
    """
    try:
        connection.execute(insert(IdempotencyRow).values(batch_uid=batch_uid, created_at=at, **key))
    except IntegrityError:
        raise KeyUsed from None


def record_answer(connection: Connection, batch_uid: str, batch: Batch) -> None:
    """Record the answer to a create with a key."""
    used = update(IdempotencyRow).where(IdempotencyRow.batch_uid == batch_uid)
    connection.execute(used.values(answer=batch.to_dict()))


def free(connection: Connection, batch_uid: str) -> None:
    """Delete the use of an ``Idempotency-Key`` that made no batch."""
    connection.execute(delete(IdempotencyRow).where(IdempotencyRow.batch_uid == batch_uid))
