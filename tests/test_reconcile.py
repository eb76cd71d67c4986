"""Unsettled batches: it is not known whether the provider has them."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches import EVERYONE, current_llm_batches
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.signals import batch_finished, batch_submitted, usage_recorded
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import (
    CREATES,
    FOUND,
    LISTS,
    NOT_THERE,
    NOTHING,
    STILL_UNKNOWN,
    WINDOW,
    create,
    go_wrong,
    ids,
    own_ids,
    process_dies,
    reconcile,
    rewrite_lists,
    show_nothing,
    states,
    time_passes,
)

WITH_METADATA = ["openai", "mistral"]


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'host.sqlite3'}"


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, database: str) -> Flask:
    """A host with a provider of each kind that gives a create up after half a second."""
    return make_host(database=database, providers=llm_provider.providers, transfer_timeout=0.5)


@pytest.mark.parametrize("fault", ["drop", "500", "hang"])
@pytest.mark.parametrize("provider", WITH_METADATA)
def test_what_is_there_is_found(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, provider: str, fault: str
) -> None:
    """A batch that was made without an answer is found: in lists, by its id, in the usage, by the signals."""
    heard: list[tuple[str, Any]] = []

    def hear_submitted(_app: Flask, batch: Any, owner: str, requested_by: str) -> None:
        heard.append(("submitted", (batch.id, owner, requested_by)))

    def hear_used(_app: Flask, usage: Any) -> None:
        heard.append((usage["event"], usage["requests"]))

    go_wrong(llm_provider, provider, fault, done=True)
    with batch_submitted.connected_to(hear_submitted, app), usage_recorded.connected_to(hear_used, app):
        assert create(ada, provider, metadata={"team": "search"}).status_code in (502, 504)
        (made,) = llm_provider.batches
        assert states(database) == ["unknown"]
        assert reconcile(app) == FOUND
        assert reconcile(app) == NOTHING
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
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, provider: str, fault: str
) -> None:
    """A batch that was not made has failed when the search window is over, and is shown as such."""
    go_wrong(llm_provider, provider, fault, done=False)
    create(ada, provider)
    time_passes(database, WINDOW - 100)
    assert reconcile(app) == STILL_UNKNOWN
    time_passes(database, 100)
    assert reconcile(app) == NOT_THERE
    assert (states(database), ids(ada), llm_provider.batches) == (["failed"], own_ids(database), [])
    assert len(llm_provider.calls_to(CREATES[provider])) == 1
    shown = ada.get(f"/v1/batches/{own_ids(database)[0]}").get_json()
    assert (shown["status"], shown["errors"]["data"][0]["code"]) == ("failed", "not_created")
    answer = ada.get(f"/v1/batches/{shown['id']}/results")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "batch_failed")
    assert "nothing was billed" in answer.get_json()["detail"]
    assert ada.post(f"/v1/batches/{shown['id']}/cancel").get_json()["status"] == "failed"


def test_the_window_is_a_setting(make_host: MakeHost, llm_provider: Simulator, database: str) -> None:
    """``LLM_BATCHES_SEARCH_WINDOW`` says for how many seconds a batch is looked for."""
    app = make_host(database=database, search_window=100)
    go_wrong(llm_provider, "openai", done=False)
    create(client_of(app, "ada"), "openai")
    time_passes(database, 90)
    assert reconcile(app) == STILL_UNKNOWN
    time_passes(database, 10)
    assert reconcile(app) == NOT_THERE


def test_the_window_begins_when_the_create_goes_wrong(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """However long a create took, the provider has the whole window from its end on to list the batch."""
    go_wrong(llm_provider, "openai", done=False)
    create(ada, "openai")
    query(database, f"UPDATE llm_batches_batch SET created_at = created_at - {2 * WINDOW}")
    assert reconcile(app) == STILL_UNKNOWN


def test_older_than_means_since_it_was_given_up(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """``--older-than N`` fails nothing that was given up less than N seconds or two minutes ago."""
    go_wrong(llm_provider, "openai", done=False)
    create(ada, "openai")
    query(database, "UPDATE llm_batches_batch SET created_at = created_at - 6000")
    assert reconcile(app, "--older-than", "0") == STILL_UNKNOWN
    time_passes(database, 90)
    assert reconcile(app, "--older-than", "0") == STILL_UNKNOWN
    time_passes(database, 210)
    assert reconcile(app, "--older-than", "400") == STILL_UNKNOWN
    assert reconcile(app, "--older-than", "300") == NOT_THERE


def test_without_a_list_nothing_is_known(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """While the provider gives no list a batch stays unknown; the owner's list is there all the same."""
    for _ in range(2):
        go_wrong(llm_provider, "openai", done=False)
        create(ada, "openai")
    time_passes(database, WINDOW)
    llm_provider.fail_next(503, on=LISTS["openai"])
    assert reconcile(app) == "0 found, 0 not there, 2 still unknown"
    time_passes(database, WINDOW)
    llm_provider.calls.clear()
    llm_provider.drop_next(on=LISTS["openai"])
    assert ids(ada) == own_ids(database)[::-1]
    assert len(llm_provider.calls_to(LISTS["openai"])) == 1
    assert states(database) == ["unknown"] * 2


def test_a_provider_that_is_gone_leaves_it_unknown(
    make_host: MakeHost, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """A batch at a provider that is not configured any more stays as it is, and spoils no other call."""
    go_wrong(llm_provider, "mistral", done=True)
    create(ada, "mistral")
    other = make_host(database=database)
    assert reconcile(other, "--older-than", "0") == STILL_UNKNOWN
    bob = client_of(other, "ada")
    assert ids(bob) == own_ids(database)
    assert bob.get(f"/v1/batches/{own_ids(database)[0]}").get_json()["status"] == "validating"
    assert bob.get("/v1/batches/x?provider=openai").status_code == 404


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("provider", WITH_METADATA)
@pytest.mark.parametrize("touch", ["list", "retrieve", "results", "again", "own id", "admin", "admin's list"])
def test_the_next_call_that_needs_it_finds_it(
    app: Flask, llm_provider: Simulator, database: str, provider: str, touch: str, dead: bool
) -> None:
    """A list, a call with its id, ours or the provider's, and a repeated create settle a batch at once.

    So too if the process that made it has died.
    """
    ada, admin = client_of(app, "ada"), client_of(app, None)
    go_wrong(llm_provider, provider, done=True)
    create(ada, provider, key="k")
    if dead:
        process_dies(database)
    (made,) = llm_provider.batches
    made.finish()
    path = f"/v1/batches/{made.id}"
    if touch == "list":
        assert ids(client_of(app, "bob")) == []
        assert states(database) != ["accepted"]
        assert ids(ada) == [made.id]
    elif touch == "again":
        answer = create(ada, provider, key="k")
        assert (answer.status_code, answer.get_json()["id"]) == (200, made.id)
        assert answer.headers["Idempotent-Replayed"] == "true"
    elif touch == "admin's list":
        (shown,) = admin.get(f"/v1/batches?provider={provider}").get_json()["data"]
        assert shown["id"] == made.id
    else:
        client = admin if touch == "admin" else ada
        path = f"/v1/batches/{own_ids(database)[0]}" if touch == "own id" else path
        answer = client.get(f"{path}/results" if touch == "results" else f"{path}?provider={provider}")
        assert answer.status_code == 200
    assert (states(database), len(llm_provider.batches)) == (["accepted"], 1)


def test_our_own_id_leads_to_the_batch_for_good(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """An unsettled batch is listed with an id of ours, which works before and after it is found."""
    go_wrong(llm_provider, "openai", done=True)
    rewrite_lists(llm_provider, show_nothing)
    create(ada, "openai", 3, metadata={"team": "search"})
    time_passes(database, 100)
    (shown,) = ada.get("/v1/batches").get_json()["data"]
    (own,) = own_ids(database)
    assert (shown["id"], shown["status"], shown["model"]) == (own, "validating", "m")
    assert (shown["metadata"], shown["request_counts"]["total"]) == ({"team": "search"}, 3)
    assert ada.get(f"/v1/batches/{own}").get_json() == shown
    assert client_of(app, "bob").get(f"/v1/batches/{own}?provider=openai").status_code == 404
    for answer in (ada.get(f"/v1/batches/{own}/results"), ada.post(f"/v1/batches/{own}/cancel")):
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (409, "batch_not_complete")
        assert answer.get_json()["detail"].startswith(
            f"Batch '{own}' is not yet complete (status: validating). "
            f"Call GET /v1/batches/{own}?provider=openai to check the current status. "
        )
        assert "It is being looked for at the provider." in answer.get_json()["detail"]
        assert 8 <= int(answer.headers["Retry-After"]) <= 11  # a tenth of the time that it has been missing
    made = llm_provider.batches[0]
    assert create(ada, "openai", 1).status_code == 200
    assert ada.get(f"/v1/batches?after={own}").get_json()["data"] == []

    llm_provider.rewrite = None
    time_passes(database, 20)
    for _ in range(2):
        assert ada.get(f"/v1/batches/{own}").get_json()["id"] == made.id
    assert ada.post(f"/v1/batches/{own}/cancel").get_json()["status"] == "cancelling"
    made.finish()
    assert len(ada.get(f"/v1/batches/{own}/results").get_json()["results"]) == 3
    assert ids(ada)[1] == made.id


def test_a_search_waits_for_what_it_may_find(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """The longer a batch is missing, the less often the list is asked for; other calls wait for nothing."""
    go_wrong(llm_provider, "openai", done=False)
    create(ada, "openai")
    searches = []
    for seconds in (0, 100, 5, 10, WINDOW - 115):
        time_passes(database, seconds)
        llm_provider.calls.clear()
        ids(ada)
        searches.append(len(llm_provider.calls_to(LISTS["openai"])))
    assert searches == [1, 1, 0, 1, 1]
    assert states(database) == ["failed"]


@pytest.mark.parametrize("touch", ["search", "again", "id"])
def test_what_turns_up_late_is_adopted(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, touch: str
) -> None:
    """A batch that had failed is adopted when the provider lists it after all, and its key still has it."""
    go_wrong(llm_provider, "openai", done=True)
    create(ada, "openai", key="k")
    rewrite_lists(llm_provider, show_nothing)
    time_passes(database, WINDOW)
    assert reconcile(app) == NOT_THERE
    llm_provider.rewrite = None
    time_passes(database, WINDOW)
    if touch == "search":
        go_wrong(llm_provider, "openai", done=False)
        create(ada, "openai")
        assert reconcile(app) == STILL_UNKNOWN
    elif touch == "id":
        admin = client_of(app, None)
        assert admin.get(f"/v1/batches/{llm_provider.batches[0].id}?provider=openai").status_code == 200
    answer = create(ada, "openai", key="k")
    assert (answer.get_json()["id"], answer.headers["Idempotent-Replayed"]) == (
        llm_provider.batches[0].id,
        "true",
    )
    assert (len(llm_provider.batches), states(database)[0]) == (1, "accepted")


def test_a_batch_that_is_found_when_it_has_ended_is_said_to_have(
    app: Flask, ada: FlaskClient, llm_provider: Simulator
) -> None:
    """Whoever waits for the signal of the end gets it, although nobody saw the batch run."""
    ended: list[str] = []

    def hear(_app: Flask, batch: Any, owner: str) -> None:
        ended.append(f"{owner} {batch.id} {batch.status}")

    go_wrong(llm_provider, "openai", done=True)
    create(ada, "openai")
    llm_provider.batches[0].finish()
    with batch_finished.connected_to(hear, app):
        assert reconcile(app) == FOUND
    assert ended == [f"ada {llm_provider.batches[0].id} completed"]


def test_reconcile_from_python(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """``current_llm_batches.reconcile()`` returns what it has found, whether anybody looks at it or not."""
    go_wrong(llm_provider, "openai", done=True)
    create(ada, "openai")
    with app.app_context():
        (settled,) = current_llm_batches.reconcile()
        assert (settled.state, settled.provider, settled.owner) == ("accepted", "openai", "ada")
        batch_id = f"batch_{settled.uid}"
        found = current_llm_batches.retrieve(batch_id, owner=EVERYONE)
        assert found.id == llm_provider.batches[0].id


@pytest.mark.parametrize("found", ["by its id", "by nobody"])
def test_a_create_that_is_still_running_is_counted_once(
    make_host: MakeHost, llm_provider: Simulator, database: str, found: str
) -> None:
    """Nobody searches for what is being submitted; if its batch is found, the create has nothing to add."""
    app = make_host(database=database)
    heard: list[str] = []

    def hear(_app: Flask, batch: Any, **_: str) -> None:
        heard.append(batch.id)

    llm_provider.delay_next(1, on=CREATES["openai"], after=0)
    with batch_submitted.connected_to(hear, app), ThreadPoolExecutor(1) as caller:
        creating = caller.submit(create, client_of(app, "ada"), "openai")
        while not llm_provider.batches:
            time.sleep(0.01)
        (made,) = llm_provider.batches
        assert reconcile(app, "--older-than", "0") == STILL_UNKNOWN
        with app.app_context(), pytest.raises(LLMBatchesError, match="being submitted at this moment"):
            current_llm_batches.adopt(own_ids(database)[0].removeprefix("batch_"), made.id)
        if found == "by its id":
            assert client_of(app, "ada").get(f"/v1/batches/{made.id}").status_code == 200
            assert states(database) == ["accepted"]
        assert creating.result().status_code == 200
    assert heard == [made.id]
    assert query(database, "SELECT event FROM llm_batches_usage") == [("create",)]


@pytest.mark.parametrize("fault", ["drop", "hang"])
def test_what_was_found_stays_found(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, fault: str
) -> None:
    """A create that fails after its batch was found takes nothing back."""
    llm_provider.delay_next(30 if fault == "hang" else 0.3, on=CREATES["openai"], after=0)
    with ThreadPoolExecutor(1) as caller:
        creating = caller.submit(create, client_of(app, "ada"), "openai")
        while not llm_provider.batches:
            time.sleep(0.01)
        assert ada.get(f"/v1/batches/{llm_provider.batches[0].id}").status_code == 200
        if fault == "drop":
            llm_provider.stop()
        assert creating.result().status_code in (502, 504)
    assert states(database) == ["accepted"]


def test_spooled_requests_of_the_killed_are_deleted(app: Flask, spool_dir: Path) -> None:
    """Spool files that are older than a create may take are deleted; other files stay."""
    old, new, other = (spool_dir / name for name in ("llm-batches-1.jsonl", "llm-batches-2.jsonl", "mine"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 61, time.time() - 61))
    reconcile(app, "--older-than", "0")
    assert sorted(spool_dir.iterdir()) == [new, other]
