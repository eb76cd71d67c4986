"""The tables of batches, and of what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_batches.batch import FINISHED, NO_FILE, Batch, OutputKind, file_id, output_uid, own_id
from flask_llm_batches.store.models.base import BINARY, BLOB, ID, Base, Leased, partial_index

UNSETTLED = "state IN ('submitting', 'unknown')"
"""The condition for batches of which it is not known whether the provider has them."""

QUEUED = "state = 'queued'"
"""The condition for batches that wait to be submitted."""


class BatchRow(Leased, Base):
    """A batch that was asked for. The process that submits it holds its lease.

    Attributes:
        id: An autoincremented number; lists are sorted by it.
        uid: Our own id of the batch, which is sent to the provider in the metadata.
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        batch_id: The provider's id; null until the provider has accepted the batch.
        state: ``queued`` (it waits to be submitted), ``submitting``, ``accepted``, ``failed`` (there is no
            batch), ``unknown`` (there may be one) or ``split`` (it has parts, which are submitted). The
            submit of an ``unknown`` one ended at ``lease_until``. A ``submitting`` one whose lease has ended
            is treated in the same way: its process has died.
        owner: Who may see it.
        model: The model of its requests, without the provider.
        requests: How many requests it has.
        status: The provider's status, as last seen. Without one: ``validating`` at first, ``failed`` if a
            search did not find the batch, null if the provider refused it.
        snapshot: The batch as last seen, from ``Batch.to_dict``; with an id of ours until it is accepted.
        created_at: When it was asked for.
        refreshed_at: When a list, a poll or a worker last began to refresh it from the provider; null until
            then, and after a refresh that failed.
        missing_since: Since when the provider answers that there is no such batch; null if it has the batch.
            Of a part that waits: since when its requests cannot be read.
        accounted_at: When the usage of its results was recorded; null until then.
        archived_at: When its results were archived; null until then, and when they have expired.
        on_results: The name of the handler that its rows are delivered to; null if there is none.
        webhook: The name of the webhook that its create named; null if it named none.
        request_id: The ``X-Request-ID`` of its create, for the log; null if there was none.
        delivered: How many rows of the archive were delivered, or set aside.
        input_file: ``FileRow.uid`` of the file that it was made from; null if there is none.
        output_seconds: Seconds for which the files of its results last; null for as long as the results.
        failed_rows: How many of its rows have no result; null until all were read.
        part_of: The batch that it is a part of: ``BatchRow.uid``; null for what callers see as a batch.
        replaces: The part whose requests, or some of them, it submits again; null if there is none.
        source: ``FileRow.uid`` of the file that has its requests; null if they are not kept.
        tokens: About how many tokens its prompts have.
        turn: The order of queued parts of the same provider and model; null for what was not queued.
        retries: How often requests that failed for a temporary reason are still submitted again.
        reserved: About what its prompts cost, in billionths of a US dollar; null if that is not known, or has
            no limit.
        retry_of: The batch whose failed requests it has: ``BatchRow.uid``; null if there is none.
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
        partial_index("accounted_at", "owner", "status", where="accounted_at IS NULL"),
        partial_index("part_of", where="part_of IS NOT NULL"),
        partial_index("retry_of", where="retry_of IS NOT NULL"),
        partial_index("provider", "model", where=QUEUED),
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
    input_file: Mapped[str | None] = mapped_column(String(40))
    output_seconds: Mapped[int | None]
    failed_rows: Mapped[int | None]
    part_of: Mapped[str | None] = mapped_column(String(32))
    replaces: Mapped[str | None] = mapped_column(String(32))
    source: Mapped[str | None] = mapped_column(String(40))
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    turn: Mapped[int | None] = mapped_column(BigInteger)
    retries: Mapped[int | None]
    reserved: Mapped[int | None] = mapped_column(BigInteger)
    retry_of: Mapped[str | None] = mapped_column(String(32))


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
    input_file: str | None
    output_seconds: int | None
    failed_rows: int | None
    part_of: str | None
    replaces: str | None
    source: str | None
    tokens: int | None
    turn: int | None
    retries: int | None
    reserved: int | None
    retry_of: str | None
    lease_token: str | None
    lease_until: int | None

    def last_seen(self) -> Batch:
        """Return the batch as it was last seen."""
        return replace(Batch.from_dict(self.snapshot, self.provider), owner=self.owner)

    @property
    def is_queued(self) -> bool:
        """Whether it was queued or split before its provider had it, so that callers see an id of ours."""
        return self.input_file is not None or (self.state == "split" and self.batch_id is None)

    @property
    def shown_id(self) -> str:
        """The id that callers see: the provider's, or ours if ``is_queued`` or if there is no other."""
        return own_id(self.uid) if self.is_queued or self.batch_id is None else self.batch_id

    def shown(self, batch: Batch) -> Batch:
        """Return the batch as callers see it: without the provider's file ids, and with ours."""
        files = {kind: file_id(output_uid(self.uid, kind)) for kind in self.outputs(batch)}
        return replace(
            batch,
            id=own_id(self.uid) if self.is_queued else batch.id,
            created_at=self.created_at if self.is_queued else batch.created_at,
            owner=self.owner,
            input_file_id=file_id(self.input_file) if self.input_file else NO_FILE,
            output_file_id=files.get("output"),
            error_file_id=files.get("error"),
        )

    def outputs(self, batch: Batch) -> Sequence[OutputKind]:
        """Return the kinds of files that the results of a batch are in: those that are not empty."""
        if self.part_of is not None:
            return ()
        if batch.status not in FINISHED - {"failed"} or self.state == "failed":
            return ()
        completed = (batch.request_counts or {}).get("completed") or 0
        failed = self.requests - completed if self.failed_rows is None else self.failed_rows
        kinds: tuple[tuple[OutputKind, bool], ...] = (
            ("output", completed > 0 if self.failed_rows is None else failed < self.requests),
            ("error", failed > 0),
        )
        return [kind for kind, is_there in kinds if is_there]


class LaneRow(Leased, Base):
    """The queue of one model at one provider. The process that submits its parts holds its lease.

    Attributes:
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        turn: The turn of the part that was submitted last.
        token_limit: About how many tokens the provider lets wait, as it said or as refusals show; null if
            that is not known.
        learned_at: When this was learned.
        refused_until: Until when nothing is submitted, as the provider has just refused something.
        failures: How often it has refused something since it last accepted a part.
    """

    __tablename__ = "llm_batches_lane"
    __table_args__ = (BINARY,)

    provider: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(255), primary_key=True)
    turn: Mapped[int] = mapped_column(BigInteger)
    token_limit: Mapped[int | None] = mapped_column(BigInteger)
    learned_at: Mapped[int | None] = mapped_column(BigInteger)
    refused_until: Mapped[int | None] = mapped_column(BigInteger)
    failures: Mapped[int]


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of ``LaneRow``, which documents each column."""

    provider: str
    model: str
    turn: int
    token_limit: int | None
    learned_at: int | None
    refused_until: int | None
    failures: int
    lease_token: str | None
    lease_until: int | None


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
    """A row of usage: one create, failed create, or full read of the results of one model.

    Attributes:
        event: ``create``, ``create_failed`` or ``results``.
        batch_uid: The batch: ``BatchRow.uid``.
        owner: The owner of the batch, who is charged.
        requested_by: The name of the caller.
        requests: The number of requests of a create, or of rows of results.
        prompt_tokens: The sum over the rows of results; it includes ``cached_tokens``.
        cost: The cost of the results in billionths of a US dollar; null if the price is not known.
        error: The code of the error, for ``create_failed``.
        created_at: When it was recorded.
    """

    __tablename__ = "llm_batches_usage"
    __table_args__ = (
        Index(None, "owner", "created_at"),
        Index(None, "created_at"),
        Index(None, "batch_uid"),
        BINARY,
    )

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
        answer: The batch that was returned; null until the provider has accepted it.
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
