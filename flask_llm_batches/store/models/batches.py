"""The tables of batches, and of what belongs to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_batches.batch import Batch
from flask_llm_batches.store.models.base import BINARY, BLOB, ID, Base, Leased, partial_index

UNSETTLED = "state IN ('submitting', 'unknown')"
"""The condition for batches of which it is not known whether the provider has them."""


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
        webhook: The name of the webhook that its create named; null if it named none.
        request_id: The ``X-Request-ID`` of its create, for the log; null if there was none.
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
        partial_index("state", "owner", where=UNSETTLED),
        partial_index("accounted_at", "owner", where="accounted_at IS NULL"),
        BINARY,
    )

    id: Mapped[int] = mapped_column(ID, primary_key=True)
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
    webhook: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(128))
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
    webhook: str | None
    request_id: str | None
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
    __table_args__ = (BINARY,)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    searched_at: Mapped[int | None] = mapped_column(BigInteger)


class ManifestRow(Base):
    """Some of the ``custom_id``s of a batch, to find out which rows are missing.

    Attributes:
        batch_uid: The batch: ``BatchRow.uid``.
        part: The number of the part, from 0.
        custom_ids: A JSON array, compressed by zlib.
    """

    __tablename__ = "llm_batches_manifest"
    __table_args__ = (BINARY,)

    batch_uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    custom_ids: Mapped[bytes] = mapped_column(BLOB)


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
    __table_args__ = (Index(None, "owner", "created_at"), Index(None, "batch_uid"), BINARY)

    id: Mapped[int] = mapped_column(ID, primary_key=True)
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
    __table_args__ = (UniqueConstraint("batch_uid"), BINARY)

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
