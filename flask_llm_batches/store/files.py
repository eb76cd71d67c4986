"""The files of owners: input files, and the results of batches as files."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select, update

from flask_llm_batches.batch import OutputKind, file_id, output_uid, own_id
from flask_llm_batches.store.models import File, FileRow, Record
from flask_llm_batches.store.store import Store, is_owned, patient_transaction, transaction

UPLOAD_SECONDS = 24 * 3600
"""Seconds after which an upload that has not ended is deleted."""

_PREFIX = file_id("")
_COLUMNS = (
    FileRow.uid,
    FileRow.owner,
    FileRow.filename,
    FileRow.bytes,
    FileRow.created_at,
    FileRow.expires_at,
    FileRow.batch_uid,
)


class Files(Store):
    """The files of one app. Those that have expired are not found any more."""

    @transaction
    def begin(self, connection: Connection, uid: str, *, owner: str) -> None:
        """Record that a file is about to be uploaded, so that what a crash leaves is deleted later."""
        now = int(time.time())
        values = {"uid": uid, "owner": owner, "filename": "", "created_at": now}
        connection.execute(insert(FileRow).values(**values, expires_at=now + UPLOAD_SECONDS))

    @patient_transaction
    def finish(
        self, connection: Connection, uid: str, *, filename: str, size: int, seconds: int
    ) -> File | None:
        """Record that a file is uploaded, and return it; None if it was deleted meanwhile.

        It expires so many ``seconds`` after its creation.
        """
        this = FileRow.uid == uid
        values = {"filename": filename, "bytes": size, "expires_at": FileRow.created_at + seconds}
        connection.execute(update(FileRow).where(this).values(values))
        row = connection.execute(select(*_COLUMNS).where(this)).first()
        return None if row is None else _file(row)

    @transaction
    def find(self, connection: Connection, id_: str, *, owner: str | None) -> File | None:
        """Find a file by its id; None if there is none, or another owner has it."""
        if not id_.startswith(_PREFIX):
            return None
        query = select(*_COLUMNS).where(FileRow.uid == id_.removeprefix(_PREFIX), *_is_there(owner))
        row = connection.execute(query).first()
        return None if row is None else _file(row)

    @transaction
    def list(
        self,
        connection: Connection,
        *,
        owner: str | None,
        purpose: str | None,
        after: str | None,
        limit: int,
        newest_first: bool,
    ) -> tuple[Sequence[File], bool] | None:
        """Return files in the order of their creation, and whether there are more.

        Returns:
            None if there is no file ``after``.
        """
        query = select(*_COLUMNS).where(*_is_there(owner))
        if purpose is not None:
            is_input = FileRow.batch_uid.is_(None)
            query = query.where(is_input if purpose == "batch" else ~is_input)
        if after is not None:
            this = select(FileRow.id).where(FileRow.uid == after.removeprefix(_PREFIX), *_is_there(owner))
            last = connection.execute(this).scalar()
            if last is None:
                return None
            query = query.where(FileRow.id < last if newest_first else FileRow.id > last)
        order = FileRow.id.desc() if newest_first else FileRow.id
        rows = connection.execute(query.order_by(order).limit(limit + 1)).all()
        return [_file(row) for row in rows[:limit]], len(rows) > limit

    @transaction
    def set_size(self, connection: Connection, id_: str, size: int) -> None:
        """Record the size of a file of results, when it was read to its end."""
        this = update(FileRow).where(FileRow.uid == id_.removeprefix(_PREFIX))
        connection.execute(this.values(bytes=size))

    @transaction
    def delete(self, connection: Connection, id_: str) -> None:
        """Delete the record of a file."""
        connection.execute(delete(FileRow).where(FileRow.uid == id_.removeprefix(_PREFIX)))

    @transaction
    def expired(self, connection: Connection, *, limit: int) -> Sequence[File]:
        """Return files that have expired, and uploads that have not ended for a day."""
        query = select(*_COLUMNS).where(FileRow.expires_at <= int(time.time())).limit(limit)
        return [_file(row) for row in connection.execute(query)]


def keep(connection: Connection, uids: Collection[str]) -> None:
    """Keep the files of parts of a batch until ``let_expire``. Their owners do not see them."""
    connection.execute(update(FileRow).where(FileRow.uid.in_(uids)).values(expires_at=None))


def let_expire(connection: Connection, uids: Collection[str], *, at: int) -> None:
    """Set the time at which files are deleted."""
    connection.execute(update(FileRow).where(FileRow.uid.in_(uids)).values(expires_at=at))


def insert_outputs(connection: Connection, record: Record, kinds: Collection[OutputKind]) -> None:
    """Insert the files of the results of a batch that has ended."""
    now = int(time.time())
    for kind in kinds:
        values = {
            "uid": output_uid(record.uid, kind),
            "owner": record.owner,
            "batch_uid": record.uid,
            "filename": f"{own_id(record.uid)}_{kind}.jsonl",
            "created_at": now,
            "expires_at": None if record.output_seconds is None else now + record.output_seconds,
        }
        connection.execute(insert(FileRow).values(values))


def delete_outputs(connection: Connection, record: Record, kinds: Collection[OutputKind]) -> None:
    """Delete files of results that are empty."""
    uids = [output_uid(record.uid, kind) for kind in kinds]
    connection.execute(delete(FileRow).where(FileRow.uid.in_(uids)))


def kind_of(file: File) -> OutputKind:
    """Return which results a file has."""
    return "output" if file.id == file_id(output_uid(file.batch_uid or "", "output")) else "error"


def _is_there(owner: str | None) -> Sequence[ColumnElement[bool]]:
    # An input file has a size once it is complete. A file of results has one only after it was read.
    whole = or_(FileRow.bytes.is_not(None), FileRow.batch_uid.is_not(None))
    fresh = or_(FileRow.expires_at.is_(None), FileRow.expires_at > int(time.time()))
    conditions = [and_(whole, fresh)]
    return conditions if owner is None else [*conditions, is_owned(FileRow.owner, owner)]


def _file(row: Sequence[Any]) -> File:
    return File(file_id(row[0]), *row[1:])
