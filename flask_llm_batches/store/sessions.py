"""The host's ``db.session``: a connection on which it has only read is released before provider calls."""

from __future__ import annotations

import re
import weakref
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin, scoped_session

# A SELECT with only these functions changes nothing. Everything else may write, or hold a lock.
_FUNCTIONS = "avg|char_length|coalesce|count|length|lower|max|min|sum|upper"
_WORDS = "all|and|any|as|between|by|else|exists|from|in|join|not|on|or|select|then|union|when|where"
_READ = re.compile(r"\s*SELECT\b(?!.*\b(?:FOR|INTO|LOCK)\b)", re.IGNORECASE | re.DOTALL)
_CALL = re.compile(rf"""(?!\b(?:{_FUNCTIONS}|{_WORDS})\s*\()(?:\b\w+|["`\]])\s*\(""", re.IGNORECASE)

_WATCH = "llm_batches_watch"

_watched: weakref.WeakSet[scoped_session[Any]] = weakref.WeakSet()


class _Watch:
    """Watches the statements of a session's transaction, on all its connections."""

    def __init__(self, transaction: SessionTransaction) -> None:
        self.transaction = weakref.ref(transaction)
        self.only_reads = True
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()

    def start(self, connection: Connection) -> None:
        if connection not in self._connections:  # a savepoint uses the same connection
            self._connections.add(connection)
            event.listen(connection, "before_cursor_execute", self.look)

    def stop(self) -> None:
        while self._connections:
            event.remove(self._connections.pop(), "before_cursor_execute", self.look)

    def look(self, _connection: Connection, _cursor: Any, statement: str, *_: object) -> None:
        self.only_reads = self.only_reads and _only_reads(statement)


def _only_reads(statement: str) -> bool:
    return _READ.match(statement) is not None and _CALL.search(statement) is None


def watch(sessions: scoped_session[Any]) -> None:
    """Watch the sessions from now on, for ``release_connection``."""
    # Several apps may share one db. SQLAlchemy identifies the targets of listeners by their addresses, which
    # Python may reuse.
    if sessions not in _watched:
        _watched.add(sessions)
        event.listen(sessions, "after_begin", _begin)
        event.listen(sessions, "after_transaction_end", _end)


def release_connection(session: Session) -> None:
    """End the transaction of a session if it has only read; when in doubt, leave it alone.

    Loaded objects stay in the session, and are loaded again when they are used.
    """
    transaction = session.get_transaction()
    watched: _Watch | None = session.info.get(_WATCH)
    if transaction is None or watched is None or watched.transaction() is not transaction:
        return
    if not watched.only_reads or session.new or session.dirty or session.deleted:
        return
    if transaction.origin is SessionTransactionOrigin.AUTOBEGIN:  # whoever called begin() ends it
        session.rollback()


def _begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    outermost = session.get_transaction() or transaction
    watched: _Watch | None = session.info.get(_WATCH)
    if watched is None or watched.transaction() is not outermost:
        watched = session.info[_WATCH] = _Watch(outermost)
    # Listen on the connection: the session's own events miss the statements of session.connection().
    watched.start(connection)


def _end(session: Session, transaction: SessionTransaction) -> None:
    # A session may be bound to a connection, which stays open after the transaction.
    watched: _Watch | None = session.info.get(_WATCH)
    if watched is not None and watched.transaction() is transaction:
        watched.stop()
