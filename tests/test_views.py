"""The five endpoints, over the simulator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches import current_llm_batches
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests

FIELDS = {
    *(
        "id",
        "object",
        "provider",
        "endpoint",
        "model",
        "status",
        "errors",
        "completion_window",
        "metadata",
        "usage",
    ),
    *("input_file_id", "output_file_id", "error_file_id", "request_counts", "created_at", "expires_at"),
    *(
        "in_progress_at",
        "finalizing_at",
        "completed_at",
        "failed_at",
        "expired_at",
        "cancelling_at",
        "cancelled_at",
    ),
}


def test_create_answers_the_whole_batch(ada: FlaskClient, llm_provider: Simulator) -> None:
    """A create answers 200 with every field of the batch; the model goes into every request."""
    body = {
        "model": "openai:gpt-4o-mini",
        "requests": requests(2, model="ignored", max_tokens=5),
        "metadata": {"team": "search"},
        "unknown": 1,
    }
    answer = ada.post("/v1/batches", json=body)
    assert answer.status_code == 200
    batch = answer.get_json()
    assert batch.keys() == FIELDS
    assert (batch["object"], batch["provider"], batch["model"]) == ("batch", "openai", "gpt-4o-mini")
    assert batch["metadata"] == {"team": "search"}
    assert batch["request_counts"]["total"] == 2
    (simulated,) = llm_provider.batches
    assert simulated.id == batch["id"]
    assert simulated.requests[0]["body"] == {
        "messages": [{"role": "user", "content": "say 0"}],
        "model": "gpt-4o-mini",
        "max_tokens": 5,
    }


def test_a_batch_runs_and_comes_back(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Retrieve follows the provider, and the results are rows with all three keys."""
    batch_id = create_batch(ada, 2)
    assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] == "in_progress"
    llm_provider.batches[0].finish()
    batch = ada.get(f"/v1/batches/{batch_id}?provider=openai").get_json()
    assert (batch["status"], batch["metadata"]) == ("completed", None)
    rows = ada.get(f"/v1/batches/{batch_id}/results?provider=openai").get_json()["results"]
    assert sorted(row["custom_id"] for row in rows) == ["r0", "r1"]
    for row in rows:
        assert sorted(row) == ["custom_id", "error", "result"]
        assert row["error"] is None
        assert row["result"]["choices"][0]["message"]["content"] == f"say {row['custom_id'][1:]}"
        assert row["result"]["usage"]["total_tokens"] > 0


def test_a_batch_is_cancelled(ada: FlaskClient) -> None:
    """A cancel with an empty JSON body, as existing clients send it, answers the batch."""
    batch_id = create_batch(ada)
    answer = ada.post(f"/v1/batches/{batch_id}/cancel", content_type="application/json")
    assert (answer.status_code, answer.get_json()["status"]) == (200, "cancelling")


def test_an_empty_json_body_on_get_is_no_error(ada: FlaskClient) -> None:
    """Existing clients send ``Content-Type: application/json`` with nothing on every call."""
    batch_id = create_batch(ada)
    for path in ("", f"/{batch_id}"):
        assert ada.get(f"/v1/batches{path}", content_type="application/json").status_code == 200


def test_unfinished_results_are_a_conflict(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Results that are not there are a 409 in the words that clients rely on."""
    batch_id = create_batch(ada)
    for status in ("in_progress", "cancelling"):
        answer = ada.get(f"/v1/batches/{batch_id}/results?provider=openai")
        assert answer.status_code == 409
        assert answer.get_json()["detail"] == (
            f"Batch '{batch_id}' is not yet complete (status: {status}). "
            f"Call GET /v1/batches/{batch_id}?provider=openai to check the current status."
        )
        assert answer.get_json()["status"] == status
        assert answer.get_json()["error"]["code"] == "batch_not_complete"
        assert answer.headers["Retry-After"]
        assert answer.headers["X-Should-Retry"] == "false"
        llm_provider.batches[0].cancel()


@pytest.mark.parametrize(("end", "code"), [("expire", "batch_expired"), ("cancel", "batch_cancelled")])
def test_partial_results_are_given(ada: FlaskClient, llm_provider: Simulator, end: str, code: str) -> None:
    """An expired or cancelled batch has what was finished before, and error rows for the rest."""
    batch_id = create_batch(ada, 5)
    ada.get(f"/v1/batches/{batch_id}")
    simulated = llm_provider.batches[0]
    if end == "expire":
        simulated.expire(after=3)
    else:
        simulated.advance(3)
        simulated.cancel()
        simulated.finish()
    answer = ada.get(f"/v1/batches/{batch_id}/results")
    assert answer.status_code == 200
    rows = answer.get_json()["results"]
    assert sorted(row["custom_id"] for row in rows) == [f"r{number}" for number in range(5)]
    assert len([row for row in rows if row["result"]]) == 3
    assert [row["error"]["code"] for row in rows if row["error"]] == [code] * 2


@pytest.mark.parametrize("all_fail", [False, True])
def test_failed_requests_are_rows(ada: FlaskClient, llm_provider: Simulator, all_fail: bool) -> None:
    """Regression: any-llm leaves the error file out, so failed requests vanished from the results."""
    error = {
        "message": "messages must not be empty",
        "code": "invalid_value",
        "type": "invalid_request_error",
    }
    good = llm_provider.respond
    llm_provider.respond = lambda line: (
        (400, {"error": error}) if all_fail or line["custom_id"] == "r1" else good(line)
    )
    batch_id = create_batch(ada, 3)
    llm_provider.batches[0].finish()
    rows = {row["custom_id"]: row for row in ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]}
    assert rows["r1"]["result"] is None
    assert rows["r1"]["error"] == {
        "code": "invalid_value",
        "message": "messages must not be empty",
        "retryable": False,
        "status": 400,
    }
    assert sorted(rows) == ["r0", "r1", "r2"]
    assert bool(rows["r0"]["result"]) is not all_fail


def test_rows_of_other_endpoints_are_intact(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Regression: a row that is no chat completion ended the whole set of results."""
    body = [{"custom_id": "e", "body": {"input": "hello"}}]
    batch_id = create_batch(ada, requests=body, endpoint="/v1/embeddings")
    llm_provider.batches[0].finish()
    (row,) = ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]
    assert row["result"]["data"][0]["embedding"] == [0.25, -0.5, 1.0]


def test_results_of_a_failed_batch_say_why(ada: FlaskClient, llm_provider: Simulator) -> None:
    """A batch that failed before any request ran is a 409 with the provider's reasons."""
    batch_id = create_batch(ada)
    llm_provider.batches[0].fail("This line is not parseable.", line=7)
    answer = ada.get(f"/v1/batches/{batch_id}/results")
    assert answer.status_code == 409
    assert answer.get_json()["detail"] == (
        f"Batch '{batch_id}' is not yet complete (status: failed). Line 7: This line is not parseable."
    )
    assert answer.get_json()["error"]["code"] == "batch_failed"


def test_a_callers_list_is_their_record(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """A list has the caller's own batches, newest first, in exact pages; each that runs is asked after."""
    made = [create_batch(ada, 1) for _ in range(5)]
    create_batch(client_of(app, "bob"), 1)
    llm_provider.calls.clear()
    first = ada.get("/v1/batches?limit=2").get_json()
    assert [batch["id"] for batch in first["data"]] == made[:2:-1]
    assert (first["object"], first["has_more"]) == ("list", True)
    assert (first["first_id"], first["last_id"]) == (made[4], made[3])
    rest = ada.get(f"/v1/batches?limit=3&after={first['last_id']}&provider=openai").get_json()
    assert [batch["id"] for batch in rest["data"]] == made[2::-1]
    assert not rest["has_more"]
    assert client_of(app, "eve").get("/v1/batches").get_json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert sorted(call.path for call in llm_provider.calls) == sorted(f"/batches/{id_}" for id_ in made)


def test_simultaneous_polls_share_a_call(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Polls of one batch that come while one is under way are answered with it."""
    batch_id = create_batch(ada)
    llm_provider.calls.clear()
    llm_provider.delay_next(0.5, on="GET /batches/")
    app = ada.application
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: client_of(app, "ada").get(f"/v1/batches/{batch_id}"), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len(llm_provider.calls) < 6


def test_an_admins_list_is_the_providers(ada: FlaskClient, admin: FlaskClient) -> None:
    """An admin lists what the provider has, page by page, and must name it."""
    made = [create_batch(ada, 1) for _ in range(3)]
    page = admin.get("/v1/batches?provider=openai&limit=2").get_json()
    assert [batch["id"] for batch in page["data"]] == made[:0:-1]
    assert page["has_more"]
    assert page["data"][0]["metadata"] is None
    rest = admin.get(f"/v1/batches?provider=openai&after={page['last_id']}").get_json()
    assert [batch["id"] for batch in rest["data"]] == made[:1]
    missing = admin.get("/v1/batches")
    assert missing.status_code == 422
    assert missing.get_json()["detail"][0]["loc"] == ["query", "provider"]


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("limit=0", ["query", "limit"]),
        ("limit=101", ["query", "limit"]),
        ("limit=x", ["query", "limit"]),
        ("after=nothing", ["query", "after"]),
        ("provider=", ["query", "provider"]),
    ],
)
def test_senseless_pages_are_refused(ada: FlaskClient, query: str, loc: list[str]) -> None:
    """A limit or a cursor that makes no sense is a 422 that names it."""
    answer = ada.get(f"/v1/batches?{query}")
    assert answer.status_code == 422
    assert answer.get_json()["detail"][0]["loc"] == loc
    assert answer.get_json()["error"]["code"] == "validation_error"


@pytest.mark.parametrize(
    ("change", "loc", "kind"),
    [
        ({"model": None}, ["body", "model"], "missing"),
        ({"model": 3}, ["body", "model"], "value_error"),
        ({"model": "m:" + "x" * 300}, ["body", "model"], "value_error"),
        ({"requests": None}, ["body", "requests"], "value_error"),
        ({"requests": {}}, ["body", "requests"], "value_error"),
        ({"requests": []}, ["body", "requests"], "value_error"),
        ({"requests": [{"body": {}}]}, ["body", "requests", 0, "custom_id"], "missing"),
        ({"requests": [{"custom_id": "a"}]}, ["body", "requests", 0, "body"], "missing"),
        ({"metadata": {"team": 3}}, ["body", "metadata", "team"], "value_error"),
        ({"metadata": {"k" * 65: ""}}, ["body", "metadata", "k" * 65], "value_error"),
        ({"metadata": {"key": "v" * 513}}, ["body", "metadata", "key"], "value_error"),
        ({"metadata": dict.fromkeys(map(str, range(17)), "")}, ["body", "metadata"], "value_error"),
        ({"endpoint": "embeddings"}, ["body", "endpoint"], "value_error"),
        ({"completion_window": ""}, ["body", "completion_window"], "value_error"),
        ({"user": ""}, ["body", "user"], "value_error"),
    ],
)
def test_bad_fields_are_named(
    ada: FlaskClient, llm_provider: Simulator, change: dict[str, Any], loc: list[Any], kind: str
) -> None:
    """A wrong field of a create is a 422 that says where and why, and nothing is sent."""
    body = {"model": "openai:gpt-4o-mini", "requests": requests(1), **change}
    answer = ada.post("/v1/batches", json=body)
    assert answer.status_code == 422, answer.text
    assert [(item["loc"], item["type"]) for item in answer.get_json()["detail"]] == [(loc, kind)]
    assert answer.get_json()["error"]["param"] == loc[1]
    assert not llm_provider.calls


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"", "text/plain", 422, "validation_error"),
        (b"{", "application/json", 422, "invalid_json"),
        (b'{"a": 1} x', "application/json", 422, "invalid_json"),
        (b'{"model": "\\ud800"}', "application/json", 422, "invalid_json"),
        (b'{"model": "\xff"}', "application/json", 422, "invalid_json"),
        (b"[" * 3000, "application/json", 422, "validation_error"),
        (b'{"a": ' + b"[" * 3000, "application/json", 422, "invalid_json"),
        (b"[]", "application/json", 422, "validation_error"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
    ],
)
def test_bodies_that_are_no_json_are_refused(
    ada: FlaskClient, body: bytes, content_type: str, status: int, code: str
) -> None:
    """An empty, malformed or foreign body gets a clear error, never a 500."""
    answer = ada.post("/v1/batches", data=body, content_type=content_type)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (status, code)
    assert isinstance(answer.get_json()["detail"], list) == (status == 422)


@pytest.mark.parametrize(
    ("model", "status", "code", "quoted"),
    [
        ("gpt-4o-mini", 400, "invalid_model", "gpt-4o-mini"),
        (":gpt", 400, "invalid_model", ":gpt"),
        ("openai:", 400, "invalid_model", "openai:"),
        ("nowhere:gpt", 400, "unknown_provider", "nowhere"),
        ("grok:gpt", 422, "unsupported_provider", "grok"),
    ],
)
def test_models_that_lead_nowhere_are_refused(
    make_host: MakeHost, llm_provider: Simulator, model: str, status: int, code: str, quoted: str
) -> None:
    """A model without a provider, or with one that takes no batches, is refused in the known words."""
    app = make_host(providers={"openai": llm_provider.settings, "grok": {"provider": "xai", "api_key": "k"}})
    answer = client_of(app, "ada").post("/v1/batches", json={"model": model, "requests": requests(1)})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (status, code)
    assert quoted in answer.get_json()["detail"]


@pytest.mark.parametrize("model", ["OpenAI:m", "openai/m", "openai:org/m", "openai/ft:m"])
def test_models_are_split_at_the_first_mark(ada: FlaskClient, llm_provider: Simulator, model: str) -> None:
    """The provider ends at the first colon or slash, and its case does not matter."""
    create_batch(ada, 1, model=model)
    assert llm_provider.batches[0].requests[0]["body"]["model"] == model[7:]


def test_owners_see_only_their_own(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """A foreign batch is answered like one that does not exist, and no provider hears of it."""
    batch_id = create_batch(ada)
    eve = client_of(app, "eve")
    before = len(llm_provider.calls)
    for id_ in (batch_id, "batch_nowhere"):
        for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/results")):
            answer = eve.open(f"/v1/batches/{id_}{path}?provider=openai", method=method)
            assert answer.status_code == 404
            assert answer.get_json()["detail"] == f"Batch '{id_}' not found"
            assert eve.open(f"/v1/batches/{id_}{path}", method=method).status_code == 422
        assert eve.get(f"/v1/batches?after={id_}").status_code == 422
    assert len(llm_provider.calls) == before


def test_lists_are_filtered_by_status(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Pages have only such batches; one that has just ended is not among those that run."""
    made = [create_batch(ada, 1) for _ in range(5)]
    for batch in llm_provider.batches[1::2]:
        batch.finish()
    assert [one["id"] for one in ada.get("/v1/batches?status=in_progress").get_json()["data"]] == made[::2][
        ::-1
    ]
    page = ada.get("/v1/batches?status=completed&limit=1").get_json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([made[3]], True)
    page = ada.get(f"/v1/batches?status=completed&limit=1&after={made[3]}").get_json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == ([made[1]], False)
    assert ada.get("/v1/batches?status=failed").get_json()["data"] == []


def test_an_admin_lists_what_owners_have(app: Flask, ada: FlaskClient, admin: FlaskClient) -> None:
    """By owner, by status or by both, from the record; without either, what the provider has."""
    bob = client_of(app, "bob")
    by_ada, by_bob = create_batch(ada), create_batch(bob)

    def found(query: str) -> list[str]:
        return [one["id"] for one in admin.get(f"/v1/batches?{query}").get_json()["data"]]

    assert found("owner=ada") == found("owner=ada&status=in_progress") == [by_ada]
    assert found("status=in_progress") == [by_bob, by_ada]
    assert found(f"status=in_progress&after={by_bob}") == [by_ada]
    assert found("owner=carol") == found("status=failed") == []
    assert admin.get("/v1/batches").status_code == 422
    # Regression: a name that no owner can have was a 500.
    wrong = admin.get("/v1/batches?owner=a%07")
    assert (wrong.status_code, wrong.get_json()["detail"][0]["msg"]) == (
        422,
        "May not contain control characters.",
    )
    refused = ada.get("/v1/batches?owner=bob")
    assert (refused.status_code, refused.get_json()["error"]["param"]) == (403, "owner")
    assert ada.get("/v1/batches?owner=ada").get_json()["data"][0]["id"] == by_ada


def test_admins_see_whose_a_batch_is(
    app: Flask, ada: FlaskClient, admin: FlaskClient, llm_provider: Simulator
) -> None:
    """In a batch and in lists; it is null of a batch without a record, and owners are not told."""
    batch_id = create_batch(ada)
    assert admin.get(f"/v1/batches/{batch_id}").get_json()["owner"] == "ada"
    assert admin.get("/v1/batches?provider=openai").get_json()["data"][0]["owner"] == "ada"
    assert admin.get("/v1/batches?owner=ada").get_json()["data"][0]["owner"] == "ada"
    assert admin.post(f"/v1/batches/{batch_id}/cancel").get_json()["owner"] == "ada"
    body = {"model": "openai:m", "requests": requests(1), "user": "carol"}
    assert admin.post("/v1/batches", json=body).get_json()["owner"] == "carol"
    llm_provider.batches[0].finish()
    assert admin.get(f"/v1/batches/{batch_id}").get_json()["owner"] == "ada"
    with app.app_context():
        assert current_llm_batches.retrieve(batch_id, owner="ada").owner == "ada"
    assert "owner" not in ada.get(f"/v1/batches/{batch_id}").get_json()
    assert "owner" not in ada.get("/v1/batches").get_json()["data"][0]


def test_another_provider_than_the_records_is_not_found(make_host: MakeHost, llm_provider: Simulator) -> None:
    """``?provider=`` must be the batch's own, for admins too."""
    app = make_host(providers={"openai": llm_provider.settings, "EU": {"provider": "openai", "api_key": "k"}})
    batch_id = create_batch(client_of(app, "ada"))
    for user in ("ada", None):
        assert client_of(app, user).get(f"/v1/batches/{batch_id}?provider=eu").status_code == 404
        assert client_of(app, user).get(f"/v1/batches/{batch_id}?provider=openai").status_code == 200


def test_untracked_batches_are_for_admins(make_host: MakeHost, llm_provider: Simulator) -> None:
    """A batch that was not made here is shown to admins, and to others only where the host allows it."""
    elsewhere = create_batch(client_of(make_host(), "ada"))
    path = f"/v1/batches/{elsewhere}?provider=openai"
    strict, lenient = make_host(), make_host(untracked="allow")
    assert client_of(strict, None).get(path).status_code == 200
    assert client_of(strict, "ada").get(path).status_code == 404
    assert client_of(lenient, "ada").get(path).status_code == 200
    assert client_of(strict, None).get(path.partition("?")[0]).status_code == 422


def test_an_admins_list_says_what_is_known(
    make_host: MakeHost, admin: FlaskClient, ada: FlaskClient, llm_provider: Simulator
) -> None:
    """Batches that were made here have the fields that their provider does not return."""
    elsewhere = create_batch(client_of(make_host(), "ada"))
    here = create_batch(ada)
    llm_provider.batches[1].finish()
    listed = admin.get("/v1/batches?provider=openai").get_json()["data"]
    assert [(batch["id"], batch["model"]) for batch in listed] == [(here, "gpt-4o-mini"), (elsewhere, None)]
    llm_provider.calls.clear()
    assert ada.get(f"/v1/batches/{here}").get_json()["status"] == "completed"
    assert not llm_provider.calls


def test_an_unsettled_batch_is_not_untracked(make_host: MakeHost, llm_provider: Simulator) -> None:
    """What was made for somebody, though the answer never came, is nobody else's, and stays uncancelled."""
    app = make_host(untracked="allow")
    llm_provider.drop_next(on="POST /batches", after=0)
    body = {"model": "openai:m", "requests": requests(1)}
    assert client_of(app, "bob").post("/v1/batches", json=body).status_code == 502
    path = f"/v1/batches/{llm_provider.batches[0].id}"
    ada = client_of(app, "ada")
    assert ada.get(f"{path}?provider=openai").status_code == 404
    assert ada.post(f"{path}/cancel?provider=openai").status_code == 404
    assert llm_provider.batches[0].status == "in_progress"


def test_a_providers_failure_does_not_tell_whose_a_batch_is(
    app: Flask, ada: FlaskClient, llm_provider: Simulator
) -> None:
    """Regression: to one whose create got no answer, unknown ids were a 502, and those of others were not."""
    batch_id = create_batch(ada)
    bob = client_of(app, "bob")
    llm_provider.drop_next(on="POST /batches")
    assert bob.post("/v1/batches", json={"model": "openai:m", "requests": requests(1)}).status_code == 502
    answers = []
    for one in (batch_id, "batch_none"):
        llm_provider.fail_next(503, on="GET /batches/")
        answers.append(bob.get(f"/v1/batches/{one}"))
    assert [answer.status_code for answer in answers] == [502, 502]
    assert answers[0].data == answers[1].data


def test_an_admin_acts_for_others(app: Flask, ada: FlaskClient, admin: FlaskClient) -> None:
    """``user`` names the owner: anyone for an admin, oneself for the rest."""
    batch_id = create_batch(admin, user="ada")
    assert ada.get(f"/v1/batches/{batch_id}").status_code == 200
    create_batch(ada, user="ada")
    answer = ada.post("/v1/batches", json={"model": "openai:m", "requests": requests(1), "user": "bob"})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (403, "forbidden")
    mine = create_batch(admin)
    assert admin.get(f"/v1/batches/{mine}").status_code == 200
    assert client_of(app, "bob").get(f"/v1/batches/{mine}?provider=openai").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("POST", "/b1", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/b1/cancel", {"POST", "OPTIONS"}),
        ("PUT", "/b1/results/", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_wrong_methods_get_our_error(ada: FlaskClient, method: str, path: str, allow: set[str]) -> None:
    """A wrong method under our prefix is a 405 in JSON that says which ones are right."""
    answer = ada.open(f"/v1/batches{path}", method=method)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == allow


def test_large_bodies_are_refused_by_our_own_limit(make_host: MakeHost, llm_provider: Simulator) -> None:
    """Our limit holds on our endpoints, over the host's own, and the answer names it."""
    app = make_host(max_content_length=2000)
    app.config["MAX_CONTENT_LENGTH"] = 10
    ada = client_of(app, "ada")
    create_batch(ada, 1)
    answer = ada.post("/v1/batches", json={"model": "openai:m", "requests": requests(50)})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (413, "too_large")
    assert "2000 bytes" in answer.get_json()["detail"]


def test_too_many_requests_are_refused(make_host: MakeHost, llm_provider: Simulator) -> None:
    """``LLM_BATCHES_MAX_REQUESTS`` is a 422 that names the limit, before anything is sent."""
    ada = client_of(make_host(max_requests=2), "ada")
    create_batch(ada, 2)
    calls = len(llm_provider.calls)
    answer = ada.post("/v1/batches", json={"model": "openai:m", "requests": requests(3)})
    assert answer.status_code == 422
    assert "2" in answer.get_json()["detail"][0]["msg"]
    assert len(llm_provider.calls) == calls


def test_other_endpoints_of_the_provider(ada: FlaskClient, llm_provider: Simulator) -> None:
    """``endpoint`` and ``completion_window`` go to the provider, which has the last word."""
    create_batch(ada, 1, endpoint="/v1/embeddings", completion_window="24h")
    assert llm_provider.batches[0].requests[0]["url"] == "/v1/embeddings"
    body = {"model": "openai:m", "requests": requests(1), "completion_window": "1h"}
    answer = ada.post("/v1/batches", json=body)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "provider_rejected")
    assert "completion_window" in answer.get_json()["detail"]


def test_hidden_metadata_stays_hidden(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Our own id travels in the provider's metadata, over a caller's value, and is never shown."""
    batch_id = create_batch(ada, metadata={"flask_llm_batches_uid": "mine", "a": "b"})
    sent = llm_provider.batches[0].metadata
    assert sent is not None
    assert sent["flask_llm_batches_uid"] != "mine"
    for answer in (
        ada.get(f"/v1/batches/{batch_id}"),
        ada.get("/v1/batches"),
        client_of(ada.application, None).get("/v1/batches?provider=openai"),
    ):
        assert b"flask_llm_batches_uid" not in answer.data
        assert b'{"a":"b"}' in answer.data
