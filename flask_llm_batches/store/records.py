"""Every query of the record, each a short transaction of our own."""

from __future__ import annotations

import logging
import re
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
from flask_llm_batches.store.models import ApiKeyRow, BatchRow, UsageRow

logger = logging.getLogger(__name__)


Usage = dict[str, Any]
"""The columns of a ``UsageRow`` that was written."""


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
    status: str | None
    snapshot: dict[str, Any]
    accounted_at: int | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a built-in key; ``ApiKeyRow`` says what each column is."""

    id: int
    prefix: str
    owner: str
    admin: bool
    created_at: int
    revoked_at: int | None


# Rows are read and written without the ORM's session: that takes a third of the time, in every call.
_RECORD = select(*(getattr(BatchRow, name) for name in Record.__slots__))
_API_KEY = select(*(getattr(ApiKeyRow, name) for name in ApiKey.__slots__))
_FIND_API_KEY = _API_KEY.where(ApiKeyRow.key_hash == bindparam("key_hash"))
_FIND = _RECORD.where(BatchRow.batch_id == bindparam("batch_id"))


# SQLite's, PostgreSQL's and MariaDB's words.
_MISSING_TABLE = re.compile(r"no such table|relation .* does not exist|Table .* doesn't exist")
_HOW_TO_MAKE_TABLES = "; make the tables with flask db migrate and flask db upgrade, or with db.create_all()"


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
            hint = "" if _MISSING_TABLE.search(str(reason)) is None else _HOW_TO_MAKE_TABLES
            why = f"{type(reason).__name__}: {reason}{hint}"
            logger.error("the record of batches is unavailable: %s", why)  # noqa: TRY400
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
        return Record(id=key[0] if key else 0, batch_id=None, status=None, accounted_at=None, **values)

    def accepted(self, record: Record, batch: Batch, *, requested_by: str) -> Usage:
        """Note that the provider accepted a batch."""
        with self._transaction() as connection:
            _change(
                connection,
                record,
                state="accepted",
                batch_id=batch.id,
                status=batch.status,
                snapshot=batch.to_dict(),
            )
            return _use(connection, record, "create", requested_by=requested_by, requests=record.requests)

    def not_accepted(self, record: Record, *, state: str, error: str, requested_by: str) -> Usage:
        """Note that a submit failed: ``failed`` when there is no batch, ``unknown`` when there may be one."""
        with self._transaction() as connection:
            _change(connection, record, state=state)
            return _use(
                connection,
                record,
                "create_failed",
                requested_by=requested_by,
                requests=record.requests,
                error=error,
            )

    def seen(self, record: Record, batch: Batch) -> bool:
        """Keep a batch as a provider has just shown it; say whether this call changed its status."""
        snapshot = batch.to_dict()
        if snapshot == record.snapshot:
            return False
        news = (
            update(BatchRow)
            .where(BatchRow.id == record.id, BatchRow.status != batch.status)
            .values(status=batch.status)
        )
        with self._transaction() as connection:
            _change(connection, record, snapshot=snapshot)
            return connection.execute(news).rowcount == 1

    def keys(self) -> list[ApiKey]:
        """Give every built-in key, oldest first."""
        with self._transaction() as connection:
            return [ApiKey(*row) for row in connection.execute(_API_KEY.order_by(ApiKeyRow.id))]

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

    def account(self, record: Record, tokens: Tokens, *, requested_by: str, rows: int) -> Usage | None:
        """Put a batch's results into the usage, once; whoever comes second is given None."""
        claim = (
            update(BatchRow)
            .where(BatchRow.id == record.id, BatchRow.accounted_at.is_(None))
            .values(accounted_at=int(time.time()))
        )
        with self._transaction() as connection:
            if connection.execute(claim).rowcount == 0:
                return None
            return _use(
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

    def add_key(self, *, key_hash: str, prefix: str, owner: str, admin: bool) -> None:
        """Keep a new built-in key."""
        made = insert(ApiKeyRow).values(
            key_hash=key_hash, prefix=prefix, owner=owner, admin=admin, created_at=int(time.time())
        )
        with self._transaction() as connection:
            connection.execute(made)

    def find_key(self, key_hash: str) -> ApiKey | None:
        """Find a built-in key, revoked or not."""
        with self._transaction() as connection:
            row = connection.execute(_FIND_API_KEY, {"key_hash": key_hash}).first()
        return None if row is None else ApiKey(*row)

    def revoke_key(self, key_id: int) -> bool:
        """Take a key no longer; False if there is none of that id that was still taken."""
        revoked = (
            update(ApiKeyRow)
            .where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
            .values(revoked_at=int(time.time()))
        )
        with self._transaction() as connection:
            return connection.execute(revoked).rowcount == 1


def _change(connection: Connection, record: Record, **values: Any) -> None:
    connection.execute(update(BatchRow).where(BatchRow.id == record.id).values(**values))


def _use(connection: Connection, record: Record, event: str, **values: Any) -> Usage:
    used = {
        "event": event,
        "batch_uid": record.uid,
        "owner": record.owner,
        "provider": record.provider,
        "model": record.model,
        "created_at": int(time.time()),
        **values,
    }
    connection.execute(insert(UsageRow).values(used))
    return used
