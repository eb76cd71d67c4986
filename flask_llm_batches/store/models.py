"""The tables, and the frozen records of their rows. Times are Unix seconds, as on the wire."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Integer, LargeBinary, MetaData, String, UniqueConstraint, text
from sqlalchemy.dialects.mysql import MEDIUMBLOB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_llm_batches.batch import Batch

# Ids compare byte for byte on every database: MySQL's and MariaDB's default collations take "A" for "a".
_BINARY = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}

# Constraints and indexes stand in __table_args__: those of a column's flags would get names, or none, from
# the host's metadata, and a later migration could not address them.

UNSETTLED = "state IN ('submitting', 'unknown')"
"""The condition of the batches of which nobody knows whether they are at the provider."""


def _few(*columns: str, where: str) -> Index:
    """Return an index of the few rows that meet a condition. In MariaDB, it is an index of all rows."""
    condition = text(where)
    return Index(None, *columns, sqlite_where=condition, postgresql_where=condition)


# SQLite counts up only a column of the very type INTEGER.
_ID = BigInteger().with_variant(Integer(), "sqlite")

# A BLOB of MySQL's and MariaDB's ends at 64 KB.
_BLOB = LargeBinary().with_variant(MEDIUMBLOB(), "mysql", "mariadb")


class Base(DeclarativeBase):
    """The tables of this package, apart from the host's until ``init_app`` copies them over."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Leased:
    """The columns of a row that one process at a time works on; ``store/leases.py`` has the rules.

    Attributes:
        lease_token: The token of the holder, or of the last one.
        lease_until: When the lease ends, unless its holder extends it; null when there is no holder.
    """

    lease_token: Mapped[str | None] = mapped_column(String(32))
    lease_until: Mapped[int | None] = mapped_column(BigInteger)


class BatchRow(Leased, Base):
    """A batch that was asked for. The process that submits it holds its lease.

    Attributes:
        id: Counts up: the order of lists.
        uid: Our own id of it, which travels in the provider's metadata.
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        batch_id: The provider's id; null until the provider accepted.
        state: ``submitting``, ``accepted``, ``failed`` (there is no batch) or ``unknown`` (there may be one).
            The submit of an unknown one was given up at ``lease_until``, and so was that of a submitting
            one whose lease has ended.
        owner: Who may see it.
        model: The model of its requests, without the provider.
        requests: How many requests went in.
        status: The provider's status as last seen. Before that, ``validating``; then ``failed`` for a batch
            that was looked for and is not there, and null for one that the provider refused.
        snapshot: The batch as last seen, as ``Batch.to_dict`` gives it; before that, with an id of ours.
        created_at: When it was asked for.
        refreshed_at: When a list last asked the provider after it; null until then.
        missing_since: When the provider first said that it has no such batch; null if it has shown it since.
        accounted_at: When its results went into the usage; null until then.
    """

    __tablename__ = "llm_batches_batch"
    __table_args__ = (
        UniqueConstraint("uid"),
        UniqueConstraint("provider", "batch_id"),
        Index(None, "owner", "id"),
        Index(None, "owner", "status", "id"),
        Index(None, "batch_id"),
        Index(None, "status", "id"),
        _few("state", "owner", where=UNSETTLED),
        _few("accounted_at", "owner", where="accounted_at IS NULL"),
        _BINARY,
    )

    id: Mapped[int] = mapped_column(_ID, primary_key=True)
    uid: Mapped[str] = mapped_column(String(32))
    provider: Mapped[str] = mapped_column(String(64))
    batch_id: Mapped[str | None] = mapped_column(String(512))
    state: Mapped[str] = mapped_column(String(16))
    owner: Mapped[str] = mapped_column(String(255))
    model: Mapped[str] = mapped_column(String(255))
    requests: Mapped[int]
    status: Mapped[str | None] = mapped_column(String(16))
    snapshot: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(BigInteger)
    refreshed_at: Mapped[int | None] = mapped_column(BigInteger)
    missing_since: Mapped[int | None] = mapped_column(BigInteger)
    accounted_at: Mapped[int | None] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True)
class Record:
    """A row of ``BatchRow``, which documents each column."""

    id: int
    uid: str
    provider: str
    batch_id: str | None
    state: str
    owner: str
    model: str
    requests: int
    status: str | None
    snapshot: dict[str, Any]
    created_at: int
    refreshed_at: int | None
    missing_since: int | None
    accounted_at: int | None
    lease_token: str | None
    lease_until: int | None

    def last_seen(self) -> Batch:
        """Return the batch as it was last seen."""
        return replace(Batch.from_dict(self.snapshot, self.provider), owner=self.owner)


class ProviderRow(Leased, Base):
    """A provider whose list of batches was searched. The process that searches holds its lease.

    Attributes:
        name: Its name in ``LLM_BATCHES_PROVIDERS``.
        searched_at: When the last search began that has ended; null until then.
    """

    __tablename__ = "llm_batches_provider"
    __table_args__ = (_BINARY,)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    searched_at: Mapped[int | None] = mapped_column(BigInteger)


class ManifestRow(Base):
    """Some of the ``custom_id``s of a batch, to find out which rows are missing.

    Attributes:
        batch_uid: The batch: ``BatchRow.uid``.
        part: Counts up from 0; the parts together have all.
        custom_ids: A JSON array, compressed by zlib.
    """

    __tablename__ = "llm_batches_manifest"
    __table_args__ = (_BINARY,)

    batch_uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    custom_ids: Mapped[bytes] = mapped_column(_BLOB)


class ObjectRow(Base):
    """An object of the storage, or what there is of it.

    Attributes:
        uid: Our own id of it.
        key: What it is read by; null before it is whole, and once another one has taken its place.
        parts: The number of its chunks.
        touched_at: When it was last written to, or was replaced; 0 while it is being deleted.
    """

    __tablename__ = "llm_batches_object"
    __table_args__ = (UniqueConstraint("key"), _BINARY)

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
    __table_args__ = (_BINARY,)

    object_uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(_BLOB)


class UsageRow(Base):
    """One accounted event.

    Attributes:
        event: ``create``, ``create_failed`` or ``results``.
        batch_uid: The batch: ``BatchRow.uid``.
        owner: Who is charged: the owner of the batch.
        requested_by: Who asked.
        requests: How many requests went in, or how many rows came out.
        prompt_tokens: Of the results' rows; ``cached_tokens`` are part of them.
        cost: Of the results, in billionths of a US dollar; null when the price is not known.
        error: The code of what went wrong, for ``create_failed``.
        created_at: When.
    """

    __tablename__ = "llm_batches_usage"
    __table_args__ = (Index(None, "owner", "created_at"), Index(None, "batch_uid"), _BINARY)

    id: Mapped[int] = mapped_column(_ID, primary_key=True)
    event: Mapped[str] = mapped_column(String(16))
    batch_uid: Mapped[str] = mapped_column(String(32))
    owner: Mapped[str] = mapped_column(String(255))
    requested_by: Mapped[str] = mapped_column(String(255))
    provider: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(255))
    requests: Mapped[int]
    prompt_tokens: Mapped[int | None] = mapped_column(BigInteger)
    completion_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cached_tokens: Mapped[int | None] = mapped_column(BigInteger)
    total_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cost: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)


class IdempotencyRow(Base):
    """The use of an ``Idempotency-Key``.

    Attributes:
        key_hash: SHA-256 of the owner and the key, as hexadecimal digits.
        fingerprint: SHA-256 of what was asked for.
        batch_uid: The batch that was made: ``BatchRow.uid``.
        answer: The batch that was returned; null until the provider accepted.
        created_at: When it was first used.
    """

    __tablename__ = "llm_batches_idempotency"
    __table_args__ = (UniqueConstraint("batch_uid"), _BINARY)

    key_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    batch_uid: Mapped[str] = mapped_column(String(32))
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[int] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A row of ``IdempotencyRow``, which documents each column."""

    key_hash: str
    fingerprint: str
    batch_uid: str
    answer: dict[str, Any] | None
    created_at: int


class ApiKeyRow(Base):
    """A built-in API key. The key itself is shown once, and is not stored.

    Attributes:
        key_hash: SHA-256 of the key, as hexadecimal digits.
        prefix: How the key begins, for people to tell keys apart.
        owner: The owner.
        admin: Whether its bearer is an admin.
        revoked_at: Since when it is not taken any more; null while it is.
    """

    __tablename__ = "llm_batches_api_key"
    __table_args__ = (UniqueConstraint("key_hash"), _BINARY)

    id: Mapped[int] = mapped_column(_ID, primary_key=True)
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
