"""Ids of every provider reach the right endpoint, and invalid ids reach no provider."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.wrappers import Response

from flask_llm_batches.testing import Call, Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests

IDS = ["batches/abc", "arn:aws:bedrock:us-east-1:1:model-invocation-job/x", "a b", "über", "results"]


@pytest.mark.parametrize("batch_id", IDS)
@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("slash", ["", "/"])
def test_ids_reach_all_four_routes(
    ada: FlaskClient, llm_provider: Simulator, batch_id: str, encoded: bool, slash: str
) -> None:
    """Slashes and colons work raw and percent-encoded, with one slash at the end and without."""
    llm_provider.next_batch_id = batch_id
    assert create_batch(ada) == batch_id
    path = f"/v1/batches/{quote(batch_id, safe='' if encoded else '/:')}"
    assert ada.get(f"{path}{slash}").get_json()["id"] == batch_id
    assert ada.get(f"{path}/results{slash}").status_code == 409
    assert ada.post(f"{path}/cancel{slash}").get_json()["status"] == "cancelling"
    llm_provider.batches[0].status = "in_progress"
    llm_provider.batches[0].finish()
    assert len(ada.get(f"{path}/results{slash}").get_json()["results"]) == 3
    assert ada.get("/v1/batches/").get_json()["data"][0]["id"] == batch_id


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../b",
        "a/.",
        ".",
        "a//b",
        "a//",
        "//a",
        "a%3Fb",
        "a%23b",
        "a%00b",
        "a%0Ab",
        "a%7Fb",
        "a%C2%85b",
        "%2E%2E",
        "a%25",
        "%252e%252e/files",
        "%25252e%25252e",
        "a%2F%2E%2E",
        "x" * 513,
    ],
)
@pytest.mark.parametrize("suffix", ["", "/results", "/cancel"])
def test_what_is_no_id_reaches_no_provider(
    admin: FlaskClient, llm_provider: Simulator, path: str, suffix: str
) -> None:
    """Control characters, "?", "#", "%", dot segments and long ids are a 404, also for an admin."""
    method = "POST" if suffix == "/cancel" else "GET"
    answer = admin.open(f"/v1/batches/{path}{suffix}?provider=openai", method=method)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")
    assert not llm_provider.calls


@pytest.mark.parametrize("provider", ["openai", "anthropic", "mistral"])
def test_ids_are_quoted_in_every_path(make_host: MakeHost, llm_provider: Simulator, provider: str) -> None:
    """Regression: Mistral's SDK put an id into the path without quoting it."""
    batch_id = "b c;+&=ü:1"
    llm_provider.next_batch_id = batch_id
    app = make_host(providers=llm_provider.providers)
    ada, admin = client_of(app, "ada"), client_of(app, None)
    create_batch(ada, model=f"{provider}:m", requests=requests(1, max_tokens=9))
    llm_provider.calls.clear()
    path = f"/v1/batches/{quote(batch_id, safe='')}"
    assert ada.get(path).get_json()["id"] == batch_id
    assert ada.post(f"{path}/cancel").get_json()["id"] == batch_id
    llm_provider.batches[0].status = "in_progress"
    llm_provider.batches[0].finish()
    assert ada.get(f"{path}/results").status_code == 200
    for call in llm_provider.calls:
        quoted = quote(batch_id, safe="") in call.target or quote(batch_id, safe=";+&=:") in call.target
        assert quoted or call.path.startswith("/files/"), call.target
    assert len(llm_provider.calls) >= 4
    assert admin.get(f"/v1/batches/a/b?provider={provider}").status_code == 404
    assert llm_provider.calls[-1].target.endswith("/a%2Fb")


def test_a_provider_that_takes_any_spelling(make_host: MakeHost, llm_provider: Simulator) -> None:
    """Regression: ``MSGBATCH_1`` showed another owner's ``msgbatch_1`` if the provider ignores case."""
    app = make_host(providers=llm_provider.providers, untracked="allow")
    ada, bob, admin = (client_of(app, name) for name in ("ada", "bob", None))
    llm_provider.next_batch_id = "msgbatch_1"
    create_batch(ada, model="anthropic:m", requests=requests(1, max_tokens=9))
    shown = b""

    def rewrite(call: Call, response: Response) -> Response:
        nonlocal shown
        if call.target.endswith("/msgbatch_1"):
            shown = response.data
        is_other = "MSGBATCH_1" in call.target
        return Response(shown, mimetype="application/json") if is_other else response

    llm_provider.rewrite = rewrite
    assert ada.get("/v1/batches/msgbatch_1").status_code == 200
    for client in (bob, admin):
        for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/results")):
            answer = client.open(f"/v1/batches/MSGBATCH_1{path}?provider=anthropic", method=method)
            assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")
    assert not [call for call in llm_provider.calls if call.path.endswith("/cancel")]


@pytest.mark.parametrize("ended", [True, False])
def test_an_id_that_is_used_again_is_the_new_batch(
    database_app: Flask, llm_provider: Simulator, ended: bool
) -> None:
    """Regression: after a provider began to count from one again, an id showed the old batch's rows."""
    ada, bob = (client_of(database_app, name) for name in ("ada", "bob"))
    llm_provider.next_batch_id = "batch_1"
    headers = {"Idempotency-Key": "k"}
    body = {"model": "openai:m", "requests": requests(2)}
    assert ada.post("/v1/batches", json=body, headers=headers).get_json()["id"] == "batch_1"
    llm_provider.batches[0].times["created_at"] -= 3600
    ada.get("/v1/batches/batch_1")
    if ended:
        llm_provider.batches[0].finish()
        assert len(ada.get("/v1/batches/batch_1/results").get_json()["results"]) == 2

    llm_provider.next_batch_id = "batch_1"
    assert create_batch(bob, 3) == "batch_1"
    assert bob.get("/v1/batches/batch_1").get_json()["status"] == "in_progress"
    llm_provider.batches[0].finish()
    rows = bob.get("/v1/batches/batch_1/results").get_json()["results"]
    assert sorted(row["custom_id"] for row in rows) == ["r0", "r1", "r2"]
    assert [batch["id"] for batch in bob.get("/v1/batches").get_json()["data"]] == ["batch_1"]
    (used,) = bob.get("/v1/batches/usage").get_json()["data"]
    assert (used["requests"], used["total_tokens"] > 0) == (3, True)

    assert ada.get("/v1/batches/batch_1?provider=openai").status_code == 404
    (old,) = ada.get("/v1/batches").get_json()["data"]
    assert old["status"] == ("completed" if ended else "failed")
    assert ada.get(f"/v1/batches/{old['id']}").get_json() == old
    assert ada.post("/v1/batches", json=body, headers=headers).get_json() == old
    gone = ada.get(f"/v1/batches/{old['id']}/results")
    code = "results_gone" if ended else "batch_failed"
    assert (gone.status_code, gone.get_json()["error"]["code"]) == (410 if ended else 409, code)
    assert ada.head(f"/v1/batches/{old['id']}/results").status_code == gone.status_code
