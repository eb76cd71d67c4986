"""What the record does when its database fails for a moment: no accepted batch is lost by that."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.engine import make_url
from werkzeug.wrappers import Response

from flask_llm_batches.signals import batch_submitted, usage_recorded
from flask_llm_batches.store.database import HostDatabase
from flask_llm_batches.store.store import Store, transaction
from flask_llm_batches.testing import Call, Simulator
from flask_llm_batches.testing.simulator.openai import error_response
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import CREATES, create

SERVERS = pytest.mark.parametrize("make_database", ["postgresql", "mariadb"], indirect=True)

CONNECTIONS = {
    "postgresql": (
        "SELECT pid FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()",
        "SELECT pg_terminate_backend({})",
    ),
    "mysql": (
        "SELECT id FROM information_schema.processlist WHERE db = '{}' AND id <> connection_id()",
        "KILL {}",
    ),
}


def kill_connections(url: str) -> None:
    """End all connections to a database, as a server does that is restarted."""
    asked = make_url(url)
    find, kill = CONNECTIONS[asked.get_backend_name()]
    for (connection,) in query(url, find.format(asked.database)):
        query(url, kill.format(connection))


def accepted(url: str) -> list[tuple[str, str]]:
    """Return the state of each batch and its events in the usage."""
    return [
        tuple(row)
        for row in query(
            url,
            "SELECT state, event FROM llm_batches_batch JOIN llm_batches_usage ON uid = batch_uid",
        )
    ]


@SERVERS
@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_dead_connection_costs_nothing(
    database_app: Flask, database_url: str, llm_provider: Simulator, moment: str
) -> None:
    """Regression: with dead connections a create was a 503, or its batch was unknown to all other calls."""
    ada = client_of(database_app, "ada")
    create(ada, "openai")
    if moment == "before":
        kill_connections(database_url)
        made = create(ada, "openai")
    else:
        llm_provider.delay_next(0.5, on=CREATES["openai"])
        with ThreadPoolExecutor(1) as caller:
            creating = caller.submit(create, client_of(database_app, "ada"), "openai")
            while len(llm_provider.calls_to(CREATES["openai"])) < 2:
                time.sleep(0.01)
            kill_connections(database_url)
            made = creating.result()
    assert made.status_code == 200
    assert accepted(database_url) == [("accepted", "create")] * 2
    kill_connections(database_url)
    assert ada.get(f"/v1/batches/{made.get_json()['id']}").status_code == 200


@pytest.mark.parametrize("outcome", ["accepted", "failed"])
def test_a_locked_database_is_waited_for(
    make_host: MakeHost, llm_provider: Simulator, tmp_path: Path, outcome: str
) -> None:
    """Regression: when SQLite was locked for longer than the driver waits, an accepted batch was unknown."""
    path = tmp_path / "host.sqlite3"
    app = make_host(database=f"sqlite:///{path}?timeout=0.1")
    rival = create_engine(f"sqlite:///{path}", poolclass=NullPool)

    def rewrite(call: Call, response: Response) -> Response:
        if f"{call.method} {call.path}" != CREATES["openai"]:
            return response
        time.sleep(0.3)
        return response if outcome == "accepted" else error_response(400, "No.")

    llm_provider.rewrite = rewrite
    with ThreadPoolExecutor(1) as caller, rival.connect() as connection:
        creating = caller.submit(create, client_of(app, "ada"), "openai")
        while not llm_provider.calls_to(CREATES["openai"]):
            time.sleep(0.01)
        connection.execute(text("UPDATE llm_batches_batch SET refreshed_at = 1"))
        time.sleep(0.8)
        assert not creating.done()
        connection.commit()
        assert creating.result().status_code == (200 if outcome == "accepted" else 400)
    event = "create" if outcome == "accepted" else "create_failed"
    assert accepted(f"sqlite:///{path}") == [(outcome, event)]


class Cutter:
    """Stands between a client and its database, and loses the server's answer to a commit.

    Attributes:
        url: Where it listens, as a URL of the database.
        at: Which commit from now on loses its answer; 0 for none.
    """

    def __init__(self, url: str) -> None:
        self.at = 0
        asked = make_url(url)
        folder = asked.query.get("host")
        self._server: Any = f"{folder}/.s.PGSQL.{asked.port or 5432}" if folder else (asked.host, asked.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port: int = self._listener.getsockname()[1]
        here = asked.set(host="127.0.0.1", port=port).difference_update_query(["host"])
        self.url = here.render_as_string(hide_password=False)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            kind = socket.AF_UNIX if isinstance(self._server, str) else socket.AF_INET
            server = socket.socket(kind)
            server.connect(self._server)
            cut = threading.Event()
            for one, other, asks in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(one, other, asks, cut), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, asks: bool, cut: threading.Event) -> None:
        with one, other:
            while data := _received(one):
                if asks and b"COMMIT" in data and self.at:
                    self.at -= 1
                    if not self.at:
                        cut.set()
                elif not asks and cut.is_set():
                    break
                try:
                    other.sendall(data)
                except OSError:
                    break
            for end in (one, other):
                _hang_up(end)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


@contextmanager
def cutting(url: str) -> Iterator[Cutter]:
    cutter = Cutter(url)
    try:
        yield cutter
    finally:
        cutter.close()


@SERVERS
@pytest.mark.parametrize("commit", [1, 2], ids=["of the intent", "of the acceptance"])
def test_a_commit_whose_answer_is_lost(
    make_host: MakeHost, database_url: str, llm_provider: Simulator, commit: int
) -> None:
    """A commit that happened although its connection broke is no reason to lose, repeat or count anything."""
    heard: list[str] = []

    def submitted(_app: Flask, **_: Any) -> None:
        heard.append("submitted")

    def used(_app: Flask, usage: Any) -> None:
        heard.append(usage["event"])

    with cutting(database_url) as cutter:
        app = make_host(database=cutter.url)
        ada = client_of(app, "ada")
        create(ada, "openai", key="first")
        cutter.at = commit
        with batch_submitted.connected_to(submitted, app), usage_recorded.connected_to(used, app):
            made = create(ada, "openai", key="k")
        assert cutter.at == 0
        assert made.status_code == 200
        assert create(ada, "openai", key="k").get_json()["id"] == made.get_json()["id"]
    assert accepted(database_url) == [("accepted", "create")] * 2
    assert len(llm_provider.batches) == 2
    assert heard == ["submitted", "create"]


class Nested(Store):
    """Does something in a savepoint."""

    tries = 0

    @transaction
    def run(self, connection: Connection) -> int:
        self.tries += 1
        with connection.begin_nested():
            if self.tries == 1:  # as InnoDB does it to one of two transactions that wait for each other
                connection.exec_driver_sql("ROLLBACK")
        return self.tries


@pytest.mark.parametrize("make_database", ["mariadb"], indirect=True)
def test_a_deadlock_in_a_savepoint_is_retried(database_url: str) -> None:
    """Regression: of 32 simultaneous creates with limits, one was a 503 in a hundred runs."""
    db = SQLAlchemy()
    host = Flask("host")
    host.config["SQLALCHEMY_DATABASE_URI"] = database_url
    db.init_app(host)
    with host.app_context():
        assert Nested(HostDatabase(db, None)).run() == 2
