"""The base of all queries: short transactions of our own, with our own errors."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import ColumnElement, Connection, and_, func
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from flask_llm_batches.errors import RecordUnavailable
from flask_llm_batches.log import get_logger
from flask_llm_batches.store.database import Database

logger = get_logger(__name__)

# The codes of PostgreSQL and MariaDB for a deadlock, and for a serialization failure; and of MariaDB for a
# savepoint that is gone, because a deadlock inside of it rolled back the whole transaction.
# https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html
# https://mariadb.com/kb/en/mariadb-error-codes/
_CONFLICT_CODES = {"40P01", 1213, "40001", 1020, 1305}

# Their codes for a lock timeout, and MariaDB's for a connection that was killed.
_LOCKED = {"55P03", 1205}
_KILLED = {1927}

_ATTEMPTS, _PAUSE = 10, 0.05

# Seconds for which a transaction is retried if its failure would lose a batch.
_RETRY_SECONDS = 20

# For the error messages of SQLite, PostgreSQL and MariaDB.
_HINTS = (
    (
        re.compile(r"no such table|relation .* does not exist|Table .* doesn't exist"),
        "; make the tables with flask db migrate and flask db upgrade, or with db.create_all()",
    ),
    (
        re.compile("database is locked"),
        "; SQLite has one writer: commit or roll back what db.session has flushed before you use batches",
    ),
)


class _SameLength(FunctionElement[bool]):
    inherit_cache = True


@compiles(_SameLength)
def _always(*_: object, **__: object) -> str:
    return "1 = 1"  # a condition of the lengths misleads PostgreSQL's planner


@compiles(_SameLength, "mysql", "mariadb")
def _compared(element: _SameLength, compiler: SQLCompiler, **options: Any) -> str:
    lengths = (func.char_length(text) for text in element.clauses)
    return " = ".join(compiler.process(length, **options) for length in lengths)


def is_owned(column: InstrumentedAttribute[str], owner: str) -> ColumnElement[bool]:
    """Return the condition that rows have this owner. MariaDB's ``=`` ignores trailing spaces."""
    return and_(column == owner, _SameLength(column, owner))


S = TypeVar("S", bound="Store")
P = ParamSpec("P")
T = TypeVar("T")


class CommitUnknown(RecordUnavailable):
    """The connection broke during the commit, so it is not known whether the transaction happened."""


Method = Callable[Concatenate[S, Connection, P], T]


def transaction(method: Method[S, P, T]) -> Callable[Concatenate[S, P], T]:
    """Run a method in a transaction of its own, with its connection as the first argument.

    The method is retried if the database aborted the transaction because of another one: a deadlock of
    InnoDB, or a conflict where the host's engine is serializable. It is also retried if the connection was
    dead before the commit.
    """
    return _in_transaction(method, patience=0)


def patient_transaction(method: Method[S, P, T]) -> Callable[Concatenate[S, P], T]:
    """Run a method as ``transaction`` does, and retry it for some seconds after other failures, too.

    These are a locked database, one that cannot be reached, and a connection that broke during the commit.
    So the method must do nothing if it has already taken effect.
    """
    return _in_transaction(method, patience=_RETRY_SECONDS)


def _in_transaction(method: Method[S, P, T], *, patience: float) -> Callable[Concatenate[S, P], T]:
    @wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        left, deadline = _ATTEMPTS, time.monotonic() + patience
        while True:
            connected = committing = False
            try:
                with self._database.engine().connect() as connection, connection.begin():
                    connected = True
                    result = method(self, connection, *args, **kwargs)
                    committing = True
            except (SQLAlchemyError, OSError) as error:  # OSError: a folder cannot be created
                left -= 1
                disconnected = _is_disconnect(error)
                again = left > 0 and (_is_conflict(error) or (disconnected and connected and not committing))
                if not again and time.monotonic() < deadline and isinstance(error, SQLAlchemyError):
                    again = disconnected or not connected or _is_locked(error)
                if not again:
                    raise _unavailable(error, CommitUnknown if committing else RecordUnavailable) from None
            else:
                return result
            # Several processes may fail at once. A random pause keeps them apart.
            longest = _PAUSE * 2 ** min(_ATTEMPTS - max(left, 0), 5)
            time.sleep(random.uniform(0, longest))  # noqa: S311  # not for security

    return run


class Store:
    """A part of the record of one app.

    Every method raises ``RecordUnavailable`` if the database does not answer, or has no such tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database


def _codes(error: Exception) -> set[object]:
    orig = getattr(error, "orig", None)
    return {getattr(orig, "sqlstate", None), getattr(orig, "pgcode", None), *getattr(orig, "args", ())[:1]}


def _is_conflict(error: Exception) -> bool:
    return not _CONFLICT_CODES.isdisjoint(_codes(error))


def _is_disconnect(error: Exception) -> bool:
    return getattr(error, "connection_invalidated", False) or not _KILLED.isdisjoint(_codes(error))


def _is_locked(error: Exception) -> bool:
    return "database is locked" in str(getattr(error, "orig", "")) or not _LOCKED.isdisjoint(_codes(error))


def _unavailable(error: Exception, kind: type[RecordUnavailable]) -> RecordUnavailable:
    # The statement and its parameters are not logged: they have data of callers.
    # PostgreSQL quotes both in the lines after the first.
    reason = getattr(error, "orig", None) or error
    text = str(reason).partition("\n")[0]
    hint = next((hint for pattern, hint in _HINTS if pattern.search(text)), "")
    logger.error("the record of batches is unavailable: %s: %s%s", type(reason).__name__, text, hint)
    return kind("The record of batches is unavailable. Try again later.")
