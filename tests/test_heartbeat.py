"""Other processes can see that the process of a create is alive."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.wrappers import Response

from flask_llm_batches.core import heartbeat
from flask_llm_batches.core.heartbeat import Heartbeat
from flask_llm_batches.store.leases import LEASE
from flask_llm_batches.testing import Call, Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import CREATES, LISTS, create, own_ids


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT", 0.2)


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'host.sqlite3'}"


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, database: str) -> Flask:
    return make_host(database=database, providers=llm_provider.providers)


def leases(database: str) -> list[int | None]:
    return [until for (until,) in query(database, "SELECT lease_until FROM llm_batches_batch")]


def eventually(database: str, statement: str, expected: object) -> None:
    deadline = time.monotonic() + 10
    while query(database, statement) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert query(database, statement) == expected


def heartbeats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llm-batches-heartbeat"]


@pytest.mark.parametrize("provider", CREATES)
def test_a_create_is_known_to_run_however_long_it_takes(
    app: Flask, llm_provider: Simulator, database: str, provider: str
) -> None:
    """Its lease is extended while it waits for the provider, its batch is listed, and nobody looks for it."""
    answered = threading.Event()

    def hold(call: Call, response: Response) -> Response:
        if f"{call.method} {call.path}" == CREATES[provider]:
            answered.wait(30)
        return response

    llm_provider.rewrite = hold
    ada = client_of(app, "ada")
    with ThreadPoolExecutor(1) as caller:
        creating = caller.submit(create, client_of(app, "ada"), provider)
        try:
            while not llm_provider.calls_to(CREATES[provider]):
                time.sleep(0.01)
            (first,) = leases(database)
            assert first is not None
            assert 0 < first - time.time() <= LEASE
            (shown,) = ada.get("/v1/batches").get_json()["data"]
            assert (shown["id"], shown["status"]) == (own_ids(database)[0], "validating")
            answer = ada.get(f"/v1/batches/{shown['id']}/results")
            assert (answer.status_code, answer.headers["Retry-After"]) == (409, "2")
            assert "It is still being submitted." in answer.get_json()["detail"]
            eventually(database, f"SELECT lease_until > {first} FROM llm_batches_batch", [(1,)])
        finally:
            answered.set()
        made = creating.result().get_json()["id"]
    assert leases(database) == [None]
    assert not llm_provider.calls_to(LISTS[provider])
    assert ada.get(f"/v1/batches/{shown['id']}").get_json()["id"] == made


def test_a_refused_create_is_listed_no_longer(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """What the provider refused was never there, by whatever id."""
    llm_provider.fail_next(400, on=CREATES["openai"])
    assert create(ada, "openai").status_code == 400
    assert ada.get("/v1/batches").get_json()["data"] == []
    assert ada.get(f"/v1/batches/{own_ids(database)[0]}?provider=openai").status_code == 404


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_what_could_not_be_recorded_is_recorded_later(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, provider: str
) -> None:
    """A batch that was accepted while the record failed is recorded as soon as it can be, by itself."""
    query(database, "ALTER TABLE llm_batches_usage RENAME TO elsewhere")
    made = create(ada, provider, key="k")
    assert made.status_code == 200
    query(database, "ALTER TABLE elsewhere RENAME TO llm_batches_usage")
    eventually(
        database, "SELECT state, batch_id FROM llm_batches_batch", [("accepted", made.get_json()["id"])]
    )
    again = create(ada, provider, key="k")
    assert (again.get_json()["id"], again.headers["Idempotent-Replayed"]) == (made.get_json()["id"], "true")


def test_the_thread_lasts_no_longer_than_it_is_needed(app: Flask) -> None:
    """A beat that ends, fails or is removed leaves no thread behind; one that fails is tried again."""
    beats = Heartbeat()
    beaten: list[int] = []

    def beat() -> bool:
        beaten.append(len(beaten))
        if len(beaten) == 1:
            raise RuntimeError("once")
        return len(beaten) < 3

    with app.app_context():
        with beats.during(lambda: True):
            beats.add(beat)
        assert heartbeats()
    deadline = time.monotonic() + 10
    while beats._thread is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert beaten == [0, 1, 2]
    assert len(beats._beats) == 0


def test_a_thread_that_did_not_start_is_started_later(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: after one failure to start the thread, no lease of the process was extended any more."""
    beats, beaten = Heartbeat(), threading.Event()

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def beat() -> bool:
        beaten.set()
        return False

    with app.app_context():
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="new thread"):
            patch.setattr(threading.Thread, "start", fail)
            beats.add(lambda: True)
        beats.add(beat)
        assert beaten.wait(10)
    assert len(beats._beats) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_child_process_keeps_nothing_of_its_parent_alive(app: Flask) -> None:
    """After a fork, what the parent works on beats in the parent alone."""
    beats = Heartbeat()
    with app.app_context(), beats.during(lambda: True):
        if (child := os.fork()) == 0:
            with beats.during(lambda: True):
                alone = len(beats._beats) == 1  # it cannot be seen from outside
                os._exit(not (alone and len(heartbeats()) == 1))
        assert os.waitpid(child, 0)[1] == 0
