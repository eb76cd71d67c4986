"""Bad fields of a provider's batch objects are ignored, and nothing breaks."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from flask_llm_batches.batch import Batch
from flask_llm_batches.testing import Call, Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests

CALLS = {"openai": "/batches", "anthropic": "/messages/batches", "mistral": "/batch/jobs"}

DEEP: Any = {"a": {"b": {"c": 1}}}

ODD: dict[str, list[dict[str, Any]]] = {
    "openai": [
        {"metadata": "x"},
        {"metadata": {"a": 1, "b": [2]}},
        {"metadata": ["a"]},
        {"expires_at": "tomorrow", "completed_at": -1, "failed_at": 1e300, "in_progress_at": True},
        {"cancelled_at": 10**30, "expired_at": [1], "finalizing_at": {}},
        {"request_counts": "many"},
        {"request_counts": {"total": "3", "completed": -1, "failed": None}},
        {"errors": "x"},
        {"errors": {"data": "x"}},
        {"errors": {"data": [3, {"message": ["x"]}, {"line": "first", "code": {}}]}},
        {"model": 3, "endpoint": ["/v1"], "completion_window": {}, "object": 7},
        {"usage": "much"},
        {"usage": {"input_tokens": "3", "total_tokens": 10**400, "details": DEEP}},
        {"input_file_id": "../x", "output_file_id": "%2e%2e/x", "error_file_id": 3},
        {"created_at": 1_760_000_000.7},
        {"status": "pausing"},
    ],
    "anthropic": [
        {"request_counts": "many"},
        {"request_counts": {"processing": "3"}},
        {"request_counts": None},
        {"expires_at": "tomorrow", "ended_at": 3, "cancel_initiated_at": {}},
        {"processing_status": "pausing"},
    ],
    "mistral": [
        {"metadata": "x"},
        {"errors": "x"},
        {"errors": [3, {"message": 3}]},
        {"input_files": 3, "endpoint": 3, "model": [], "timeout_hours": "x"},
        {"total_requests": "many", "succeeded_requests": None},
        {"started_at": "now", "completed_at": "later"},
        {"output_file": "../x", "error_file": {}},
        {"status": "PAUSING"},
    ],
}


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> Flask:
    return make_host(providers=llm_provider.providers, database=tmp_path / "host.sqlite3")


def lie(provider: Simulator, change: Callable[[dict[str, Any]], object], on: str = "") -> None:
    """Change the batch objects of answers."""

    def rewrite(call: Call, response: Response) -> Response:
        if CALLS[call.provider] not in call.path or not call.method.startswith(on):
            return response
        answer = json.loads(response.data)
        for batch in answer.get("data", [answer]):
            change(batch)
        return Response(json.dumps(answer), response.status_code, mimetype="application/json")

    provider.rewrite = rewrite


def fields_of(batch: Mapping[str, Any]) -> set[str]:
    """Return the fields of which none has another type than OpenAI's."""
    read = Batch.from_dict(batch, batch["provider"]).to_dict()
    return {name for name in read if read[name] == batch[name]}


@pytest.mark.parametrize(
    ("provider", "odd"),
    [(provider, odd) for provider, many in ODD.items() for odd in many],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_bad_field_is_left_out(
    app: Flask, llm_provider: Simulator, provider: str, odd: dict[str, Any]
) -> None:
    """Regression: text where a number belongs made a 500 of creates and, for good, of an owner's list."""
    lie(llm_provider, lambda batch: batch.update(odd))
    ada = client_of(app, "ada")
    batch_id = create_batch(
        ada, model=f"{provider}:m", requests=requests(2, max_tokens=9), metadata={"a": "b"}
    )
    path = f"/v1/batches/{batch_id}"
    answers = [ada.get(path), ada.post(f"{path}/cancel")]
    lists = [ada.get("/v1/batches"), client_of(app, None).get(f"/v1/batches?provider={provider}")]
    assert [answer.status_code for answer in (*answers, *lists)] == [200] * 4
    shown = [answer.get_json() for answer in answers] + [answer.get_json()["data"][0] for answer in lists]
    for batch in shown:
        assert batch["id"] == batch_id
        assert fields_of(batch) | {"input_file_id"} == batch.keys() - {"owner"}
        assert batch["input_file_id"] == ""  # which no id can be
        assert batch["status"] in ("in_progress", "cancelling")


@pytest.mark.parametrize("provider", CALLS)
@pytest.mark.parametrize("bad", [None, 3, "", "a/../b", "%2e%2e", "x" * 600, "\ud800", "a\n"])
def test_a_bad_id_is_an_error_of_the_provider(
    app: Flask, llm_provider: Simulator, tmp_path: Path, provider: str, bad: Any
) -> None:
    """A create whose answer names no batch may have made one; a batch without an id is none."""
    lie(llm_provider, lambda batch: batch.update(id=bad))
    asked = {"model": f"{provider}:m", "requests": requests(1, max_tokens=9)}
    answer = client_of(app, "ada").post("/v1/batches", json=asked)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")
    assert answer.headers["X-Should-Retry"] == "false"
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database, database:
        assert database.execute("SELECT state FROM llm_batches_batch").fetchall() == [("unknown",)]
    assert client_of(app, None).get(f"/v1/batches?provider={provider}").status_code == 502


@pytest.mark.parametrize("provider", CALLS)
def test_another_batch_is_not_taken_for_it(app: Flask, llm_provider: Simulator, provider: str) -> None:
    """Regression: whatever a provider answered was shown and recorded as the batch that was asked for."""
    ada = client_of(app, "ada")
    batch_id = create_batch(ada, model=f"{provider}:m", requests=requests(1, max_tokens=9))
    lie(llm_provider, lambda batch: batch.update(id="other"))
    path = f"/v1/batches/{batch_id}"
    for answer in (ada.get(path), ada.post(f"{path}/cancel"), ada.get(f"{path}/results")):
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")
    assert [batch["id"] for batch in ada.get("/v1/batches").get_json()["data"]] == [batch_id]
    llm_provider.rewrite = None
    assert ada.get(path).get_json()["id"] == batch_id


@pytest.mark.parametrize("provider", CALLS)
@pytest.mark.parametrize("answer", ["[]", "3", '"x"', "null", '{"data": 3}', '{"data": [3]}', "{", "<p>"])
def test_an_answer_that_is_no_batch(app: Flask, llm_provider: Simulator, provider: str, answer: str) -> None:
    """Whatever else a provider answers is its error, on every call about batches."""
    ada = client_of(app, "ada")
    batch_id = create_batch(ada, model=f"{provider}:m", requests=requests(1, max_tokens=9))
    llm_provider.rewrite = lambda call, response: (
        Response(answer, mimetype="application/json") if CALLS[call.provider] in call.path else response
    )
    path = f"/v1/batches/{batch_id}"
    asked = {"model": f"{provider}:m", "requests": requests(1, max_tokens=9)}
    answers = [ada.get(path), ada.post(f"{path}/cancel"), ada.post("/v1/batches", json=asked)]
    answers.append(client_of(app, None).get(f"/v1/batches?provider={provider}"))
    assert [one.status_code for one in answers] == [502] * 4
    unknown, known = ada.get("/v1/batches").get_json()["data"]
    assert (unknown["status"], known["id"]) == ("validating", batch_id)


@pytest.mark.parametrize("has_more", [None, "yes", 1])
def test_a_full_page_without_has_more_has_more(app: Flask, llm_provider: Simulator, has_more: object) -> None:
    """A list that does not say whether it ends ends with a page that is not full."""

    def rewrite(call: Call, response: Response) -> Response:
        page = json.loads(response.data)
        if "has_more" in page:
            page["has_more"] = has_more
        return Response(json.dumps(page), mimetype="application/json")

    ada, admin = client_of(app, "ada"), client_of(app, None)
    for _ in range(2):
        create_batch(ada, 1)
    llm_provider.rewrite = rewrite
    for limit, more in ((2, True), (3, False)):
        page = admin.get(f"/v1/batches?provider=openai&limit={limit}").get_json()
        assert page["has_more"] is more
