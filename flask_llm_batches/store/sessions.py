"""The host's ``db.session``: a connection on which it has only read is released before provider calls."""

from __future__ import annotations

import re
import weakref
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session, SessionTransaction, SessionTransactionOrigin, scoped_session

# Whatever else is said may change something, or hold a lock: a function, too, unless it is one of these.
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
        if connection not in self._connections:  # a savepoint begins on the same
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
    # Several apps may share one db. SQLAlchemy itself knows its listeners' targets by their addresses, which
    # come again.
    if sessions not in _watched:
        _watched.add(sessions)
        event.listen(sessions, "after_begin", _begin)
        event.listen(sessions, "after_transaction_end", _end)


def release_connection(session: Session) -> None:
    """End the transaction of a session if it has only read; when in doubt, leave it alone.

    What was loaded stays in the session, and is loaded again when somebody looks at it.
    """
    transaction = session.get_transaction()
    watched: _Watch | None = session.info.get(_WATCH)
    if transaction is None or watched is None or watched.transaction() is not transaction:
        return
    if not watched.only_reads or session.new or session.dirty or session.deleted:
        return
    if transaction.origin is SessionTransactionOrigin.AUTOBEGIN:  # who begins in so many words ends it, too
        session.rollback()


def _begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    outermost = session.get_transaction() or transaction
    watched: _Watch | None = session.info.get(_WATCH)
    if watched is None or watched.transaction() is not outermost:
        watched = session.info[_WATCH] = _Watch(outermost)
    # On the connection: a session's own events miss what is said on session.connection().
    watched.start(connection)


def _end(session: Session, transaction: SessionTransaction) -> None:
    # A session may be bound to a connection, which stays when the transaction ends.
    watched: _Watch | None = session.info.get(_WATCH)
    if watched is not None and watched.transaction() is transaction:
        watched.stop()
