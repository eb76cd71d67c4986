"""Stores large objects in the database, in chunks, if the app has no other storage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from flask_llm_batches.errors import NotStored, RecordUnavailable, StorageUnavailable
from flask_llm_batches.store.models import ChunkRow, ObjectRow
from flask_llm_batches.store.store import Store, patient_transaction, transaction

_DELETED = 16  # chunks in one transaction
_DOOMED = 0  # what ``touched_at`` is while an object is being deleted


class _Taken(Exception):
    """Another object has just taken the key."""


class Chunks(Store):
    """The objects of one app. Every chunk is written and read in a transaction of its own."""

    @contextmanager
    def write(self, key: str) -> Iterator[Callable[[bytes], object]]:
        """Yield a function that stores the next chunk. If the block raises, the object gets no key."""
        uid = uuid.uuid4().hex
        parts = 0

        def keep(chunk: bytes) -> None:
            nonlocal parts
            self._insert(uid, parts, chunk)
            parts += 1

        self._begin(uid)
        try:
            yield keep
            while True:
                with suppress(_Taken):
                    self._finish(uid, key)
                    break
        except BaseException:
            with suppress(RecordUnavailable):  # the first error is the one to report
                self._delete(uid, ObjectRow.uid == uid)
            raise

    def read(self, key: str) -> Generator[bytes, None, None]:
        """Yield the chunks of an object.

        Raises:
            NotStored: It is not there, or not any more.
        """
        uid, parts = self._find(key)
        for part in range(parts):
            yield self._chunk(uid, part)

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        with suppress(NotStored):
            uid, _ = self._find(key)
            self._delete(uid, ObjectRow.key == key)

    def sweep(self, older_than: float) -> None:
        """Delete objects without a key that were not touched for so many seconds."""
        old = and_(ObjectRow.key.is_(None), ObjectRow.touched_at <= int(time.time() - older_than))
        for uid in self._uids(old):
            self._delete(uid, old)

    @transaction
    def _begin(self, connection: Connection, uid: str) -> None:
        connection.execute(insert(ObjectRow).values(uid=uid, parts=0, touched_at=int(time.time())))

    @patient_transaction
    def _insert(self, connection: Connection, uid: str, part: int, chunk: bytes) -> None:
        here = update(ObjectRow).where(_is_alive(uid), ObjectRow.parts == part)
        if connection.execute(here.values(parts=part + 1, touched_at=int(time.time()))).rowcount == 1:
            connection.execute(insert(ChunkRow).values(object_uid=uid, part=part, data=chunk))
        # unless an earlier attempt stored it
        elif connection.scalar(select(ObjectRow.parts).where(_is_alive(uid))) != part + 1:
            raise _too_late()

    @patient_transaction
    def _finish(self, connection: Connection, uid: str, key: str) -> None:
        now = int(time.time())
        older = update(ObjectRow).where(ObjectRow.key == key, ObjectRow.uid != uid)
        connection.execute(older.values(key=None, touched_at=now))
        try:
            this = update(ObjectRow).where(_is_alive(uid)).values(key=key, touched_at=now)
            if connection.execute(this).rowcount != 1:
                raise _too_late()
        except IntegrityError:
            raise _Taken from None

    @transaction
    def _find(self, connection: Connection, key: str) -> tuple[str, int]:
        found = connection.execute(select(ObjectRow.uid, ObjectRow.parts).where(ObjectRow.key == key)).first()
        if found is None:
            raise NotStored(key)
        return found.uid, found.parts

    @transaction
    def _chunk(self, connection: Connection, uid: str, part: int) -> bytes:
        query = select(ChunkRow.data).where(ChunkRow.object_uid == uid, ChunkRow.part == part)
        chunk = connection.scalar(query)
        if chunk is None:
            raise NotStored(uid)
        return chunk

    @transaction
    def _uids(self, connection: Connection, condition: ColumnElement[bool]) -> Sequence[str]:
        return connection.scalars(select(ObjectRow.uid).where(condition)).all()

    def _delete(self, uid: str, condition: ColumnElement[bool]) -> None:
        """Delete an object that meets a condition, some chunks at a time."""
        parts = self._doom(uid, condition)
        if parts is not None:
            for start in range(0, parts, _DELETED):
                self._delete_chunks(uid, start)
            self._forget(uid)

    @transaction
    def _doom(self, connection: Connection, uid: str, condition: ColumnElement[bool]) -> int | None:
        """Mark an object as being deleted, and return its number of chunks."""
        doomed = update(ObjectRow).where(ObjectRow.uid == uid, condition).values(key=None, touched_at=_DOOMED)
        if connection.execute(doomed).rowcount == 0:
            return None
        return connection.scalar(select(ObjectRow.parts).where(ObjectRow.uid == uid))

    @transaction
    def _delete_chunks(self, connection: Connection, uid: str, start: int) -> None:
        some = ChunkRow.part.between(start, start + _DELETED - 1)
        connection.execute(delete(ChunkRow).where(ChunkRow.object_uid == uid, some))

    @transaction
    def _forget(self, connection: Connection, uid: str) -> None:
        connection.execute(delete(ObjectRow).where(ObjectRow.uid == uid))


def _is_alive(uid: str) -> ColumnElement[bool]:
    return and_(ObjectRow.uid == uid, ObjectRow.touched_at != _DOOMED)


def _too_late() -> StorageUnavailable:
    return StorageUnavailable("Nothing was written for so long that the unfinished object was deleted.")
