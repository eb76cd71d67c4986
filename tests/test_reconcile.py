"""Batches of which nobody knows whether the provider has them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_llm_batches.signals import batch_finished, batch_submitted, usage_recorded
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.hosts import requests

CREATES = {
    "openai": "POST /batches",
    "mistral": "POST /batch/jobs",
    "anthropic": "POST /messages/batches",
}
LISTS = {name: create.replace("POST", "GET") for name, create in CREATES.items()}


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'host.sqlite3'}"


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, database: str) -> Flask:
    """A host with a provider of each kind that gives a create up after half a second."""
    return make_host(database=database, providers=llm_provider.providers, transfer_timeout=0.5)


Create = Callable[..., TestResponse]


@pytest.fixture
def create(ada: FlaskClient) -> Create:
    """Ask for a batch, as ada."""

    def create(provider: str, count: int = 2, key: str | None = None, **fields: Any) -> TestResponse:
        body = {"model": f"{provider}:m", "requests": requests(count, max_tokens=9), **fields}
        return ada.post("/v1/batches", json=body, headers={"Idempotency-Key": key} if key else {})

    return create


def go_wrong(simulator: Simulator, provider: str, fault: str, *, done: bool) -> None:
    """Have the next create end without a usable answer, after the provider made the batch or before."""
    on = CREATES[provider]
    if fault == "drop":
        simulator.drop_next(on=on, after=0 if done else None)
    elif fault == "hang":
        simulator.delay_next(30, on=on, after=0 if done else None)
    else:
        simulator.fail_next(500, on=on, done=done)


def reconcile(app: Flask, *options: str) -> str:
    """Run the command and give its last line."""
    result = app.test_cli_runner().invoke(args=["llm-batches", "reconcile", *options])
    assert result.exit_code == 0, result.output
    return str(result.output).splitlines()[-1]


def states(database: str) -> list[str]:
    return [row[0] for row in query(database, "SELECT state FROM llm_batches_batch ORDER BY id")]


def a_minute_passes(database: str) -> None:
    query(database, "UPDATE llm_batches_batch SET created_at = created_at - 61")
    query(database, "UPDATE llm_batches_usage SET created_at = created_at - 61")


def ids(client: FlaskClient) -> list[str]:
    return [batch["id"] for batch in client.get("/v1/batches").get_json()["data"]]


@pytest.mark.parametrize("fault", ["drop", "500", "hang"])
@pytest.mark.parametrize("provider", CREATES)
def test_what_is_there_is_found(
    app: Flask,
    ada: FlaskClient,
    create: Create,
    llm_provider: Simulator,
    database: str,
    provider: str,
    fault: str,
) -> None:
    """A batch that was made without an answer is found: in lists, by its id, in the usage, by the signals."""
    heard: list[tuple[str, Any]] = []

    def hear_submitted(_app: Flask, batch: Any, owner: str, requested_by: str) -> None:
        heard.append(("submitted", (batch.id, owner, requested_by)))

    def hear_used(_app: Flask, usage: Any) -> None:
        heard.append((usage["event"], usage["requests"]))

    go_wrong(llm_provider, provider, fault, done=True)
    asked = {"metadata": {"team": "search"}}
    with batch_submitted.connected_to(hear_submitted, app), usage_recorded.connected_to(hear_used, app):
        assert create(provider, 2, **asked).status_code in (502, 504)
        (made,) = llm_provider.batches
        assert states(database) == ["unknown"]
        assert reconcile(app) == "1 found, 0 not there, 0 still unknown"
        assert reconcile(app) == "0 found, 0 not there, 0 still unknown"
    assert states(database) == ["accepted"]
    assert heard == [("create_failed", 2), ("submitted", (made.id, "ada", "ada")), ("create", 2)]
    assert ids(ada) == [made.id]
    shown = ada.get(f"/v1/batches/{made.id}").get_json()
    assert (shown["model"], shown["metadata"]) == ("m", {"team": "search"})
    made.finish()
    assert len(ada.get(f"/v1/batches/{made.id}/results").get_json()["results"]) == 2
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert (used["batches"], used["requests"]) == (1, 2)
    assert client_of(app, "bob").get(f"/v1/batches/{made.id}?provider={provider}").status_code == 404


@pytest.mark.parametrize("fault", ["drop", "500", "hang"])
@pytest.mark.parametrize("provider", CREATES)
def test_what_is_not_there_has_failed(
    app: Flask,
    ada: FlaskClient,
    create: Create,
    llm_provider: Simulator,
    database: str,
    provider: str,
    fault: str,
) -> None:
    """A batch that was not made is given up a minute after its create went wrong, and shown to nobody."""
    go_wrong(llm_provider, provider, fault, done=False)
    create(provider)
    assert reconcile(app) == "0 found, 0 not there, 1 still unknown"
    a_minute_passes(database)
    assert reconcile(app) == "0 found, 1 not there, 0 still unknown"
    assert (states(database), ids(ada), llm_provider.batches) == (["failed"], [], [])
    assert len(llm_provider.calls_to(CREATES[provider])) == 1


def test_the_minute_begins_when_the_create_goes_wrong(
    app: Flask, create: Create, llm_provider: Simulator, database: str
) -> None:
    """However long a create took, the provider has a minute from its end on to list the batch."""
    go_wrong(llm_provider, "openai", "drop", done=False)
    create("openai")
    query(database, "UPDATE llm_batches_batch SET created_at = created_at - 600")
    assert reconcile(app) == "0 found, 0 not there, 1 still unknown"
    assert reconcile(app, "--older-than", "0") == "0 found, 1 not there, 0 still unknown"


def test_a_create_that_runs_is_left_alone(
    app: Flask, create: Create, llm_provider: Simulator, database: str
) -> None:
    """What may still be submitted is not looked for, until a create cannot take that long."""
    create("openai")
    query(database, "DELETE FROM llm_batches_usage")
    query(database, "UPDATE llm_batches_batch SET state = 'submitting', batch_id = NULL, status = NULL")
    llm_provider.calls.clear()
    assert reconcile(app) == "0 found, 0 not there, 1 still unknown"
    assert not llm_provider.calls
    a_minute_passes(database)
    assert reconcile(app) == "1 found, 0 not there, 0 still unknown"


@pytest.mark.parametrize("there", [0, 1, 2])
def test_two_that_look_the_same_stay_unknown(
    app: Flask, ada: FlaskClient, create: Create, llm_provider: Simulator, database: str, there: int
) -> None:
    """Without metadata nobody guesses which of two is which: both wait, unless none of them is there."""
    for number in range(2):
        go_wrong(llm_provider, "anthropic", "drop", done=number < there)
        create("anthropic", 2)
    found = reconcile(app, "--older-than", "0")
    if there:
        assert found == "0 found, 0 not there, 2 still unknown"
        assert (states(database), ids(ada)) == (["unknown"] * 2, [])
    else:
        assert found == "0 found, 2 not there, 0 still unknown"


def test_another_count_or_time_is_another_batch(
    app: Flask, create: Create, llm_provider: Simulator, database: str
) -> None:
    """Without metadata a batch is found by how many requests it has and when it was made."""
    for count in (2, 3):
        go_wrong(llm_provider, "anthropic", "drop", done=True)
        create("anthropic", count)
    for table in ("llm_batches_batch", "llm_batches_usage"):
        query(database, f"UPDATE {table} SET created_at = created_at - 100 WHERE requests = 3")
    assert reconcile(app, "--older-than", "0") == "1 found, 1 not there, 0 still unknown"
    assert states(database) == ["accepted", "failed"]


@pytest.mark.parametrize("provider", CREATES)
def test_a_known_batch_is_never_adopted(
    make_host: MakeHost, llm_provider: Simulator, database: str, provider: str
) -> None:
    """What another record has, by whichever name of the same account, is not taken for the one looked for."""
    settings = llm_provider.providers[provider]
    app = make_host(
        database=database, providers={provider: settings, "second": {**settings, "provider": provider}}
    )
    ada = client_of(app, "ada")
    for name in (provider, "second"):
        body = {"model": f"{name}:m", "requests": requests(2, max_tokens=9)}
        assert ada.post("/v1/batches", json=body).status_code == 200
        go_wrong(llm_provider, provider, "drop", done=False)
        assert ada.post("/v1/batches", json=body).status_code == 502
    assert reconcile(app, "--older-than", "0") == "0 found, 2 not there, 0 still unknown"
    assert states(database) == ["accepted", "failed"] * 2


@pytest.mark.parametrize("provider", CREATES)
def test_every_page_is_searched(
    app: Flask, create: Create, llm_provider: Simulator, database: str, provider: str
) -> None:
    """A batch is found on the third page of the provider's list, and only looked for back to its time."""
    go_wrong(llm_provider, provider, "drop", done=True)
    create(provider, 2)
    (wanted,) = llm_provider.batches
    for number in range(250):
        llm_provider.add(
            replace(wanted, id=f"other-{number}", requests=wanted.requests[:1], metadata=None, times={})
        )
    llm_provider.calls.clear()
    assert reconcile(app) == "1 found, 0 not there, 0 still unknown"
    assert query(database, "SELECT batch_id FROM llm_batches_batch WHERE requests = 2") == [(wanted.id,)]
    assert len(llm_provider.calls_to(LISTS[provider])) >= 3

    go_wrong(llm_provider, provider, "drop", done=False)
    create(provider, 3)
    for batch in llm_provider.batches:
        batch.times["created_at"] -= 1000
    llm_provider.calls.clear()
    assert reconcile(app, "--older-than", "0") == "0 found, 1 not there, 0 still unknown"
    assert len(llm_provider.calls_to(LISTS[provider])) <= 2


@pytest.mark.parametrize("provider", CREATES)
def test_without_a_list_nothing_is_known(
    app: Flask, ada: FlaskClient, create: Create, llm_provider: Simulator, database: str, provider: str
) -> None:
    """While the provider gives no list a batch stays unknown; the owner's list is there all the same."""
    for _ in range(2):
        go_wrong(llm_provider, provider, "drop", done=True)
        create(provider, 2)
    on = LISTS[provider]
    for _ in range(2):
        llm_provider.fail_next(503, on=on)
    assert reconcile(app, "--older-than", "0") == "0 found, 0 not there, 2 still unknown"
    llm_provider.calls.clear()
    llm_provider.drop_next(on=on)
    assert ids(ada) == []
    assert len(llm_provider.calls_to(on)) == 1
    assert states(database) == ["unknown"] * 2


def test_a_provider_that_is_gone_leaves_it_unknown(
    make_host: MakeHost, create: Create, llm_provider: Simulator, database: str
) -> None:
    """A batch at a provider that is not configured any more stays as it is."""
    go_wrong(llm_provider, "mistral", "drop", done=True)
    create("mistral")
    other = make_host(database=database)
    assert reconcile(other, "--older-than", "0") == "0 found, 0 not there, 1 still unknown"
    assert ids(client_of(other, "ada")) == []


@pytest.mark.parametrize("provider", CREATES)
@pytest.mark.parametrize("touch", ["list", "retrieve", "results", "again"])
def test_the_next_call_that_needs_it_finds_it(
    app: Flask,
    ada: FlaskClient,
    create: Create,
    llm_provider: Simulator,
    database: str,
    provider: str,
    touch: str,
) -> None:
    """The owner's list, a call with its id, and a repeated create with its key settle a batch."""
    go_wrong(llm_provider, provider, "drop", done=True)
    create(provider, key="k")
    (made,) = llm_provider.batches
    made.finish()
    path = f"/v1/batches/{made.id}"
    if touch == "list":
        assert ids(client_of(app, "bob")) == []
        assert states(database) == ["unknown"]
        assert ids(ada) == [made.id]
    elif touch == "again":
        answer = create(provider, key="k")
        assert (answer.status_code, answer.get_json()["id"]) == (200, made.id)
        assert answer.headers["Idempotent-Replayed"] == "true"
    else:
        answer = ada.get(path if touch == "retrieve" else f"{path}/results")
        assert answer.status_code == 200
    assert (states(database), len(llm_provider.batches)) == (["accepted"], 1)


def test_a_batch_that_is_found_when_it_has_ended_is_said_to_have(
    app: Flask, create: Create, llm_provider: Simulator
) -> None:
    """Whoever waits for the signal of the end gets it, although nobody saw the batch run."""
    ended: list[str] = []

    def hear(_app: Flask, batch: Any, owner: str) -> None:
        ended.append(f"{owner} {batch.id} {batch.status}")

    go_wrong(llm_provider, "openai", "drop", done=True)
    create("openai")
    llm_provider.batches[0].finish()
    with batch_finished.connected_to(hear, app):
        assert reconcile(app) == "1 found, 0 not there, 0 still unknown"
    assert ended == [f"ada {llm_provider.batches[0].id} completed"]


def test_a_batch_that_is_not_counted_yet_may_be_the_one(
    app: Flask, create: Create, llm_provider: Simulator, database: str
) -> None:
    """Providers without metadata that count requests later leave it unknown until then."""
    go_wrong(llm_provider, "anthropic", "drop", done=True)
    create("anthropic", 2)
    (made,) = llm_provider.batches
    lines, made.requests = made.requests, []
    assert reconcile(app, "--older-than", "0") == "0 found, 0 not there, 1 still unknown"
    made.requests = lines
    assert reconcile(app, "--older-than", "0") == "1 found, 0 not there, 0 still unknown"
    assert states(database) == ["accepted"]


def test_a_create_and_a_reconcile_count_it_once(
    app: Flask, ada: FlaskClient, create: Create, llm_provider: Simulator, database: str
) -> None:
    """Who gives up a create that is still running finds its batch; the create then has nothing to add."""
    heard: list[str] = []

    def hear(_app: Flask, batch: Any, **_: str) -> None:
        heard.append(batch.id)

    llm_provider.delay_next(0.4, on=CREATES["openai"], after=0)
    with batch_submitted.connected_to(hear, app), ThreadPoolExecutor(1) as caller:
        creating = caller.submit(create, "openai")
        while not llm_provider.batches:
            time.sleep(0.01)
        assert reconcile(app, "--older-than", "0") == "1 found, 0 not there, 0 still unknown"
        assert creating.result().status_code == 200
    assert heard == [creating.result().get_json()["id"]]
    assert query(database, "SELECT event FROM llm_batches_usage") == [("create",)]


@pytest.mark.parametrize("fault", ["drop", "hang"])
def test_what_was_found_stays_found(
    app: Flask, ada: FlaskClient, create: Create, llm_provider: Simulator, database: str, fault: str
) -> None:
    """A create that fails after its batch was found takes nothing back."""
    llm_provider.delay_next(30 if fault == "hang" else 0.3, on=CREATES["openai"], after=0)
    with ThreadPoolExecutor(1) as caller:
        creating = caller.submit(create, "openai")
        while not llm_provider.batches:
            time.sleep(0.01)
        reconcile(app, "--older-than", "0")
        if fault == "drop":
            llm_provider.stop()
        assert creating.result().status_code in (502, 504)
    assert states(database) == ["accepted"]


def test_spooled_requests_of_the_killed_are_deleted(app: Flask, spool_dir: Path) -> None:
    """What nobody has written to for longer than a create may take is gone; other files stay."""
    old, new, other = (spool_dir / name for name in ("llm-batches-1.jsonl", "llm-batches-2.jsonl", "mine"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 61, time.time() - 61))
    reconcile(app, "--older-than", "0")
    assert sorted(spool_dir.iterdir()) == [new, other]
