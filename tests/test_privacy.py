"""No cache keeps an answer, and names of callers forge no log line, formula or table."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient

from flask_llm_batches import LLMBatches, Principal
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "", 200),
        ("POST", "", 422),
        ("GET", "/usage", 200),
        ("GET", "/{id}", 200),
        ("GET", "/{id}/results", 200),
        ("POST", "/{id}/cancel", 400),
        ("GET", "/none?provider=openai", 404),
        ("PUT", "", 405),
        ("OPTIONS", "", 200),
    ],
)
def test_no_answer_is_kept_on_the_way(
    ada: FlaskClient, llm_provider: Simulator, method: str, path: str, status: int
) -> None:
    """Regression: an unconfigured Varnish answered callers with other keys from its cache."""
    batch_id = create_batch(ada)
    llm_provider.batches[0].finish()
    for client, expected in ((ada, status), (ada.application.test_client(), 401)):
        answer = client.open("/v1/batches" + path.format(id=batch_id), method=method)
        assert answer.status_code in (expected, status)
        assert answer.headers["Cache-Control"] == "no-store"
        assert {"authorization", "x-api-key", "otari-key", "cookie"} <= set(answer.vary.as_set())
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_errors_that_nobody_foresaw_are_not_kept_either(app: Flask, ada: FlaskClient) -> None:
    """A 500, and what the host's own error handler returns, have the headers, too."""
    app.config["PROPAGATE_EXCEPTIONS"] = False
    client = app.test_client()
    assert client.get("/v1/batches", headers={"X-User": "a" * 256}).status_code == 500
    other = Flask("other")
    extension = LLMBatches(other)
    extension.error_handler(
        lambda error, _: ({"mine": str(error)}, error.status, {"Cache-Control": "public"})
    )
    for answer in (
        client.get("/v1/batches", headers={"X-User": "a" * 256}),
        other.test_client().get("/v1/batches"),
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_openapi_document_may_be_kept(app: Flask) -> None:
    """The document is everybody's; an error in its place is not."""
    client = app.test_client()
    document = client.get("/v1/batches/openapi.json")
    assert document.headers["Cache-Control"] == "public, max-age=300"
    assert document.headers["X-Content-Type-Options"] == "nosniff"
    assert client.post("/v1/batches/openapi.json").headers["Cache-Control"] == "no-store"


def test_a_form_obeys_the_hosts_own_limit(app: Flask) -> None:
    """Regression: a form was read up to our limit, because an authenticator looked in it for a CSRF token."""
    host = Flask("host")
    host.config["MAX_CONTENT_LENGTH"] = 1000
    extension = LLMBatches(host)

    @extension.authenticator
    def principal() -> Principal | None:
        return Principal("ada") if request.form.get("token") else None

    client = host.test_client()
    file = {"file": (io.BytesIO(b"x" * 10_000), "large.bin")}
    answer = client.post("/v1/batches", data=file, headers={"X-API-Key": "wrong"})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (413, "too_large")
    body = {"requests": requests(20), "model": "openai:m"}
    assert client.post("/v1/batches", json=body, headers={"X-API-Key": "wrong"}).status_code == 401


@pytest.mark.parametrize("character", ["\n", "\r", "\x00", "\x1b", "\x85"])
@pytest.mark.parametrize("field", ["model", "user", "completion_window"])
def test_control_characters_are_refused(
    make_host: MakeHost, llm_provider: Simulator, field: str, character: str
) -> None:
    """Regression: a line feed in a name forged a line of the log, and as ``user`` it was a 500."""
    admin = client_of(make_host(providers=llm_provider.providers), None)
    body: dict[str, Any] = {
        "model": "openai:gpt",
        "user": "ada",
        "completion_window": "24h",
        "requests": requests(1),
    }
    answer = admin.post("/v1/batches", json={**body, field: f"{body[field]}{character}x"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.get_json()["error"]["param"] == field
    assert not llm_provider.calls


@pytest.mark.parametrize("name", ["=1+1", "\uff1d1+1", "a;=1+1", 'a","=1+1', "@x", "\uff0d1", "+1"])
def test_names_are_no_formulas(ada: FlaskClient, name: str) -> None:
    """Regression: where ``;`` separates cells, a part of a name was a formula; so was a full-width ``=``."""
    create_batch(ada, 1, model=f"openai:{name}")
    text = ada.get("/v1/batches/usage?group_by=model", headers={"Accept": "text/csv"}).text
    heading, line = text.splitlines()
    assert all(cell.startswith('"') and cell.endswith('"') for cell in heading.split(","))
    assert line.startswith('"')
    assert (line[1] == "'") == (name[0] in "=+-@\uff1d\uff0b\uff0d\uff20")
    ((cell, *figures),) = csv.reader([line])
    assert cell.removeprefix("'") == name
    assert len(figures) == len(heading.split(",")) - 1
