"""Lists show what is new at the providers; what has ended is known for good."""

from __future__ import annotations

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.wrappers import Response

from flask_llm_batches import Batch
from flask_llm_batches.signals import batch_finished
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch

NOT_FOUND = json.dumps({"error": {"message": "No such batch", "type": "invalid_request_error"}})


def statuses(client: FlaskClient) -> list[str]:
    return [batch["status"] for batch in client.get("/v1/batches").get_json()["data"]]


def test_a_list_is_fresh(ada: FlaskClient, llm_provider: Simulator) -> None:
    """A list shows the current state of its batches; ended ones are not retrieved again."""
    for _ in range(3):
        create_batch(ada, 1)
    llm_provider.batches[0].finish()
    llm_provider.batches[1].expire()
    assert statuses(ada) == ["in_progress", "expired", "completed"]
    time.sleep(3.0)
    llm_provider.calls.clear()
    llm_provider.batches[2].finish()
    assert statuses(ada) == ["completed", "expired", "completed"]
    assert [call.path for call in llm_provider.calls] == [f"/batches/{llm_provider.batches[2].id}"]


def test_lists_ask_once_in_two_seconds(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """Lists that come at once and after one another ask after each batch once."""
    for _ in range(4):
        create_batch(ada, 1)
    llm_provider.calls.clear()
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: statuses(client_of(app, "ada")), range(6)))
    assert len(llm_provider.calls) == 4


def test_a_list_asks_several_at_a_time(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Batches are asked after together: four slow answers take no longer than one."""
    made = [create_batch(ada, 1) for _ in range(4)]
    for batch_id in made:
        llm_provider.delay_next(1.0, on=f"GET /batches/{batch_id}")
    started = time.monotonic()
    statuses(ada)
    assert 1.0 <= time.monotonic() - started < 3.0


@pytest.mark.parametrize("fault", ["500", "drop", "hang"])
def test_a_silent_provider_spoils_no_list(
    make_host: MakeHost, llm_provider: Simulator, tmp_path: Path, fault: str
) -> None:
    """Where a provider does not answer, the list has what was last seen of the batch."""
    ada = client_of(make_host(database=tmp_path / "host.sqlite3", timeout=0.5), "ada")
    create_batch(ada, 1)
    known = create_batch(ada, 1)
    for batch in llm_provider.batches:
        batch.finish()
    if fault == "500":
        llm_provider.fail_next(500, on=f"GET /batches/{known}")
    elif fault == "drop":
        llm_provider.drop_next(on=f"GET /batches/{known}")
    else:
        llm_provider.delay_next(5.0, on=f"GET /batches/{known}")
    assert statuses(ada) == ["validating", "completed"]


def test_a_provider_that_cannot_be_called_spoils_no_list(
    make_host: MakeHost, llm_provider: Simulator, tmp_path: Path
) -> None:
    """Regression: a list was a 500 when a provider's key was gone that had a running batch."""
    make = partial(make_host, database=tmp_path / "host.sqlite3")
    create_batch(client_of(make(), "ada"))
    assert statuses(client_of(make(providers={"openai": {}}), "ada")) == ["validating"]


def test_what_has_ended_is_known(ada: FlaskClient, llm_provider: Simulator) -> None:
    """A batch that was seen to end is answered from the record, and so is its status for its results."""
    batch_id = create_batch(ada, 2)
    llm_provider.batches[0].finish()
    seen = ada.get(f"/v1/batches/{batch_id}").get_json()
    llm_provider.calls.clear()
    assert ada.get(f"/v1/batches/{batch_id}").get_json() == seen
    assert llm_provider.calls == []
    assert len(ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]) == 2
    assert [call.path.split("/")[1] for call in llm_provider.calls] == ["files"]


def age(tmp_path: Path, seconds: int) -> None:
    """Have the first 404 of every batch been longer ago."""
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database, database:
        database.execute("UPDATE llm_batches_batch SET missing_since = missing_since - ?", [seconds])


@pytest.mark.parametrize("seen_by", ["retrieve", "list", "results"])
def test_what_its_provider_has_lost_has_failed(
    ada: FlaskClient, llm_provider: Simulator, tmp_path: Path, seen_by: str
) -> None:
    """Regression: a batch that its provider had lost was in progress in every list for ever."""
    batch_id = create_batch(ada, 1)
    other = create_batch(ada, 1)
    llm_provider.rewrite = lambda call, response: (
        Response(NOT_FOUND, 404) if call.path == f"/batches/{batch_id}" else response
    )
    path = {"retrieve": f"/{batch_id}", "list": "", "results": f"/{batch_id}/results"}[seen_by]
    ended: list[str] = []

    def hear(_app: Flask, batch: Batch, **_: object) -> None:
        ended.append(batch.id)

    with batch_finished.connected_to(hear, ada.application):
        assert ada.get(f"/v1/batches/{batch_id}").status_code == 404
        age(tmp_path, 23 * 3600)
        assert ada.get(f"/v1/batches/{batch_id}").status_code == 404
        age(tmp_path, 3600)
        ada.get(f"/v1/batches{path}")
        llm_provider.calls.clear()
        shown = ada.get(f"/v1/batches/{batch_id}").get_json()
        listed = {batch["id"]: batch for batch in ada.get("/v1/batches").get_json()["data"]}
        results = ada.get(f"/v1/batches/{batch_id}/results")
    assert ended == [batch_id]
    assert shown["status"] == "failed"
    assert shown["errors"]["data"][0]["message"] == "The provider has had no such batch for more than a day."
    assert listed[batch_id] == shown
    assert listed[other]["status"] != "failed"
    assert results.status_code == 409
    assert "no such batch for more than a day" in results.get_json()["detail"]
    assert not llm_provider.calls_to(f"GET /batches/{batch_id}")


def test_what_turns_up_again_is_not_lost(ada: FlaskClient, llm_provider: Simulator, tmp_path: Path) -> None:
    """A day of 404s begins anew when the provider has shown the batch in between."""
    batch_id = create_batch(ada, 1)
    for _ in range(3):
        llm_provider.fail_next(404, on="GET /batches/")
        assert ada.get(f"/v1/batches/{batch_id}").status_code == 404
        age(tmp_path, 23 * 3600)
        assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] == "in_progress"
