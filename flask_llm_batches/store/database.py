"""The database of the record: the host's own, or a SQLite file of ours."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import CursorResult, Engine, Executable, MetaData, create_engine, event
from sqlalchemy.exc import ArgumentError
from sqlalchemy.schema import CreateIndex, CreateTable

from flask_llm_batches.store import sessions
from flask_llm_batches.store.models import Base

Execute = Callable[[Executable], CursorResult[Any]]


class Database(Protocol):
    """Finds the engine of the current app."""

    def engine(self) -> Engine:
        """Return the engine that the record is kept on; called inside an app context."""

    def release_connection(self) -> None:
        """Release the connection that the host's session has only read on. Called inside an app context."""

    def host_transaction(self) -> AbstractContextManager[Execute]:
        """Run a block in a transaction of the host's session, and commit it.

        Returns:
            A function that executes a statement on the record in that transaction.
        """


class HostDatabase:
    """The host's Flask-SQLAlchemy: our tables are in its metadata, for its migrations and ``create_all``.

    Args:
        db: The host's ``SQLAlchemy()``.
        bind_key: Its bind; None is the default one.
    """

    def __init__(self, db: Any, bind_key: str | None) -> None:
        self._db = db
        self._bind_key = bind_key
        if bind_key not in db.metadatas:
            db.metadatas[bind_key] = MetaData(info={"bind_key": bind_key})
        self._metadata: MetaData = db.metadatas[bind_key]
        for table in Base.metadata.sorted_tables:
            name = f"{self._metadata.schema}.{table.name}" if self._metadata.schema else table.name
            if name not in self._metadata.tables:  # several apps may share one db
                table.to_metadata(self._metadata)
        sessions.watch(db.session)

    def engine(self) -> Engine:
        engines: dict[str | None, Engine] = self._db.engines
        if self._bind_key not in engines:  # ``init_app`` has logged a warning
            raise ArgumentError(f"LLM_BATCHES_BIND_KEY {self._bind_key!r} is no key of SQLALCHEMY_BINDS")
        engine = engines[self._bind_key]
        if self._metadata.schema:
            return engine.execution_options(schema_translate_map={None: self._metadata.schema})
        return engine

    def release_connection(self) -> None:
        sessions.release_connection(self._db.session())

    @contextmanager
    def host_transaction(self) -> Iterator[Execute]:
        session = self._db.session  # the block may remove what is in it, and go on with another one
        try:
            yield lambda statement: session.execute(statement, bind_arguments={"bind": self.engine()})
            session.commit()
        finally:
            session.remove()  # which rolls back what was not committed


class FileDatabase:
    """A SQLite file, made with its tables at the first use.

    Args:
        path: The path of the file; missing folders are created.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._engines: dict[int, Engine] = {}  # by process id: after a fork, SQLite forbids the parent's

    def engine(self) -> Engine:
        with self._lock:
            engine = self._engines.get(os.getpid())
            if engine is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                engine = self._engines[os.getpid()] = self._open()
                weakref.finalize(self, _dispose, os.getpid(), engine)
            return engine

    def release_connection(self) -> None:
        pass

    @contextmanager
    def host_transaction(self) -> Iterator[Execute]:
        with self.engine().connect() as connection, connection.begin():
            yield connection.execute

    def _open(self) -> Engine:
        self._path.touch(mode=0o600)  # only the app can read it; SQLite's other files get the same mode
        engine = create_engine(f"sqlite:///{self._path}", connect_args={"timeout": 30})

        @event.listens_for(engine, "connect")
        def _write_ahead(connection: Any, _record: object) -> None:
            # Readers and the one writer do not wait for each other.
            connection.execute("PRAGMA journal_mode=WAL")

        with engine.begin() as connection:
            # Not metadata.create_all, which looks first and then creates: several processes may run this.
            for table in Base.metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))
        return engine


def _dispose(pid: int, engine: Engine) -> None:
    if pid == os.getpid():
        engine.dispose()
