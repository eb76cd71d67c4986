"""The record on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import NullPool, create_engine, event, text
from sqlalchemy.engine import ExceptionContext

from flask_llm_batches import EVERYONE, Batch, current_llm_batches
from flask_llm_batches.signals import batch_finished
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.databases import query, take_away, wait_for_a_wait
from tests.hosts import requests
from tests.servers import gunicorn

# Of one, two, three and four bytes in UTF-8, and two that case and accents would make equal to others.
WORDS = "aéあ😀🧮 İß"


@pytest.fixture
def ada(database_app: Flask) -> FlaskClient:
    return client_of(database_app, "ada")


def test_a_batch_runs_and_comes_back(
    database_app: Flask, database_url: str, ada: FlaskClient, llm_provider: Simulator
) -> None:
    """Create, retrieve, list, results and cancel; results go into the usage once, whoever fetches them."""
    batch_id = create_batch(ada, 3, metadata={"team": "search"})
    assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] == "in_progress"
    llm_provider.batches[0].finish()
    for client in (client_of(database_app, None), ada, ada):
        answer = client.get(f"/v1/batches/{batch_id}/results?provider=openai").get_json()
        assert sorted(row["custom_id"] for row in answer["results"]) == ["r0", "r1", "r2"]
    (listed,) = ada.get("/v1/batches").get_json()["data"]
    assert (listed["status"], listed["metadata"]) == ("completed", {"team": "search"})
    assert ada.post(f"/v1/batches/{create_batch(ada)}/cancel").get_json()["status"] == "cancelling"
    assert client_of(database_app, "bob").get(f"/v1/batches/{batch_id}?provider=openai").status_code == 404
    used = query(database_url, "SELECT event, requests, requested_by FROM llm_batches_usage ORDER BY id")
    assert used == [("create", 3, "ada"), ("results", 3, "master-key"), ("create", 3, "ada")]


def test_pages_are_exact(database_app: Flask, ada: FlaskClient) -> None:
    """Pages follow each other without a gap or an overlap, newest first, an owner's own only."""
    made = []
    for _ in range(5):
        made.append(create_batch(ada, 1))
        create_batch(client_of(database_app, "bob"), 1)
    pages: list[list[str]] = []
    page: dict[str, Any] = {"has_more": True}
    after = ""
    while page["has_more"]:
        page = ada.get(f"/v1/batches?limit=2{after}").get_json()
        pages.append([batch["id"] for batch in page["data"]])
        after = f"&after={page['last_id']}"
    assert pages == [made[4:2:-1], made[2:0:-1], made[:1]]


@pytest.mark.parametrize("make_database", ["sqlite"], indirect=True)
def test_indexes_are_used(database_app: Flask, ada: FlaskClient) -> None:
    """Regression: to find unsettled batches, a list read all batches of its owner."""
    made = [create_batch(ada, 1) for _ in range(3)]
    asked: list[tuple[str, Any]] = []
    with database_app.app_context():
        engine = database_app.extensions["sqlalchemy"].engine
    event.listen(engine, "before_cursor_execute", lambda *said: asked.append((said[2], said[3])))
    ada.get(f"/v1/batches?limit=1&after={made[-1]}")
    ada.get("/v1/batches/usage")
    queries = [said for said in asked if said[0].startswith("SELECT")]
    plans = []
    with engine.connect() as connection:
        for statement, parameters in queries:
            steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans += [step.detail.partition(" USING INDEX ")[2] for step in steps]
    assert plans == [
        "ix_llm_batches_batch_batch_id (batch_id=?)",
        "ix_llm_batches_batch_state_owner (state=? AND owner=?)",
        "ix_llm_batches_batch_owner_id (owner=? AND id<?)",
        "ix_llm_batches_batch_accounted_at_owner_status (accounted_at=? AND owner=?)",
        "ix_llm_batches_usage_batch_uid (batch_uid=?)",
        "ix_llm_batches_usage_owner_created_at (owner=?)",
    ]


def test_a_key_is_made_used_and_revoked(database_app: Flask) -> None:
    """Built-in keys let in until they are revoked."""
    with database_app.app_context():
        key = current_llm_batches.keys.create(owner="ada", admin=True)
        (kept,) = current_llm_batches.keys.list()
        assert (kept.owner, kept.admin, kept.revoked_at) == ("ada", True, None)
        client = database_app.test_client()
        call = {"path": "/v1/batches?provider=openai", "headers": {"X-API-Key": key}}
        assert client.get(**call).status_code == 200
        assert current_llm_batches.keys.revoke(kept.id)
        assert not current_llm_batches.keys.revoke(kept.id)
        assert client.get(**call).status_code == 401


def test_owners_are_compared_to_the_letter(database_app: Flask) -> None:
    """Owners that differ in case, an accent or a space at the end are different ones."""
    owners = ["ada", "ADA", "ada ", "àda", " ada", "ad"]
    with database_app.app_context():
        made = [
            current_llm_batches.create(owner=owner, model="openai:m", requests=requests(1)).id
            for owner in owners
        ]
        listed = [current_llm_batches.list(owner=owner).batches for owner in owners]
    assert [[batch.id for batch in batches] for batches in listed] == [[batch_id] for batch_id in made]


def test_sums_are_of_one_owner_each(database_app: Flask) -> None:
    """Regression: MariaDB summed up owners together that differ in a space at the end."""
    owners = ["ada", "ada ", "ADA"]
    with database_app.app_context():
        for owner in owners:
            current_llm_batches.create(owner=owner, model="openai:m", requests=requests(1))
        sums = current_llm_batches.usage(owner=EVERYONE, group_by="owner")
    assert sorted((row.group, row.batches) for row in sums) == sorted((owner, 1) for owner in owners)


def test_absurd_figures_are_summed_up(
    database_url: str, database_app: Flask, llm_provider: Simulator
) -> None:
    """Regression: SQLite's sums of absurd token counts overflowed, and the usage was a 503 from then on."""
    llm_provider.respond = lambda _: {"model": "gpt-4o-mini", "usage": {"prompt_tokens": 2**62}}
    with database_app.app_context():
        for _ in range(2):
            batch = current_llm_batches.create(owner="ada", model="openai:gpt-4o-mini", requests=requests(1))
            llm_provider.batches[-1].finish()
            assert len(list(current_llm_batches.results(batch.id, owner="ada"))) == 1
        (row,) = current_llm_batches.usage(owner="ada")
        assert (row.prompt_tokens, row.cost) == (2 * 10**8, None)
        most = 2**63 - 1
        query(database_url, f"UPDATE llm_batches_usage SET prompt_tokens = {most}, cost = {most}")
        (row,) = current_llm_batches.usage(owner="ada", group_by="model")
        (spent,) = current_llm_batches.overview(owner="ada").days.values()
    assert spent == Decimal(2 * most) / 10**9
    assert (row.prompt_tokens, row.cost) == (4 * most, Decimal(4 * most) / 10**9)


def test_an_old_answer_changes_nothing(
    database_url: str, make_host: MakeHost, llm_provider: Simulator
) -> None:
    """Regression: the late answer of a poll showed a batch that had ended as running; it ended twice."""
    slow, quick = (client_of(make_host(database=database_url), "ada") for _ in range(2))
    batch_id = create_batch(slow)
    path = f"/v1/batches/{batch_id}"
    llm_provider.delay_next(1, on="GET /batches/", after=0)
    ended: list[str] = []

    def hear(_app: Flask, batch: Batch, owner: str) -> None:
        ended.append(f"{owner}'s is {batch.status}")

    with batch_finished.connected_to(hear), ThreadPoolExecutor(1) as others:
        late = others.submit(slow.get, path)
        while not llm_provider.calls_to(f"GET /batches/{batch_id}"):
            time.sleep(0.01)
        time.sleep(0.2)  # the answer is made by then, and on its way for long
        llm_provider.batches[0].finish()
        answers = [quick.get(path), late.result(), slow.get(path)]
    assert [answer.get_json()["status"] for answer in answers] == ["completed"] * 3
    assert ended == ["ada's is completed"]


def test_ids_are_compared_to_the_letter(
    database_app: Flask, ada: FlaskClient, llm_provider: Simulator
) -> None:
    """Ids that differ only in case are different batches."""
    llm_provider.next_batch_id = "batch_AbC"
    create_batch(ada)
    bob = client_of(database_app, "bob")
    llm_provider.next_batch_id = "batch_aBc"
    create_batch(bob)
    for client, own, other in ((ada, "batch_AbC", "batch_aBc"), (bob, "batch_aBc", "batch_AbC")):
        assert client.get(f"/v1/batches/{own}").get_json()["id"] == own
        assert client.get(f"/v1/batches/{other}?provider=openai").status_code == 404


def test_long_ids_are_kept(ada: FlaskClient, llm_provider: Simulator) -> None:
    """An id of 512 characters, that differs from another in the last one only, is found again."""
    ids = [f"{'x' * 511}{last}" for last in "ab"]
    for llm_provider.next_batch_id in ids:
        create_batch(ada)
    for batch_id in ids:
        assert ada.get(f"/v1/batches/{batch_id}").get_json()["id"] == batch_id


def test_every_character_is_kept(database_app: Flask, llm_provider: Simulator) -> None:
    """Owners, models, metadata and custom ids have whatever letters they like."""
    asked = [{"custom_id": f"{WORDS}{number}", "body": {"messages": []}} for number in range(2)]
    with database_app.app_context():
        made = current_llm_batches.create(
            owner=WORDS, model=f"openai:{WORDS}", requests=asked, metadata={WORDS: f"{WORDS}\0"}
        )
        llm_provider.batches[0].expire()
        batch = current_llm_batches.retrieve(made.id, owner=WORDS)
        (listed,) = current_llm_batches.list(owner=WORDS).batches
        for found in (batch, listed):
            assert (found.model, found.metadata) == (WORDS, {WORDS: f"{WORDS}\0"})
        rows = list(current_llm_batches.results(made.id, owner=WORDS))
    assert sorted(row["custom_id"] for row in rows) == [request["custom_id"] for request in asked]


def test_a_zero_character_is_nobodys_id(ada: FlaskClient) -> None:
    """U+0000, which PostgreSQL cannot store, is refused with a 422 and not a 503."""
    assert ada.get("/v1/batches?after=%00").status_code == 422
    assert ada.get("/v1/batches/%00?provider=openai").status_code == 404
    body: dict[str, Any] = {"model": "openai:m\0", "requests": requests(1)}
    assert ada.post("/v1/batches", json=body).status_code == 400
    admin = client_of(ada.application, None)
    assert admin.post("/v1/batches", json={**body, "model": "openai:m", "user": "\0"}).status_code == 422


def test_missing_tables_are_said(
    database_url: str, database_app: Flask, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Without our tables the answer is a 503, before a provider is called, and the log says what to do."""
    query(database_url, "DROP TABLE llm_batches_batch")
    answer = client_of(database_app, "ada").post(
        "/v1/batches", json={"model": "openai:m", "requests": requests(1)}
    )
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "record_unavailable")
    assert not llm_provider.calls
    (logged,) = [record.getMessage() for record in caplog.records if record.name.endswith("store.store")]
    assert logged.endswith(
        "make the tables with flask db migrate and flask db upgrade, or with db.create_all()"
    )
    assert "\n" not in logged


def test_a_database_that_goes_away_is_said(
    database_url: str, database_app: Flask, llm_provider: Simulator
) -> None:
    """Without its database every call is a 503, before a provider is called."""
    ada = client_of(database_app, "ada")
    batch_id = create_batch(ada)
    llm_provider.calls.clear()
    take_away(database_url)
    for _ in range(2):
        for answer in (
            ada.post("/v1/batches", json={"model": "openai:m", "requests": requests(1)}),
            ada.get(f"/v1/batches/{batch_id}"),
            ada.get("/v1/batches"),
        ):
            assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "record_unavailable")
    assert not llm_provider.calls


def test_a_deadlock_costs_nothing(
    database_url: str, database_app: Flask, ada: FlaskClient, llm_provider: Simulator
) -> None:
    """A transaction that the database aborts because of another one is retried.

    Without that, one of 32 creates with one key was answered with a 503 on MariaDB, now and then.
    """
    given_up: list[ExceptionContext] = []
    rival = create_engine(database_url, poolclass=NullPool)
    body = {"model": "openai:m", "requests": requests(1)}
    with database_app.app_context():
        event.listen(database_app.extensions["sqlalchemy"].engine, "handle_error", given_up.append)

    def create(number: int) -> int:
        return ada.post("/v1/batches", json=body, headers={"Idempotency-Key": f"k{number}"}).status_code

    assert [create(number) for number in range(5)] == [200] * 5  # the rival's transaction is not the smaller
    llm_provider.delay_next(1, on="POST /batches")
    calls = len(llm_provider.calls)
    with ThreadPoolExecutor(1) as caller, rival.connect() as connection:
        created = caller.submit(create, 5)
        while len(llm_provider.calls) < calls + 2:  # upload and create
            time.sleep(0.01)
        connection.execute(text("UPDATE llm_batches_idempotency SET created_at = created_at + 1"))
        wait_for_a_wait(database_url)
        connection.execute(text("UPDATE llm_batches_batch SET refreshed_at = 1"))
        connection.commit()
    assert created.result() == 200
    assert len(given_up) == (not database_url.startswith("sqlite"))
    events = query(database_url, "SELECT event FROM llm_batches_usage")
    assert events == [("create",)] * 6


@pytest.mark.slow
def test_results_are_accounted_once_by_many(database_url: str, tmp_path: Path) -> None:
    """64 threads in 4 processes fetch the results of 20 batches at once, and each is accounted once."""
    with (
        Simulator() as simulator,
        gunicorn(simulator, tmp_path, "--workers=4", "--threads=16", database=database_url) as server,
        httpx.Client(base_url=server.url, headers={"X-User": "ada"}, timeout=60) as http,
        ThreadPoolExecutor(64) as callers,
    ):
        body = {"model": "openai:m", "requests": requests(3)}
        made = [http.post("/v1/batches", json=body).json()["id"] for _ in range(20)]
        for batch in simulator.batches:
            batch.finish()

        def fetch(number: int) -> int:
            return len(http.get(f"/v1/batches/{made[number % 20]}/results").json()["results"])

        assert set(callers.map(fetch, range(160))) == {3}
    used = query(database_url, "SELECT event, batch_uid, requests, total_tokens FROM llm_batches_usage")
    results = [row for row in used if row[0] == "results"]
    assert Counter(row[1] for row in results) == Counter({row[1]: 1 for row in used})
    assert {(row[2], row[3]) for row in results} == {(3, 12)}
    assert len(results) == 20


def test_a_host_can_be_made_twice(database_url: str, make_host: MakeHost) -> None:
    """Tables that are there stay as they are: ``create_all`` of the next start finds nothing to do."""
    for number in range(1, 3):
        client = client_of(make_host(database=database_url), "ada")
        create_batch(client)
        assert len(client.get("/v1/batches").get_json()["data"]) == number
