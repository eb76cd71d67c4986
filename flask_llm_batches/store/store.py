"""What every part of the record is: short transactions of our own, whose errors are ours."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import ColumnElement, Connection, and_, func
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute

from flask_llm_batches.errors import RecordUnavailable
from flask_llm_batches.store.database import Database

logger = logging.getLogger(__name__)

# What PostgreSQL and MariaDB say of a deadlock, and of a transaction that others were quicker than.
# https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html
# https://mariadb.com/kb/en/mariadb-error-codes/
_GIVEN_UP = {"40P01", 1213, "40001", 1020}
_ATTEMPTS, _PAUSE = 10, 0.05

# In SQLite's, PostgreSQL's and MariaDB's words.
_HINTS = (
    (
        re.compile(r"no such table|relation .* does not exist|Table .* doesn't exist"),
        "; make the tables with flask db migrate and flask db upgrade, or with db.create_all()",
    ),
    (
        re.compile("database is locked"),
        "; SQLite has one writer: commit or roll back what db.session has flushed before a batch is touched",
    ),
)


def is_owned(column: InstrumentedAttribute[str], owner: str) -> ColumnElement[bool]:
    """Compare the owner of rows; to MariaDB, ``ada`` is ``ada `` as well."""
    return and_(column == owner, func.char_length(column) == len(owner))


S = TypeVar("S", bound="Store")
P = ParamSpec("P")
T = TypeVar("T")


def transaction(method: Callable[Concatenate[S, Connection, P], T]) -> Callable[Concatenate[S, P], T]:
    """Run a method in a transaction of its own, whose connection it gets.

    It runs again when the database gave it up for the sake of another: InnoDB's deadlocks are no mistake of
    anybody's, and where the host's engine is serializable, every claim may be asked to come again.
    """

    @wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        left = _ATTEMPTS
        while True:
            try:
                with self._database.engine().begin() as connection:
                    return method(self, connection, *args, **kwargs)
            except (SQLAlchemyError, OSError) as error:  # the latter of a folder that cannot be made
                left -= 1
                if not (left and _is_given_up(error)):
                    raise _unavailable(error) from None
            # Several lose at once, and would meet again.
            longest = _PAUSE * 2 ** min(_ATTEMPTS - left, 5)
            time.sleep(random.uniform(0, longest))  # noqa: S311  # nothing is kept secret by it

    return run


class Store:
    """A part of the record of one app.

    Every method raises ``RecordUnavailable`` when the database does not answer, or lacks the tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database


def _is_given_up(error: Exception) -> bool:
    orig = getattr(error, "orig", None)
    codes = (getattr(orig, "sqlstate", None), getattr(orig, "pgcode", None), *getattr(orig, "args", ())[:1])
    return not _GIVEN_UP.isdisjoint(codes)


def _unavailable(error: Exception) -> RecordUnavailable:
    # The statement and its parameters stay out of the log: they hold what callers sent.
    # PostgreSQL quotes both in the lines after the first.
    reason = getattr(error, "orig", None) or error
    text = str(reason).partition("\n")[0]
    hint = next((hint for pattern, hint in _HINTS if pattern.search(text)), "")
    logger.error("the record of batches is unavailable: %s: %s%s", type(reason).__name__, text, hint)
    return RecordUnavailable("The record of batches is unavailable. Try again later.")
