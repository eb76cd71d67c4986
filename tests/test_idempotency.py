"""``Idempotency-Key``: one create is one batch, however often it is sent."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_llm_batches import current_llm_batches
from flask_llm_batches.errors import ValidationFailed
from flask_llm_batches.store.models import Record
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.faults import (
    NOT_THERE,
    WINDOW,
    go_wrong,
    own_ids,
    process_dies,
    reconcile,
    rewrite_lists,
    show_nothing,
    time_passes,
)
from tests.hosts import requests
from tests.servers import gunicorn

DAY = 24 * 3600

BODY: dict[str, Any] = {
    "model": "openai:m",
    "requests": requests(2, temperature=0.5, seed=12345678901234567890123),
    "metadata": {"b": "1", "a": "2"},
}


def create(client: FlaskClient, key: str = "k", **fields: Any) -> TestResponse:
    return client.post("/v1/batches", json={**BODY, **fields}, headers={"Idempotency-Key": key})


def code(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["error"]["code"]


def test_the_same_create_has_the_same_answer(
    ada: FlaskClient, app: Flask, make_host: MakeHost, llm_provider: Simulator, tmp_path: Path
) -> None:
    """The first answer is given again to the byte, by another process too, whatever became of the batch."""
    first = create(ada)
    assert (first.status_code, first.headers.get("Idempotent-Replayed")) == (200, None)
    llm_provider.batches[0].finish()
    ada.get(f"/v1/batches/{first.get_json()['id']}")
    other = client_of(make_host(database=tmp_path / "host.sqlite3"), "ada")
    for client in (ada, other):
        again = create(client)
        assert (again.data, again.headers["Idempotent-Replayed"]) == (first.data, "true")
    assert len(llm_provider.calls_to("POST /files")) == len(llm_provider.calls_to("POST /batches")) == 1
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert used["batches"] == 1
    with app.app_context():
        batch = current_llm_batches.create(owner="ada", idempotency_key="k", **BODY)
    assert batch.id == first.get_json()["id"]


def test_every_database_gives_the_same_bytes(database_app: Flask) -> None:
    """Whatever keeps the answer keeps the order of its keys."""
    ada = client_of(database_app, "ada")
    first = create(ada, metadata={"z": "é😀", "a": "\u0001"})
    assert create(ada, metadata={"z": "é😀", "a": "\u0001"}).data == first.data
    assert code(create(ada)) == (422, "idempotency_mismatch")


def spaced(body: Any) -> str:
    return json.dumps(body, indent=3)


def turned(value: Any) -> Any:
    """Turn the order of all keys round."""
    if isinstance(value, dict):
        return {name: turned(value[name]) for name in reversed(value)}
    return [turned(item) for item in value] if isinstance(value, list) else value


def escaped(body: Any) -> str:
    return json.dumps(body).replace("say", r"\u0073ay")


@pytest.mark.parametrize("write", [spaced, lambda body: json.dumps(turned(body)), escaped])
def test_the_same_request_may_look_another_way(ada: FlaskClient, write: Any) -> None:
    """White space, the order of keys and escapes make no other request."""
    first = create(ada)
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    assert ada.post("/v1/batches", data=write(BODY), headers=headers).data == first.data


def test_json_and_jsonl_are_the_same(ada: FlaskClient) -> None:
    """The same requests as JSON and as JSONL, with or without what OpenAI's lines say too, are the same."""
    first = create(ada, metadata=None)
    lines = [{**line, "method": "POST", "url": "/v1/chat/completions"} for line in BODY["requests"]]
    for rows in (BODY["requests"], lines):
        again = ada.post(
            "/v1/batches?model=openai:m",
            data="".join(json.dumps(row) + "\r\n" for row in rows),
            headers={"Idempotency-Key": "k", "Content-Type": "application/jsonl"},
        )
        assert again.data == first.data


OTHERS: dict[str, dict[str, Any]] = {
    "model": {"model": "openai:m2"},
    "provider": {"model": "second:m"},
    "metadata": {"metadata": {"b": "1", "a": "3"}},
    "no metadata": {"metadata": None},
    "endpoint": {"endpoint": "/v1/responses"},
    "a request more": {"requests": requests(3, temperature=0.5, seed=12345678901234567890123)},
    "another parameter": {"requests": requests(2, temperature=0.6, seed=12345678901234567890123)},
    "the last digit": {"requests": requests(2, temperature=0.5, seed=12345678901234567890124)},
    "another order": {"requests": BODY["requests"][::-1]},
}


@pytest.mark.parametrize("fields", OTHERS.values(), ids=OTHERS.keys())
def test_another_request_is_refused(
    make_host: MakeHost, llm_provider: Simulator, fields: dict[str, Any]
) -> None:
    """A key that was used for something else makes nothing, and says where the fault is."""
    settings = llm_provider.settings
    app = make_host(providers={"openai": settings, "second": {**settings, "provider": "openai"}})
    ada = client_of(app, "ada")
    create(ada)
    answer = create(ada, **fields)
    assert code(answer) == (422, "idempotency_mismatch")
    assert answer.get_json()["error"]["param"] == "Idempotency-Key"
    assert len(llm_provider.batches) == 1


def test_another_provider_of_one_request_is_another_request(
    make_host: MakeHost, llm_provider: Simulator
) -> None:
    """Regression: where requests name their models, the provider of all but the first was left out."""
    settings = llm_provider.settings
    app = make_host(providers={"openai": settings, "second": {**settings, "provider": "openai"}})

    def ask(*names: str) -> TestResponse:
        named = [{"custom_id": str(i), "body": {"model": f"{name}:m"}} for i, name in enumerate(names)]
        return client_of(app, "ada").post(
            "/v1/batches", json={"requests": named}, headers={"Idempotency-Key": "k"}
        )

    first = ask("openai", "second")
    assert first.status_code == 200
    assert code(ask("openai", "openai")) == (422, "idempotency_mismatch")
    assert ask("openai", "second").get_json()["id"] == first.get_json()["id"]


@pytest.mark.parametrize("nested", [300, 600, 900, 2000])
def test_deep_requests_have_a_sum_too(ada: FlaskClient, nested: int) -> None:
    """What nests deep is answered with a key as it is without one."""
    line = b'{"custom_id": "a", "body": {"messages": [], "x": ' + b"[" * nested + b"]" * nested + b"}}"

    def ask(**headers: str) -> int:
        kind = {"Content-Type": "application/jsonl", **headers}
        return ada.post("/v1/batches?model=openai:m", data=line, headers=kind).status_code

    assert ask(**{"Idempotency-Key": "k"}) == ask()


def test_a_key_is_its_owners(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """The same key of two owners, or of an admin for two users, is two keys."""
    admin = client_of(app, None)
    answers = [create(ada), create(client_of(app, "bob")), create(admin, user="eve"), create(admin)]
    assert len({answer.get_json()["id"] for answer in answers}) == 4
    for_ada = create(admin, user="ada").get_json()
    assert for_ada == answers[0].get_json() | {"owner": "ada"}


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "é", "a\tb"])
def test_a_key_is_visible_characters(ada: FlaskClient, llm_provider: Simulator, key: str) -> None:
    """Anything but 1 to 255 visible characters is refused, and nothing is sent."""
    answer = create(ada, key)
    assert code(answer) == (422, "validation_error")
    assert answer.get_json()["detail"][0]["loc"] == ["header", "Idempotency-Key"]
    assert not llm_provider.calls


def test_a_key_that_is_no_text_is_wrong(app: Flask) -> None:
    """Regression: an integer, such as the id of an order, was a TypeError."""
    key: Any = 7
    with app.app_context(), pytest.raises(ValidationFailed, match="Idempotency-Key"):
        current_llm_batches.create(owner="ada", idempotency_key=key, **BODY)


def test_the_longest_key_is_taken(ada: FlaskClient) -> None:
    """255 characters are a key, and differ from others in the last one."""
    first = create(ada, "~" * 255)
    assert create(ada, "~" * 255).data == first.data
    assert create(ada, "~" * 254 + "!").get_json()["id"] != first.get_json()["id"]


def test_a_key_lives_as_long_as_its_batch(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """A key returns its batch however old it is, and is refused for another create."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    first = create(ada)
    query(database, "UPDATE llm_batches_idempotency SET created_at = 0")
    time_passes(database, 1000 * DAY)
    reconcile(app)
    assert create(ada).data == first.data
    assert code(create(ada, endpoint="/v1/responses")) == (422, "idempotency_mismatch")
    assert len(llm_provider.batches) == 1
    query(database, "DELETE FROM llm_batches_batch")
    assert create(ada, endpoint="/v1/responses").status_code == 200  # the record is gone


@pytest.mark.parametrize("reconciled", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_a_create_whose_fate_is_found_later_is_returned(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, tmp_path: Path, dead: bool, reconciled: bool
) -> None:
    """Regression: sent again after a day, a killed create made a second batch although the first was found.

    So it did after a ``reconcile`` that could not find it yet.
    """
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    go_wrong(llm_provider, "openai", done=True)
    assert create(ada).status_code == 502
    if dead:
        process_dies(database)
    query(database, f"UPDATE llm_batches_idempotency SET created_at = created_at - {2 * DAY}")
    time_passes(database, 2 * DAY)
    if reconciled:
        rewrite_lists(llm_provider, show_nothing)
        assert reconcile(app) == NOT_THERE
        llm_provider.rewrite = None
        time_passes(database, DAY)
    again = create(ada)
    (made,) = llm_provider.batches
    assert (again.get_json()["id"], again.headers["Idempotent-Replayed"]) == (made.id, "true")


def test_a_key_is_kept_while_its_create_runs(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """Regression: a key that ran out before its first create had ended was good for a second batch."""
    llm_provider.delay_next(1, on="POST /batches")
    with ThreadPoolExecutor(1) as others:
        first = others.submit(create, client_of(app, "ada"))
        while not llm_provider.calls_to("POST /batches"):
            time.sleep(0.01)
        query(f"sqlite:///{tmp_path}/host.sqlite3", "UPDATE llm_batches_idempotency SET created_at = 0")
        answer = create(ada)
        assert code(answer) == (409, "idempotency_in_progress")
        assert "still running" in answer.get_json()["detail"]
        assert first.result().status_code == 200


def test_a_key_goes_with_any_number(ada: FlaskClient) -> None:
    """Regression: with a key, an integer of thousands of digits was a 500."""
    asked = f'{{"model":"openai:m","requests":[{{"custom_id":"a","body":{{"seed":{"1" * 5000}}}}}]}}'
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    for data, status in ((asked, 200), (asked, 200), (asked.replace("11}", "12}"), 422)):
        assert ada.post("/v1/batches", data=data, headers=headers).status_code == status


def test_a_dry_run_uses_no_key(ada: FlaskClient, llm_provider: Simulator) -> None:
    """A dry run leaves the key free."""
    headers = {"Idempotency-Key": "k"}
    assert ada.post("/v1/batches?dry_run=true", json=BODY, headers=headers).status_code == 200
    assert create(ada, endpoint="/v1/responses").status_code == 200


@pytest.mark.parametrize("fault", ["wrong", "upload", "refused", "401", "429"])
def test_what_failed_for_sure_frees_its_key(ada: FlaskClient, llm_provider: Simulator, fault: str) -> None:
    """A create that made no batch may be sent again at once, changed or not."""
    if fault == "upload":
        llm_provider.drop_next(on="POST /files")
    elif fault != "wrong":
        llm_provider.fail_next({"refused": 400}.get(fault) or int(fault), on="POST /batches")
    assert create(ada, requests=[] if fault == "wrong" else BODY["requests"]).status_code >= 400
    answer = create(ada, metadata={"new": "one"})
    assert (answer.status_code, answer.headers.get("Idempotent-Replayed")) == (200, None)
    assert len(llm_provider.batches) == 1


def test_an_unknown_one_that_is_not_there_is_made_anew(
    ada: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """Sent again, it is in progress for the search window, in which it may turn up; after that it is made."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    llm_provider.drop_next(on="POST /batches")
    assert create(ada).status_code == 502
    answer = create(ada)
    assert code(answer) == (409, "idempotency_in_progress")
    assert answer.headers["Retry-After"] == "2"
    assert "X-Should-Retry" not in answer.headers
    assert f"Its batch '{own_ids(database)[0]}' is being looked for" in answer.get_json()["detail"]
    assert code(create(ada, metadata={"new": "one"})) == (422, "idempotency_mismatch")
    time_passes(database, 600)
    create(ada)
    assert 55 <= int(create(ada).headers["Retry-After"]) <= 62
    time_passes(database, WINDOW - 630)
    create(ada)
    assert 20 <= int(create(ada).headers["Retry-After"]) <= 30  # when it is decided
    time_passes(database, 30)
    llm_provider.fail_next(503, on="GET /batches")
    assert code(create(ada)) == (409, "idempotency_in_progress")
    assert not llm_provider.batches
    time_passes(database, 600)
    made = create(ada)
    assert (made.status_code, made.headers.get("Idempotent-Replayed")) == (200, None)
    assert create(ada).data == made.data
    assert len(llm_provider.batches) == 1


def test_a_batch_that_is_found_keeps_its_key(
    database_app: Flask, database_url: str, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: what another process found right after the last search was made, and paid, twice."""
    llm_provider.drop_next(on="POST /batches", after=0)
    ada = client_of(database_app, "ada")
    assert create(ada).status_code == 502
    query(database_url, "UPDATE llm_batches_batch SET state = 'failed', status = 'failed'")
    service = database_app.extensions["llm_batches"]

    def settled(record: Record) -> Record:
        batch = service._providers.retrieve("openai", llm_provider.batches[0].id)
        service._adopter.notice("openai", [batch])
        return record

    monkeypatch.setattr(service._reconciler, "settled", settled)
    again = create(ada)
    assert (again.get_json()["id"], again.headers["Idempotent-Replayed"]) == (
        llm_provider.batches[0].id,
        "true",
    )
    assert len(llm_provider.batches) == 1


def test_an_answer_that_was_not_recorded_is_found(
    database_app: Flask, database_url: str, llm_provider: Simulator
) -> None:
    """When the record failed after the provider accepted, the caller has the batch, and so has the retry."""
    ada = client_of(database_app, "ada")
    query(database_url, "ALTER TABLE llm_batches_usage RENAME TO elsewhere")
    first = create(ada)
    assert first.status_code == 200
    query(database_url, "ALTER TABLE elsewhere RENAME TO llm_batches_usage")
    assert code(create(ada)) == (409, "idempotency_in_progress")
    time_passes(database_url, 16)  # its lease has ended
    again = create(ada)
    assert (again.headers["Idempotent-Replayed"], again.get_json()["id"]) == ("true", first.get_json()["id"])
    assert len(llm_provider.batches) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, "refused", "drop"])
def test_many_at_once_make_one(database_url: str, tmp_path: Path, fault: str | None) -> None:
    """32 creates with one key over 4 processes: one batch and one answer, now or after Retry-After.

    So too when the first fails for sure, or ends without an answer.
    """
    headers = {"X-User": "ada", "Idempotency-Key": "k"}
    statuses: Counter[int] = Counter()
    with (
        Simulator() as simulator,
        gunicorn(simulator, tmp_path, "--workers=4", "--threads=8", database=database_url) as server,
        httpx.Client(
            base_url=server.url, headers=headers, timeout=60, limits=httpx.Limits(max_connections=32)
        ) as http,
        ThreadPoolExecutor(32) as callers,
    ):
        if fault == "refused":
            simulator.fail_next(400, on="POST /batches")
        elif fault == "drop":
            simulator.drop_next(on="POST /batches", after=0)
        simulator.delay_next(0.5, on="POST /files")

        def ask(_: int) -> bytes:
            for _ in range(20):
                answer = http.post("/v1/batches", json=BODY)
                statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    return answer.content
                if answer.status_code == 409:
                    assert answer.headers["Retry-After"] == "2"
                time.sleep(0.5)
            return answer.content

        answers = set(callers.map(ask, range(32)))
        assert len(simulator.batches) == 1
        assert [json.loads(answer)["id"] for answer in answers] == [simulator.batches[0].id]
    assert statuses.keys() <= {200, 409} | {"refused": {400}, "drop": {502}, None: set()}[fault], statuses
    assert statuses[400] + statuses[502] == (fault is not None)
