"""Every query of the record, each a short transaction on a session of our own."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

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


class Records:
    """The record of one app.

    Every method raises ``RecordUnavailable`` when the database does not answer, or lacks the tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        try:
            with Session(self._database.engine(), expire_on_commit=False) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            # The statement and its parameters stay out of the log: they hold what callers sent.
            reason = getattr(error, "orig", None) or error
            logger.error("the record of batches is unavailable: %s: %s", type(reason).__name__, reason)  # noqa: TRY400
            raise RecordUnavailable("The record of batches is unavailable. Try again later.") from None

    def begin(
        self, *, provider: str, owner: str, model: str, requests: int, asked_for: Mapping[str, Any]
    ) -> BatchRow:
        """Note that a batch is about to be submitted."""
        row = BatchRow(
            uid=uuid.uuid4().hex,
            provider=provider,
            state="submitting",
            owner=owner,
            model=model,
            requests=requests,
            snapshot=dict(asked_for),
            created_at=int(time.time()),
        )
        with self._transaction() as session:
            session.add(row)
        return row

    def accepted(self, row: BatchRow, batch: Batch, *, requested_by: str) -> None:
        """Note that the provider accepted a batch."""
        with self._transaction() as session:
            session.execute(
                update(BatchRow)
                .where(BatchRow.id == row.id)
                .values(state="accepted", batch_id=batch.id, snapshot=batch.to_dict())
            )
            session.add(_usage(row, "create", requested_by, row.requests))

    def not_accepted(self, row: BatchRow, *, state: str, error: str, requested_by: str) -> None:
        """Note that a submit failed: ``failed`` when there is no batch, ``unknown`` when there may be one."""
        with self._transaction() as session:
            session.execute(update(BatchRow).where(BatchRow.id == row.id).values(state=state))
            session.add(_usage(row, "create_failed", requested_by, row.requests, error=error))

    def seen(self, row: BatchRow, batch: Batch) -> None:
        """Keep a batch as a provider has just shown it."""
        snapshot = batch.to_dict()
        if snapshot != row.snapshot:
            with self._transaction() as session:
                session.execute(update(BatchRow).where(BatchRow.id == row.id).values(snapshot=snapshot))

    def find(self, batch_id: str) -> list[BatchRow]:
        """Find the batches with a provider's id: more than one where providers gave out the same."""
        with self._transaction() as session:
            return list(session.scalars(select(BatchRow).where(BatchRow.batch_id == batch_id)))

    def list(
        self, *, owner: str, provider: str | None, after: BatchRow | None, limit: int
    ) -> tuple[list[BatchRow], bool]:
        """List an owner's accepted batches, newest first, and say whether there are more."""
        query = select(BatchRow).where(BatchRow.owner == owner, BatchRow.batch_id.is_not(None))
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        if after is not None:
            query = query.where(BatchRow.id < after.id)
        with self._transaction() as session:
            rows = list(session.scalars(query.order_by(BatchRow.id.desc()).limit(limit + 1)))
        return rows[:limit], len(rows) > limit

    def account(self, row: BatchRow, tokens: Tokens, *, requested_by: str, rows: int) -> bool:
        """Put a batch's results into the usage, once; whoever comes second is told False."""
        now = int(time.time())
        claim = (
            update(BatchRow)
            .where(BatchRow.id == row.id, BatchRow.accounted_at.is_(None))
            .values(accounted_at=now)
            .execution_options(synchronize_session=False)
        )
        with self._transaction() as session:
            if session.connection().execute(claim).rowcount == 0:
                return False
            session.add(_usage(row, "results", requested_by, rows, tokens))
        return True


def _usage(
    row: BatchRow,
    event: str,
    requested_by: str,
    requests: int,
    tokens: Tokens | None = None,
    error: str | None = None,
) -> UsageRow:
    return UsageRow(
        event=event,
        batch_uid=row.uid,
        owner=row.owner,
        requested_by=requested_by,
        provider=row.provider,
        model=row.model,
        requests=requests,
        prompt_tokens=tokens and tokens.prompt,
        completion_tokens=tokens and tokens.completion,
        cached_tokens=tokens and tokens.cached,
        total_tokens=tokens and tokens.total,
        error=error,
        created_at=int(time.time()),
    )
