"""The tables of what workers do."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_batches.store.models.base import BINARY, ID, Base, Leased


class OwnerRow(Base):
    """An owner with limits. Creates of the owner lock this row, so that they wait for each other.

    Attributes:
        name: The owner.
        turns: How often it was locked.
    """

    __tablename__ = "llm_batches_owner"
    __table_args__ = (BINARY,)

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    turns: Mapped[int] = mapped_column(BigInteger)


class TaskRow(Leased, Base):
    """A step that a worker has to do for a batch. Its lease is held by the worker that does it.

    Attributes:
        batch_uid: The batch: ``BatchRow.uid``.
        step: What to do: the name of a module in ``core/worker``.
        due_at: When to do it, or to do it again.
        failures: How often it has failed since it was last done.
    """

    __tablename__ = "llm_batches_task"
    __table_args__ = (UniqueConstraint("batch_uid", "step"), Index(None, "due_at"), BINARY)

    id: Mapped[int] = mapped_column(ID, primary_key=True)
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


class WorkerRow(Base):
    """A process that works.

    Attributes:
        uid: Its own id.
        seen_at: When it was last known to be alive.
    """

    __tablename__ = "llm_batches_worker"
    __table_args__ = (BINARY,)

    uid: Mapped[str] = mapped_column(String(32), primary_key=True)
    seen_at: Mapped[int] = mapped_column(BigInteger)


class WebhookRow(Base):
    """A webhook that tells a target that a batch has ended.

    Attributes:
        uid: What its ``webhook-id`` is made of; the same in every try.
        batch_uid: The batch: ``BatchRow.uid``.
        target: The name of the target in ``LLM_BATCHES_WEBHOOKS``.
        type: The event: ``batch.completed`` and the like.
        created_at: When the end of the batch was seen.
        attempts: How often it was sent.
        due_at: When it is sent next; null if it is not sent again.
        sent_at: When the target took it; null until then.
        answer: The outcome of the last try, in words; null before the first one.
    """

    __tablename__ = "llm_batches_webhook"
    __table_args__ = (UniqueConstraint("batch_uid", "target"), BINARY)

    id: Mapped[int] = mapped_column(ID, primary_key=True)
    uid: Mapped[str] = mapped_column(String(32))
    batch_uid: Mapped[str] = mapped_column(String(32))
    target: Mapped[str] = mapped_column(String(64))
    type: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[int] = mapped_column(BigInteger)
    attempts: Mapped[int]
    due_at: Mapped[int | None] = mapped_column(BigInteger)
    sent_at: Mapped[int | None] = mapped_column(BigInteger)
    answer: Mapped[str | None] = mapped_column(String(100))


@dataclass(frozen=True, slots=True)
class Webhook:
    """A row of ``WebhookRow``, which documents each column."""

    id: int
    uid: str
    batch_uid: str
    target: str
    type: str
    created_at: int
    attempts: int
    due_at: int | None
    sent_at: int | None
    answer: str | None


class SetAsideRow(Base):
    """A row that a handler refuses whenever it gets it.

    Attributes:
        batch_uid: The batch: ``BatchRow.uid``.
        number: The place of the row in the archive, from 0.
        error: What the handler raised: its class, and the beginning of its message.
        created_at: When it was set aside.
    """

    __tablename__ = "llm_batches_set_aside"
    __table_args__ = (UniqueConstraint("batch_uid", "number"), BINARY)

    id: Mapped[int] = mapped_column(ID, primary_key=True)
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
