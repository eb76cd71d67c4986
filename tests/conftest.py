from __future__ import annotations

import gc
import itertools
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import WeakSet

import hypothesis
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, Engine, event

from flask_llm_batches.testing import Simulator
from tests.databases import KINDS, database, postgresql_folder
from tests.hosts import KEYS, MASTER_KEY, create_host, requests
from tests.others import Others, running

# The same examples everywhere, and few enough to be quick.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")

# Servers show whether the caller is still there; here one always is.
_connection, _caller = socket.socketpair()

MakeHost = Callable[..., Flask]
MakeDatabase = Callable[[], str]


def pytest_configure(config: pytest.Config) -> None:
    """Keep one place for the PostgreSQL of all workers, and let commands that tests start be interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for end in (_connection, _caller):
        config.add_cleanup(end.close)
    if not hasattr(config, "workerinput"):
        stack = ExitStack()
        stack.enter_context(postgresql_folder())
        config.add_cleanup(stack.close)


@pytest.fixture(autouse=True)
def _hosts_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put instance folders where pytest deletes them, and use no key of the developer."""
    monkeypatch.setenv("HOSTS_DIR", str(tmp_path))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MISTRAL_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_key_in_any_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test logs a key."""
    caplog.set_level(logging.DEBUG)
    yield
    logged = "\n".join(record.getMessage() for record in caplog.get_records("call"))
    assert not KEYS.search(logged)


@pytest.fixture(autouse=True)
def _databases_are_closed() -> Iterator[None]:
    """No test leaves a connection to a database open: since Python 3.13, SQLite's warn of that."""
    engines: WeakSet[Engine] = WeakSet()

    def note(connection: Connection) -> None:
        engines.add(connection.engine)

    event.listen(Engine, "engine_connect", note)
    yield
    event.remove(Engine, "engine_connect", note)
    for engine in engines:
        engine.dispose()


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _apps_are_garbage() -> Iterator[None]:
    """An app, its event loop and its connections are reference cycles: many would be open at once."""
    yield
    if next(_tests) % 25 == 0:
        gc.collect()
        gc.freeze()  # what is left are modules, by now; looking at them again takes a second


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def make_host(llm_provider: Simulator, spool_dir: Path) -> MakeHost:
    """Make a host whose provider is the simulator."""

    def make(**settings: Any) -> Flask:
        defaults = {
            "providers": {"openai": llm_provider.settings},
            "master_key": MASTER_KEY,
            "spool_dir": str(spool_dir),
        }
        return create_host(**{**defaults, **settings})

    return make


@pytest.fixture(params=KINDS)
def make_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDatabase]:
    """Make a database of each kind in turn, and return its URL."""
    with ExitStack() as databases:
        yield lambda: databases.enter_context(database(request.param, tmp_path))


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    return make_database()


@pytest.fixture
def database_app(database_url: str, make_host: MakeHost) -> Flask:
    """A host on a database of each kind in turn."""
    return make_host(database=database_url)


@pytest.fixture
def others() -> Iterator[Others]:
    with running() as others:
        yield others


@pytest.fixture
def app(make_host: MakeHost, tmp_path: Path) -> Flask:
    return make_host(database=tmp_path / "host.sqlite3")


@pytest.fixture
def ada(app: Flask) -> FlaskClient:
    return client_of(app, "ada")


@pytest.fixture
def admin(app: Flask) -> FlaskClient:
    return client_of(app, None)


def client_of(app: Flask, user: str | None) -> FlaskClient:
    """Return a client that is a user of the host, or the bearer of the master key."""
    client = app.test_client()
    environ: dict[str, Any] = client.environ_base
    environ["HTTP_X_USER" if user else "HTTP_X_API_KEY"] = user or MASTER_KEY
    environ["werkzeug.socket"] = _connection
    return client


def create_batch(client: FlaskClient, count: int = 3, **fields: Any) -> str:
    """Create a batch and return its id."""
    body = {"model": "openai:gpt-4o-mini", "requests": requests(count), **fields}
    answer = client.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    batch_id: str = answer.json["id"]  # type: ignore[index]
    return batch_id
