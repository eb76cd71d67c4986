"""A search of a provider's list finds what is there, decides nothing too early, and always ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.wrappers import Response

from flask_llm_batches.core import search
from flask_llm_batches.store.leases import LEASE
from flask_llm_batches.testing import Call, SimulatedBatch, Simulator
from flask_llm_batches.testing.simulator.protocol import json_response
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import (
    CREATES,
    FOUND,
    LISTS,
    NOT_THERE,
    STILL_UNKNOWN,
    WINDOW,
    create,
    go_wrong,
    ids,
    reconcile,
    rewrite_lists,
    show_nothing,
    states,
    time_passes,
)

HOUR = 3600


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'host.sqlite3'}"


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, database: str) -> Flask:
    return make_host(database=database, providers=llm_provider.providers)


def others(simulator: Simulator, number: int, *, seconds_ago: int = 0) -> None:
    """Add batches that somebody else has made, after all that are there."""
    like = simulator.batches[0]
    for _ in range(number):
        other = f"other-{len(simulator.batches)}"
        simulator.add(replace(like, id=other, requests=like.requests[:1], metadata=None, times={}))
        simulator.batches[-1].times["created_at"] -= seconds_ago


def missing(
    simulator: Simulator, client: FlaskClient, provider: str = "openai", key: str = "k"
) -> SimulatedBatch:
    """Make a batch whose create gets no answer."""
    go_wrong(simulator, provider, done=True)
    create(client, provider, key=key)
    return simulator.batches[-1]


@pytest.mark.parametrize("provider", ["openai", "mistral"])
def test_every_page_is_searched_once(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, provider: str
) -> None:
    """Many batches on many pages cost one walk, which ends when all are found."""
    for key in "abcd":
        missing(llm_provider, ada, provider, key)
        others(llm_provider, 75)
    llm_provider.calls.clear()
    assert reconcile(app) == "4 found, 0 not there, 0 still unknown"
    assert len(llm_provider.calls_to(LISTS[provider])) == 4
    assert states(database) == ["accepted"] * 4


@pytest.mark.parametrize("provider", CREATES)
def test_a_search_goes_back_some_hours(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, provider: str
) -> None:
    """What is much older than all that is looked for is not read: it ends after one such page."""
    create(ada, provider)
    others(llm_provider, 400, seconds_ago=4 * HOUR)
    others(llm_provider, 50)
    go_wrong(llm_provider, provider, done=False)
    create(ada, provider, 3)
    query(database, f"UPDATE llm_batches_batch SET lease_until = lease_until - {WINDOW}")
    llm_provider.calls.clear()
    assert reconcile(app) == NOT_THERE
    assert len(llm_provider.calls_to(LISTS[provider])) == 2


def test_searches_are_claimed_by_one(make_host: MakeHost, llm_provider: Simulator, database: str) -> None:
    """However many callers in however many processes need it, one searches; the others wait for nothing."""
    apps = [make_host(database=database) for _ in range(2)]
    clients = [client_of(app, "ada") for app in apps for _ in range(4)]
    for _ in range(3):
        go_wrong(llm_provider, "openai", done=False)
        create(clients[0], "openai")
    llm_provider.calls.clear()
    llm_provider.delay_next(0.5, on=LISTS["openai"])
    with ThreadPoolExecutor(8) as threads:
        assert [len(found) for found in threads.map(ids, clients)] == [3] * 8
    assert len(llm_provider.calls_to(LISTS["openai"])) == 1


def test_a_search_that_was_killed_is_done_again(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """The lease of a process that has died in a search ends by itself."""
    made = missing(llm_provider, ada)
    query(database, "INSERT INTO llm_batches_provider (name, lease_token) VALUES ('openai', 'dead')")
    query(database, f"UPDATE llm_batches_provider SET lease_until = strftime('%s') + {LEASE}")
    assert ids(ada) != [made.id]
    query(database, f"UPDATE llm_batches_provider SET lease_until = lease_until - {LEASE}")
    assert ids(ada) == [made.id]


@pytest.mark.parametrize("provider", ["openai", "mistral"])
@pytest.mark.parametrize("seconds", [-2 * HOUR, -300, 300, 2 * HOUR])
def test_clocks_differ(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, provider: str, seconds: int
) -> None:
    """Regression: with the provider's clock five minutes behind ours, what was on its second page had failed.

    So it had where our clock was five minutes ahead when the create was recorded.
    """
    made = missing(llm_provider, ada, provider)
    others(llm_provider, 120)
    time_passes(database, WINDOW)
    for batch in llm_provider.batches:
        batch.times["created_at"] += seconds - WINDOW
    assert reconcile(app) == FOUND
    assert create(ada, provider, key="k").get_json()["id"] == made.id


@pytest.mark.parametrize("place", [99, 0, 50])
def test_one_old_batch_ends_no_search(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, place: int
) -> None:
    """Regression: one old batch at the end of a page ended the search, and what came after it had failed."""
    missing(llm_provider, ada)
    others(llm_provider, 100)
    llm_provider.batches[-1 - place].times["created_at"] -= 100 * HOUR
    time_passes(database, WINDOW)
    assert reconcile(app) == FOUND


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_list_may_not_say_whether_it_goes_on(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, provider: str
) -> None:
    """Regression: without ``has_more``, a batch on the second page had failed. A full page is followed."""

    def leave_out(page: dict[str, Any]) -> None:
        del page["has_more"]

    missing(llm_provider, ada, provider)
    others(llm_provider, 120)
    rewrite_lists(llm_provider, leave_out)
    time_passes(database, WINDOW)
    # Nobody can tell whose it is at Anthropic, but there may be one.
    assert reconcile(app) == (FOUND if provider == "openai" else STILL_UNKNOWN)


@pytest.mark.parametrize("options", [(), ("--older-than", "0")])
def test_a_list_may_lag_behind(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, options: tuple[str, ...]
) -> None:
    """Regression: a batch that was listed 90 seconds late had failed, and its key made a second one."""
    made = missing(llm_provider, ada)
    rewrite_lists(llm_provider, show_nothing)
    time_passes(database, 90)
    assert reconcile(app, *options) == STILL_UNKNOWN
    assert create(ada, "openai", key="k").status_code == 409
    llm_provider.rewrite = None
    time_passes(database, 30)
    assert create(ada, "openai", key="k").get_json()["id"] == made.id
    assert len(llm_provider.batches) == 1


@pytest.mark.parametrize("endless", ["the same page", "new batches", "nothing"])
def test_an_endless_list_ends_and_decides_nothing(
    app: Flask,
    ada: FlaskClient,
    llm_provider: Simulator,
    database: str,
    endless: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Regression: ``has_more: true`` for ever kept settling alive for ever. What is missing stays unknown."""
    monkeypatch.setattr(search, "_MAX_PAGES", 20)
    numbers = count()
    create(ada, "openai")
    listed = client_of(app, None).get("/v1/batches?provider=openai").get_json()["data"]

    def go_on(call: Call, response: Response) -> Response:
        if f"{call.method} {call.path}" != LISTS["openai"]:
            return response
        batches = [] if endless == "nothing" else listed
        if endless == "new batches":
            batches = [{**batch, "id": f"new-{next(numbers)}"} for batch in listed]
        return json_response({"object": "list", "data": batches, "has_more": True})

    go_wrong(llm_provider, "openai", done=False)
    create(ada, "openai")
    llm_provider.rewrite = go_on
    time_passes(database, WINDOW)
    llm_provider.calls.clear()
    assert reconcile(app) == STILL_UNKNOWN
    pages = {"the same page": 2, "new batches": 20, "nothing": 1}
    assert len(llm_provider.calls_to(LISTS["openai"])) == pages[endless]
    assert [one for one in caplog.messages if "has no end" in one]


def test_a_search_ends_in_time(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list that is slow and long is not read for longer than a minute."""
    monkeypatch.setattr(search, "_MAX_SECONDS", 0.2)
    create(ada, "openai")
    others(llm_provider, 400)
    go_wrong(llm_provider, "openai", done=False)
    create(ada, "openai")
    time_passes(database, WINDOW)
    llm_provider.calls.clear()
    llm_provider.delay_next(0.3, on=LISTS["openai"])
    assert reconcile(app) == STILL_UNKNOWN
    assert len(llm_provider.calls_to(LISTS["openai"])) == 1
