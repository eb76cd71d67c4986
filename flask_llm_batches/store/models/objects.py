"""The tables of the storage, and of the files in it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_batches.store.models.base import BINARY, BLOB, ID, Base


class ObjectRow(Base):
    """An object of the storage, complete or not.

    Attributes:
        uid: Our own id of it.
        key: The key to read it by; null until it is complete, and after another one has replaced it.
        parts: The number of its chunks.
        touched_at: When it was last written to, or was replaced; 0 while it is being deleted.
    """

    __tablename__ = "llm_batches_object"
    __table_args__ = (UniqueConstraint("key"), BINARY)

    uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    key: Mapped[str | None] = mapped_column(String(128))
    parts: Mapped[int]
    touched_at: Mapped[int] = mapped_column(BigInteger)


class ChunkRow(Base):
    """A piece of an object of the storage.

    Attributes:
        object_uid: Whose it is: ``ObjectRow.uid``.
        part: The number of the piece, from 0.
        data: The bytes.
    """

    __tablename__ = "llm_batches_chunk"
    __table_args__ = (BINARY,)

    object_uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(BLOB)


class FileRow(Base):
    """A file of an owner: an input file in the storage, or the view of a batch's results as a file.

    Attributes:
        id: An autoincremented number; lists are sorted by it.
        uid: Our own id of it; of a view, its kind and ``BatchRow.uid``.
        owner: Who may see it.
        batch_uid: The batch whose results it shows: ``BatchRow.uid``; null for an input file.
        filename: As its owner named it.
        bytes: Its size; null while it is uploaded, and until a view was read to its end.
        created_at: When it was uploaded, or when the batch ended.
        expires_at: When it is deleted; null if it stays.
    """

    __tablename__ = "llm_batches_file"
    __table_args__ = (
        UniqueConstraint("uid"),
        Index(None, "owner", "id"),
        Index(None, "expires_at"),
        Index(None, "batch_uid"),
        BINARY,
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    uid: Mapped[str] = mapped_column(String(40))
    owner: Mapped[str] = mapped_column(String(255))
    batch_uid: Mapped[str | None] = mapped_column(String(32))
    filename: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True)
class File:
    """A file of an owner. ``purpose`` is ``batch``, or ``batch_output`` for results.

    Attributes:
        id: Its id.
        owner: Who may see it.
        filename: As its owner named it.
        bytes: Its size; None for results until it is known.
        created_at: When it was uploaded, or when the batch ended, in Unix seconds.
        expires_at: When it is deleted; None if it stays.
        batch_uid: Our own id of the batch whose results it has; None for an input file.
    """

    id: str
    owner: str
    filename: str
    bytes: int | None
    created_at: int
    expires_at: int | None
    batch_uid: str | None = None

    @property
    def purpose(self) -> str:
        return "batch" if self.batch_uid is None else "batch_output"
