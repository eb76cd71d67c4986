"""The table of built-in API keys."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_batches.store.models.base import BINARY, ID, Base


class ApiKeyRow(Base):
    """A built-in API key. The key itself is shown once, and is not stored.

    Attributes:
        key_hash: SHA-256 of the key, as hexadecimal digits.
        prefix: The beginning of the key, to tell keys apart.
        owner: The owner.
        admin: Whether its bearer is an admin.
        revoked_at: When the key was revoked; null while it is valid.
    """

    __tablename__ = "llm_batches_api_key"
    __table_args__ = (UniqueConstraint("key_hash"), BINARY)

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    key_hash: Mapped[str] = mapped_column(String(64))
    prefix: Mapped[str] = mapped_column(String(16))
    owner: Mapped[str] = mapped_column(String(255))
    admin: Mapped[bool]
    created_at: Mapped[int] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of ``ApiKeyRow``, which documents each column. The hash stays in the database."""

    id: int
    prefix: str
    owner: str
    admin: bool
    created_at: int
    revoked_at: int | None

    @property
    def state(self) -> str:
        """``revoked``, ``admin`` or ``valid``."""
        return "revoked" if self.revoked_at is not None else "admin" if self.admin else "valid"
