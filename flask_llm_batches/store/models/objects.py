"""The tables of the storage."""

from __future__ import annotations

from sqlalchemy import BigInteger, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_batches.store.models.base import BINARY, BLOB, Base


class ObjectRow(Base):
    """An object of the storage, or what there is of it.

    Attributes:
        uid: Our own id of it.
        key: What it is read by; null before it is whole, and once another one has taken its place.
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
        part: Counts up from 0.
        data: The bytes.
    """

    __tablename__ = "llm_batches_chunk"
    __table_args__ = (BINARY,)

    object_uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(BLOB)
