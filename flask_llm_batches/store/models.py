"""The tables, and frozen copies of their rows. Times are Unix seconds, as in the API."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Integer, LargeBinary, MetaData, String, UniqueConstraint, text
from sqlalchemy.dialects.mysql import MEDIUMBLOB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_llm_batches.batch import Batch

# Ids are compared byte by byte in every database. MySQL's and MariaDB's default collations ignore case.
_BINARY = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}

# Constraints and indexes are in __table_args__. From the flags of a column, they would have no names, or
# names from the host's metadata, and a later migration could not refer to them.

UNSETTLED = "state IN ('submitting', 'unknown')"
"""The condition for batches of which it is not known whether the provider has them."""


def _partial_index(*columns: str, where: str) -> Index:
    """Return an index of the few rows that meet a condition. In MariaDB, it is an index of all rows."""
    condition = text(where)
    return Index(None, *columns, sqlite_where=condition, postgresql_where=condition)


# In SQLite, only a column of the type INTEGER is autoincremented.
_ID = BigInteger().with_variant(Integer(), "sqlite")

# A BLOB of MySQL's and MariaDB's ends at 64 KB.
_BLOB = LargeBinary().with_variant(MEDIUMBLOB(), "mysql", "mariadb")


class Base(DeclarativeBase):
    """The tables of this package. ``init_app`` copies them to the host's metadata."""

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
        id: An autoincremented number; lists are sorted by it.
        uid: Our own id of the batch, which is sent to the provider in the metadata.
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        batch_id: The provider's id; null until the provider has accepted the batch.
        state: ``submitting``, ``accepted``, ``failed`` (there is no batch) or ``unknown`` (there may be one).
            The submit of an ``unknown`` one ended at ``lease_until``. A ``submitting`` one whose lease has
            ended is treated in the same way: its process has died.
        owner: Who may see it.
        model: The model of its requests, without the provider.
        requests: How many requests went in.
        status: The provider's status, as last seen. Without one: ``validating`` at first, ``failed`` if a
            search did not find the batch, null if the provider refused it.
        snapshot: The batch as last seen, from ``Batch.to_dict``; with an id of ours until then.
        created_at: When it was asked for.
        refreshed_at: When a list, a poll or a worker last refreshed it from the provider; null until then.
        missing_since: Since when the provider answers that there is no such batch; null if it has the batch.
        accounted_at: When the usage of its results was recorded; null until then.
        archived_at: When its results were archived; null until then, and when they have expired.
        on_results: The name of the handler that its rows are delivered to; null if there is none.
        delivered: How many rows of the archive were delivered, or set aside.
    """

    __tablename__ = "llm_batches_batch"
    __table_args__ = (
        UniqueConstraint("uid"),
        UniqueConstraint("provider", "batch_id"),
        Index(None, "owner", "id"),
        Index(None, "owner", "status", "id"),
        Index(None, "batch_id"),
        Index(None, "status", "id"),
        _partial_index("state", "owner", where=UNSETTLED),
        _partial_index("accounted_at", "owner", where="accounted_at IS NULL"),
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
    archived_at: Mapped[int | None] = mapped_column(BigInteger)
    on_results: Mapped[str | None] = mapped_column(String(64))
    delivered: Mapped[int]


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
    archived_at: int | None
    on_results: str | None
    delivered: int
    lease_token: str | None
    lease_until: int | None

    def last_seen(self) -> Batch:
        """Return the batch as it was last seen."""
        return replace(Batch.from_dict(self.snapshot, self.provider), owner=self.owner)


class ProviderRow(Leased, Base):
    """A provider whose list of batches was searched. The process that searches holds its lease.

    Attributes:
        name: Its name in ``LLM_BATCHES_PROVIDERS``.
        searched_at: When the last completed search began; null before the first one.
    """

    __tablename__ = "llm_batches_provider"
    __table_args__ = (_BINARY,)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    searched_at: Mapped[int | None] = mapped_column(BigInteger)


class TaskRow(Leased, Base):
    """A step that a worker has to do for a batch. Its lease is held by the worker that does it.

    Attributes:
        batch_uid: The batch: ``BatchRow.uid``.
        step: What to do: the name of a module in ``core/worker``.
        due_at: When to do it, or to do it again.
        failures: How often it has failed since it was last done.
    """

    __tablename__ = "llm_batches_task"
    __table_args__ = (UniqueConstraint("batch_uid", "step"), Index(None, "due_at"), _BINARY)

    id: Mapped[int] = mapped_column(_ID, primary_key=True)
    batch_uid: Mapped[str] = mapped_column(String(32))
    step: Mapped[str] = mapped_column(String(16))
    due_at: Mapped[int] = mapped_column(BigInteger)
    failures: Mapped[int]


@dataclass(frozen=True, slots=True)
class Task:
    """A row of ``TaskRow``, which documents each column."""

    id: int
    batch_uid: str
    step: str
    due_at: int
    failures: int
    lease_token: str | None
    lease_until: int | None


class SetAsideRow(Base):
    """A row that a handler refuses whenever it gets it.

    Attributes:
        batch_uid: The batch: ``BatchRow.uid``.
        number: The place of the row in the archive, from 0.
        error: What the handler raised: its class, and the beginning of its message.
        created_at: When it was set aside.
    """

    __tablename__ = "llm_batches_set_aside"
    __table_args__ = (UniqueConstraint("batch_uid", "number"), _BINARY)

    id: Mapped[int] = mapped_column(_ID, primary_key=True)
    batch_uid: Mapped[str] = mapped_column(String(32))
    number: Mapped[int]
    custom_id: Mapped[str] = mapped_column(String(512))
    error: Mapped[str] = mapped_column(String(500))
    created_at: Mapped[int] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row of ``SetAsideRow``, which documents each column."""

    id: int
    batch_uid: str
    number: int
    custom_id: str
    error: str
    created_at: int


class WorkerRow(Base):
    """A process that works.

    Attributes:
        uid: Its own id.
        seen_at: When it was last known to be alive.
    """

    __tablename__ = "llm_batches_worker"
    __table_args__ = (_BINARY,)

    uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    seen_at: Mapped[int] = mapped_column(BigInteger)


class ManifestRow(Base):
    """Some of the ``custom_id``s of a batch, to find out which rows are missing.

    Attributes:
        batch_uid: The batch: ``BatchRow.uid``.
        part: The number of the part, from 0.
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
    """A row of usage: one create, failed create, or full read of results.

    Attributes:
        event: ``create``, ``create_failed`` or ``results``.
        batch_uid: The batch: ``BatchRow.uid``.
        owner: The owner of the batch, who is charged.
        requested_by: The name of the caller.
        requests: The number of requests of a create, or of rows of results.
        prompt_tokens: The sum over the rows of results; it includes ``cached_tokens``.
        cost: The cost of the results in billionths of a US dollar; null if the price is not known.
        error: The code of the error, for ``create_failed``.
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
        fingerprint: SHA-256 of the create, as hexadecimal digits.
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
        prefix: The beginning of the key, to tell keys apart.
        owner: The owner.
        admin: Whether its bearer is an admin.
        revoked_at: When the key was revoked; null while it is valid.
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
