"""At providers without metadata, nothing guesses which create made a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches import current_llm_batches
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import (
    NOT_THERE,
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


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'host.sqlite3'}"


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, database: str) -> Flask:
    """A host with all providers, and with a second entry for the same account at Anthropic."""
    settings = llm_provider.providers
    second = {**settings["anthropic"], "provider": "anthropic"}
    return make_host(database=database, providers={**settings, "second": second})


def uids(database: str) -> list[str]:
    return [own.removeprefix("batch_") for own in own_ids(database)]


def command(app: Flask, *options: str) -> str:
    """Run ``reconcile`` with options and return all that it prints."""
    done = app.test_cli_runner().invoke(args=["llm-batches", "reconcile", *options])
    return str(done.output if done.exit_code else done.stdout)


def test_a_strangers_batch_is_never_adopted(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """Regression: Alice's create without an answer was settled as Bob's batch of another entry.

    Both entries were of one account, and his process had died before it could record his.
    """
    bob = client_of(app, "bob")
    go_wrong(llm_provider, "anthropic", done=False)
    create(ada, "anthropic")
    go_wrong(llm_provider, "anthropic", done=True)
    create(bob, "second")
    process_dies(database)
    (his,) = llm_provider.batches
    his.finish()
    for _ in range(2):
        assert ids(ada) == own_ids(database)[:1]
        assert ids(bob) == own_ids(database)[1:]
        assert reconcile(app) == "0 found, 0 not there, 2 still unknown"
        time_passes(database, WINDOW)
    assert ada.get(f"/v1/batches/{his.id}?provider=anthropic").status_code == 404


def test_an_operator_names_the_batch(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """``reconcile`` prints what a batch may be; ``--adopt`` records it, for the caller's id and key, too."""
    go_wrong(llm_provider, "anthropic", done=True)
    create(ada, "anthropic", key="k")
    (made,), (uid,) = llm_provider.batches, uids(database)
    time_passes(database, WINDOW)
    said = command(app)
    assert said.splitlines() == [f"{uid}  unknown     anthropic  ada", f"    may be {made.id}", STILL_UNKNOWN]
    assert create(ada, "anthropic", key="k").status_code == 409
    assert command(app, "--adopt", f"{uid}={made.id}") == f"{uid} is {made.id} at anthropic, in_progress\n"
    again = create(ada, "anthropic", key="k")
    assert (again.get_json()["id"], again.headers["Idempotent-Replayed"]) == (made.id, "true")
    assert ada.get(f"/v1/batches/batch_{uid}").get_json()["id"] == made.id
    made.finish()
    assert len(ada.get(f"/v1/batches/{made.id}/results").get_json()["results"]) == 2
    assert len(llm_provider.batches) == 1


def test_an_operator_gives_up(app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str) -> None:
    """``--give-up`` records that a batch is none of the candidates: it has failed, and its key is free."""
    go_wrong(llm_provider, "anthropic", done=False)
    create(ada, "anthropic", key="k")
    create(client_of(app, "bob"), "anthropic")
    query(database, "UPDATE llm_batches_batch SET state = 'unknown', batch_id = NULL WHERE owner = 'bob'")
    uid = uids(database)[0]
    assert command(app, "--give-up", f"batch_{uid}") == f"batch_{uid} is given up\n"  # as its owner sees it
    assert states(database)[0] == "failed"
    assert ada.get(f"/v1/batches/batch_{uid}").get_json()["status"] == "failed"
    assert create(ada, "anthropic", key="k").status_code == 200
    assert "There is no batch" in command(app, "--give-up", uid)


def test_only_what_may_be_it_is_adopted(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """A batch that is not there, is recorded for anybody, or has another number of requests is refused."""
    go_wrong(llm_provider, "anthropic", done=False)
    create(ada, "anthropic")
    (uid,) = uids(database)
    recorded = create(client_of(app, "bob"), "second").get_json()["id"]
    go_wrong(llm_provider, "anthropic", done=True)
    create(ada, "anthropic", 3)
    larger = llm_provider.batches[-1].id
    with app.app_context():
        for name, batch_id, why in (
            (uid, "msgbatch_none", "'msgbatch_none' not found"),
            (uid, recorded, "recorded for somebody already"),
            (uid, larger, "has 3 requests, and .* has 2"),
            ("none", recorded, "no record of a batch 'none'"),
            (uids(database)[1], larger, "is recorded as 'msgbatch_.*' already"),
        ):
            with pytest.raises(LLMBatchesError, match=why):
                current_llm_batches.adopt(name, batch_id)
        current_llm_batches.adopt(uids(database)[2], larger)
    assert states(database) == ["unknown", "accepted", "accepted"]
    assert "not UID=BATCH_ID" in command(app, "--adopt", uid)


def test_a_batch_with_anothers_uid_is_refused(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """If there are metadata, they decide."""
    for done in (False, True):
        go_wrong(llm_provider, "openai", done=done)
        create(ada, "openai")
    (made,), (first, second) = llm_provider.batches, uids(database)
    assert "was made for another record" in command(app, "--adopt", f"{first}={made.id}")
    assert "in_progress" in command(app, "--adopt", f"{second}={made.id}")


@pytest.mark.parametrize("strange", ["another count", "another time", "recorded", "nothing"])
def test_what_nothing_may_be_has_failed(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, strange: str
) -> None:
    """A create has failed after the window if every batch with its count and time is recorded."""
    go_wrong(llm_provider, "anthropic", done=False)
    create(ada, "anthropic")
    if strange == "recorded":
        create(client_of(app, "bob"), "second")
    elif strange != "nothing":
        go_wrong(llm_provider, "anthropic", done=True)
        create(ada, "anthropic", 3 if strange == "another count" else 2)
        query(database, f"DELETE FROM llm_batches_batch WHERE uid = '{uids(database)[1]}'")
    if strange == "another time":
        llm_provider.batches[0].times["created_at"] -= 5 * 3600
    time_passes(database, WINDOW)
    assert reconcile(app) == NOT_THERE


def test_a_batch_that_is_not_counted_yet_may_be_the_one(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """Until a provider has counted the requests of a batch, it may belong to any create."""
    go_wrong(llm_provider, "anthropic", done=True)
    create(ada, "anthropic")
    (made,) = llm_provider.batches
    lines, made.requests = made.requests, []
    time_passes(database, WINDOW)
    assert reconcile(app) == STILL_UNKNOWN
    made.requests = lines[:1]
    time_passes(database, WINDOW)
    assert reconcile(app) == NOT_THERE
    made.requests = lines
    assert "in_progress" in command(app, "--adopt", f"{uids(database)[0]}={made.id}")


def test_a_list_that_shows_nothing_decides_nothing_early(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str
) -> None:
    """Without metadata, too, the whole window passes before a batch has failed."""
    go_wrong(llm_provider, "anthropic", done=True)
    create(ada, "anthropic")
    rewrite_lists(llm_provider, show_nothing)
    time_passes(database, WINDOW - 100)
    assert reconcile(app) == STILL_UNKNOWN
    llm_provider.rewrite = None
    time_passes(database, WINDOW)
    assert reconcile(app) == STILL_UNKNOWN


@pytest.mark.parametrize("provider", ["openai", "anthropic", "mistral"])
def test_a_known_batch_is_never_adopted(
    make_host: MakeHost, llm_provider: Simulator, database: str, provider: str
) -> None:
    """A batch of another record, also under another name of the account, is not adopted."""
    settings = llm_provider.providers[provider]
    app = make_host(
        database=database, providers={provider: settings, "second": {**settings, "provider": provider}}
    )
    ada = client_of(app, "ada")
    for name in (provider, "second"):
        assert create(ada, name).status_code == 200
        go_wrong(llm_provider, provider, done=False)
        assert create(ada, name).status_code == 502
    time_passes(database, WINDOW)
    assert reconcile(app) == "0 found, 2 not there, 0 still unknown"
    assert states(database) == ["accepted", "failed"] * 2


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_an_id_that_is_given_twice_is_one_batchs(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, database: str, provider: str
) -> None:
    """Regression: a create that got the id of another batch was accepted, and its batch was unreadable."""
    llm_provider.next_batch_id = "msgbatch_1"
    create(ada, provider)
    bob = client_of(app, "bob")
    llm_provider.next_batch_id = "msgbatch_1"
    answer = create(bob, provider, 3)
    assert (answer.status_code, answer.headers["X-Should-Retry"]) == (502, "false")
    assert bob.get(f"/v1/batches/msgbatch_1?provider={provider}").status_code == 404
    assert ids(bob) == own_ids(database)[1:]
    assert (ids(ada), states(database)) == (["msgbatch_1"], ["accepted", "unknown"])
