"""What every part of the record is: short transactions of our own, whose errors are ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import ColumnElement, Connection, and_, func
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute

from flask_llm_batches.errors import RecordUnavailable
from flask_llm_batches.store.database import Database

logger = logging.getLogger(__name__)

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


class Store:
    """A part of the record of one app.

    Every method raises ``RecordUnavailable`` when the database does not answer, or lacks the tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        try:
            with self._database.engine().begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            # The statement and its parameters stay out of the log: they hold what callers sent.
            # PostgreSQL quotes both in the lines after the first.
            reason = getattr(error, "orig", None) or error
            text = str(reason).partition("\n")[0]
            hint = next((hint for pattern, hint in _HINTS if pattern.search(text)), "")
            why = f"{type(reason).__name__}: {text}{hint}"
            logger.error("the record of batches is unavailable: %s", why)  # noqa: TRY400
            raise RecordUnavailable("The record of batches is unavailable. Try again later.") from None
