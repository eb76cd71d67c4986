"""Every query of the record, each a short transaction of our own."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from flask_llm_batches.batch import Batch
from flask_llm_batches.errors import RecordUnavailable
from flask_llm_batches.store.database import Database
from flask_llm_batches.store.models import BatchRow, UsageRow

logger = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """What result rows consumed; cached tokens are part of the prompt's."""

    prompt: int
    completion: int
    cached: int
    total: int


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a batch; ``BatchRow`` says what each column is."""

    id: int
    uid: str
    provider: str
    batch_id: str | None
    owner: str
    model: str
    requests: int
    snapshot: dict[str, Any]
    accounted_at: int | None


# Rows are read and written without the ORM's session: that takes a third of the time, in every call.
_RECORD = select(*(getattr(BatchRow, name) for name in Record.__slots__))
_FIND = _RECORD.where(BatchRow.batch_id == bindparam("batch_id"))


class Records:
    """The record of one app.

    Every method raises ``RecordUnavailable`` when the database does not answer, or lacks the tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._database.engine().begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            # The statement and its parameters stay out of the log: they hold what callers sent.
            reason = getattr(error, "orig", None) or error
            logger.error("the record of batches is unavailable: %s: %s", type(reason).__name__, reason)  # noqa: TRY400
            raise RecordUnavailable("The record of batches is unavailable. Try again later.") from None

    def begin(
        self, *, provider: str, owner: str, model: str, requests: int, asked_for: Mapping[str, Any]
    ) -> Record:
        """Note that a batch is about to be submitted."""
        values: dict[str, Any] = {
            "uid": uuid.uuid4().hex,
            "provider": provider,
            "owner": owner,
            "model": model,
            "requests": requests,
            "snapshot": dict(asked_for),
        }
        made = insert(BatchRow).values(state="submitting", created_at=int(time.time()), **values)
        with self._transaction() as connection:
            key = connection.execute(made).inserted_primary_key
        return Record(id=key[0] if key else 0, batch_id=None, accounted_at=None, **values)

    def accepted(self, record: Record, batch: Batch, *, requested_by: str) -> None:
        """Note that the provider accepted a batch."""
        with self._transaction() as connection:
            _change(connection, record, state="accepted", batch_id=batch.id, snapshot=batch.to_dict())
            _use(connection, record, "create", requested_by=requested_by, requests=record.requests)

    def not_accepted(self, record: Record, *, state: str, error: str, requested_by: str) -> None:
        """Note that a submit failed: ``failed`` when there is no batch, ``unknown`` when there may be one."""
        with self._transaction() as connection:
            _change(connection, record, state=state)
            _use(
                connection,
                record,
                "create_failed",
                requested_by=requested_by,
                requests=record.requests,
                error=error,
            )

    def seen(self, record: Record, batch: Batch) -> None:
        """Keep a batch as a provider has just shown it."""
        snapshot = batch.to_dict()
        if snapshot != record.snapshot:
            with self._transaction() as connection:
                _change(connection, record, snapshot=snapshot)

    def find(self, batch_id: str) -> list[Record]:
        """Find the batches with a provider's id: more than one where providers gave out the same."""
        with self._transaction() as connection:
            return [Record(*row) for row in connection.execute(_FIND, {"batch_id": batch_id})]

    def list(
        self, *, owner: str, provider: str | None, after: Record | None, limit: int
    ) -> tuple[list[Record], bool]:
        """List an owner's accepted batches, newest first, and say whether there are more."""
        query = _RECORD.where(BatchRow.owner == owner, BatchRow.batch_id.is_not(None))
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        if after is not None:
            query = query.where(BatchRow.id < after.id)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(BatchRow.id.desc()).limit(limit + 1)).all()
        return [Record(*row) for row in rows[:limit]], len(rows) > limit

    def account(self, record: Record, tokens: Tokens, *, requested_by: str, rows: int) -> bool:
        """Put a batch's results into the usage, once; whoever comes second is told False."""
        claim = (
            update(BatchRow)
            .where(BatchRow.id == record.id, BatchRow.accounted_at.is_(None))
            .values(accounted_at=int(time.time()))
        )
        with self._transaction() as connection:
            if connection.execute(claim).rowcount == 0:
                return False
            _use(
                connection,
                record,
                "results",
                requested_by=requested_by,
                requests=rows,
                prompt_tokens=tokens.prompt,
                completion_tokens=tokens.completion,
                cached_tokens=tokens.cached,
                total_tokens=tokens.total,
            )
        return True


def _change(connection: Connection, record: Record, **values: Any) -> None:
    connection.execute(update(BatchRow).where(BatchRow.id == record.id).values(**values))


def _use(connection: Connection, record: Record, event: str, **values: Any) -> None:
    used = insert(UsageRow).values(
        event=event,
        batch_uid=record.uid,
        owner=record.owner,
        provider=record.provider,
        model=record.model,
        created_at=int(time.time()),
        **values,
    )
    connection.execute(used)
