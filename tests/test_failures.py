"""Every failure of a provider has the right answer on every endpoint, without a secret."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_llm_batches import current_llm_batches
from flask_llm_batches.config import Settings
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.providers.failures import REDACTED, Redactor
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.faults import left_in_cycles
from tests.hosts import MASTER_KEY, requests
from tests.others import Others

PLANTED = "sk-planted-8c1f0e7d6b5a49382716"
CONFIGURED = "just some words of ours"

ENDPOINTS = {
    "openai": {
        "upload": "POST /files",
        "create": "POST /batches",
        "retrieve": "GET /batches/",
        "cancel": "POST /batches/",
        "list": "GET /batches",
        "results": "GET /batches/",
        "download": "GET /files/",
    },
    "anthropic": {
        "create": "POST /messages/batches",
        "retrieve": "GET /messages/batches/",
        "list": "GET /messages/batches",
        "download": "GET /messages/batches/{batch_id}/results",
    },
    "mistral": {
        "upload": "POST /files",
        "create": "POST /batch/jobs",
        "retrieve": "GET /batch/jobs/",
        "list": "GET /batch/jobs",
        "download": "GET /files/",
    },
}


@pytest.fixture
def make_failing(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> MakeHost:
    """Make apps with a secret in their settings that share a database."""
    llm_provider.api_key = CONFIGURED
    extra = {"client_args": {"default_headers": {"X-Extra": PLANTED}}}
    providers: dict[str, Any] = dict(llm_provider.providers)
    providers["openai"] |= extra
    providers["anthropic"] |= extra
    return partial(make_host, database=tmp_path / "host.sqlite3", providers=providers)


@pytest.fixture
def failing(make_failing: MakeHost) -> Flask:
    return make_failing()


def call(app: Flask, endpoint: str, batch_id: str, provider: str = "openai") -> TestResponse:
    """Call one of the endpoints as its owner, or as an admin for the provider's list."""
    ada, path = client_of(app, "ada"), f"/v1/batches/{batch_id}"
    if endpoint in ("upload", "create"):
        asked = {"model": f"{provider}:m", "requests": requests(1, max_tokens=9)}
        return ada.post("/v1/batches", json=asked)
    if endpoint == "cancel":
        return ada.post(f"{path}/cancel")
    if endpoint == "list":
        return client_of(app, None).get(f"/v1/batches?provider={provider}")
    return ada.get(path if endpoint == "retrieve" else f"{path}/results")


FAULTS = {
    "400": (400, "provider_rejected"),
    "401": (502, "provider_error"),
    "403": (502, "provider_error"),
    "404": (404, "not_found"),
    "409": (400, "provider_rejected"),
    "413": (400, "provider_rejected"),
    "422": (400, "provider_rejected"),
    "429": (429, "rate_limited"),
    "500": (502, "provider_error"),
    "503": (502, "provider_error"),
    "hang": (504, "provider_timeout"),
    "drop": (502, "provider_error"),
    "html": (502, "provider_error"),
    "other json": (502, "provider_error"),
    "broken json": (502, "provider_error"),
}


# What a 404 is where no batch of the caller's is asked for.
NOT_FOUND = dict.fromkeys(("upload", "create", "list"), (502, "provider_error")) | {
    "download": (410, "results_gone")
}

# What depends on a provider's adapter and SDK; the rest is the same for all.
ELSEWHERE = ("400", "401", "404", "429", "500", "hang", "drop", "html", "other json")


@pytest.mark.parametrize("provider", ENDPOINTS)
@pytest.mark.parametrize("status", [200, 500])
def test_a_deep_answer_is_one_failure(
    make_failing: MakeHost, llm_provider: Simulator, provider: str, status: int
) -> None:
    """Regression: the answer to a failed call was a 500 if the body of the error nested deep."""
    failing = make_failing()
    batch_id = create_batch(
        client_of(failing, "ada"), model=f"{provider}:m", requests=requests(1, max_tokens=9)
    )
    on = ENDPOINTS[provider]["retrieve"].format(batch_id=batch_id)
    headers = {"Content-Type": "application/json"}
    llm_provider.fail_next(status, on=on, body='{"error":' * 5000, headers=headers)
    answer = call(failing, "retrieve", batch_id, provider)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")


@pytest.mark.parametrize(
    ("provider", "endpoint", "fault"),
    [
        pytest.param(
            provider, endpoint, fault, marks=() if provider == "openai" else pytest.mark.slow
        )  # there are many
        for provider, endpoints in ENDPOINTS.items()
        for endpoint in endpoints
        for fault in (FAULTS if provider == "openai" else ELSEWHERE)
    ],
)
def test_every_failure_has_its_answer(
    make_failing: MakeHost,
    llm_provider: Simulator,
    caplog: pytest.LogCaptureFixture,
    spool_dir: Path,
    tmp_path: Path,
    provider: str,
    endpoint: str,
    fault: str,
) -> None:
    """Each fault gives the documented status on each endpoint, one POST at the most, and no secret."""
    batch_id = create_batch(
        client_of(make_failing(), "ada"),
        model=f"{provider}:m",
        requests=requests(3, max_tokens=9),
        metadata={"a": "b"},
    )
    failing = make_failing(timeout=0.3, transfer_timeout=0.3) if fault == "hang" else make_failing()
    if endpoint in ("results", "download"):
        llm_provider.batches[0].finish()
    caplog.set_level(logging.DEBUG)
    llm_provider.calls.clear()
    on = ENDPOINTS[provider][endpoint].format(batch_id=batch_id)
    message = f"rejected: {PLANTED} and {CONFIGURED} and {MASTER_KEY}"
    if fault == "hang":
        llm_provider.delay_next(30, on=on)
    elif fault == "drop":
        llm_provider.drop_next(on=on)
    elif fault.isdigit():
        llm_provider.fail_next(int(fault), on=on, message=message, headers={"Retry-After": "17"})
    else:
        body = {"html": f"<p>{message}", "other json": '{"hello": 1}', "broken json": '{"id": "'}[fault]
        kind = "text/html" if fault == "html" else "application/json"
        llm_provider.fail_next(200, on=on, body=body, headers={"Content-Type": kind})
    answer = call(failing, endpoint, batch_id, provider)

    elsewhere = {"404": NOT_FOUND, "409": {"create": (502, "provider_error")}}.get(fault, {})
    status, code = elsewhere.get(endpoint, FAULTS[fault])
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (status, code), answer.text
    if status == 502:
        assert answer.get_json()["detail"] == "LLM provider error"
    if code == "provider_rejected":
        assert answer.get_json()["detail"] == f"rejected: {REDACTED} and {REDACTED} and {REDACTED}"
    if code == "rate_limited":
        assert answer.headers["Retry-After"] == "17"
    if endpoint in ("upload", "create"):
        assert (answer.headers.get("X-Should-Retry") == "false") == (status in (502, 504))
    posts = [made for made in llm_provider.calls if made.method == "POST"]
    uploads = "upload" in ENDPOINTS[provider]
    assert len(posts) == {"upload": 1, "create": 1 + uploads, "cancel": 1}.get(endpoint, 0)
    assert not list(spool_dir.iterdir())

    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database:
        stored = "\n".join(database.iterdump())
    assert "create" in stored
    for secret in (PLANTED, CONFIGURED, MASTER_KEY):
        for place in (answer.text, str(answer.headers), caplog.text, stored):
            assert secret not in place


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        ("upload", "failed"),
        ("refused", "failed"),
        ("401", "failed"),
        ("dropped", "unknown"),
        ("500", "unknown"),
    ],
)
def test_a_failed_create_is_recorded(
    failing: Flask, llm_provider: Simulator, tmp_path: Path, fault: str, state: str
) -> None:
    """The record says whether there is no batch or there may be one, which is listed; the usage has both."""
    if fault == "upload":
        llm_provider.drop_next(on="POST /files")
    elif fault == "dropped":
        llm_provider.drop_next(on="POST /batches")
    else:
        llm_provider.fail_next({"refused": 400, "401": 401}.get(fault, 500), on="POST /batches")
    call(failing, "create", "")
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database:
        assert database.execute("SELECT state, batch_id, owner FROM llm_batches_batch").fetchall() == [
            (state, None, "ada")
        ]
        ((event, error, owner),) = database.execute(
            "SELECT event, error, owner FROM llm_batches_usage"
        ).fetchall()
    assert (event, owner) == ("create_failed", "ada")
    assert error == ("provider_rejected" if fault == "refused" else "provider_error")
    listed = client_of(failing, "ada").get("/v1/batches").get_json()["data"]
    assert [batch["status"] for batch in listed] == (["validating"] if state == "unknown" else [])


@pytest.mark.parametrize("fault", ["upload", "refused", "500", "dropped"])
def test_a_failed_create_leaves_no_reference_cycle(
    failing: Flask, llm_provider: Simulator, fault: str
) -> None:
    """Regression: the body of the request was kept until the garbage collector ran."""

    def fail() -> None:
        if fault == "dropped":
            llm_provider.drop_next(on="POST /batches")
        else:
            on = "POST /files" if fault == "upload" else "POST /batches"
            llm_provider.fail_next(400 if fault == "refused" else 500, on=on)
        with failing.app_context(), suppress(LLMBatchesError):
            current_llm_batches.create(owner="ada", model="openai:m", requests=requests(1))
            pytest.fail("no error")

    # The frames that have the requests count. On Python 3.12, those of anyio are in a cycle of their own.
    assert [one for one in left_in_cycles(fail) if "/core/" in str(one)] == []


REFUSALS = (400, 401, 403, 404, 413, 415, 422, 429)
NO_REFUSALS = (300, 402, 405, 406, 408, 409, 410, 412, 418, 425, 431, 451, 499, 500, 503, 504, 529)


@pytest.mark.parametrize("provider", ENDPOINTS)
def test_only_a_refusal_says_that_there_is_no_batch(
    make_failing: MakeHost, llm_provider: Simulator, tmp_path: Path, provider: str
) -> None:
    """Regression: a 408 or 409 freed the key. After all but certain answers nobody knows, nor tries again."""
    app = make_failing()
    for status in (*REFUSALS, *NO_REFUSALS):
        llm_provider.fail_next(status, on=ENDPOINTS[provider]["create"])
        answer = call(app, "create", "", provider)
        if status not in REFUSALS:
            assert answer.status_code in (502, 504), status
            assert answer.headers["X-Should-Retry"] == "false", status
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database, database:
        states = [state for (state,) in database.execute("SELECT state FROM llm_batches_batch ORDER BY id")]
    assert states == ["failed"] * len(REFUSALS) + ["unknown"] * len(NO_REFUSALS)


def test_only_a_refusal_is_one_through_any_llm(make_host: MakeHost, others: Others, tmp_path: Path) -> None:
    """A key is freed by the status of an answer only, not by any-llm's guess from its words."""
    pytest.importorskip("together")
    entry = {"api_key": "k", "api_base": others.url}
    app = make_host(providers={"together": entry}, database=tmp_path / "host.sqlite3")
    others.create = (409, {"error": {"message": "invalid: permission denied, too many requests"}})
    answer = call(app, "create", "", "together")
    assert (answer.status_code, answer.headers["X-Should-Retry"]) == (502, "false")
    others.create = (403, {})
    call(app, "create", "", "together")
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database, database:
        states = database.execute("SELECT state FROM llm_batches_batch ORDER BY id").fetchall()
    assert states == [("unknown",), ("failed",)]


def test_no_answer_after_a_submit_invites_a_retry(app: Flask, llm_provider: Simulator) -> None:
    """Regression: after an unexpected failure of a create, clients created the batch again."""

    @app.after_request
    def fail(response: Response) -> Response:
        if response.status_code == 200:
            raise RuntimeError("unexpected")
        return response

    app.config["PROPAGATE_EXCEPTIONS"] = False
    answer = call(app, "create", "")
    assert (answer.status_code, answer.headers["X-Should-Retry"]) == (500, "false")
    assert len(llm_provider.batches) == 1


@pytest.mark.parametrize("entry", [{}, {"provider": "openai"}])
def test_a_missing_key_is_the_operators_business(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture, entry: dict[str, str]
) -> None:
    """Without a key the answer is a 503 that tells nothing; the log tells what to do."""
    app = make_host(providers={"openai": entry})
    answer = client_of(app, "ada").post("/v1/batches", json={"model": "openai:m", "requests": requests(1)})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "provider_not_configured")
    assert answer.get_json()["detail"].endswith("cannot be called from this server: it has no key")
    assert "OPENAI_API_KEY" in caplog.text


@pytest.mark.skipif(find_spec("boto3") is not None, reason="the package is there")
def test_a_missing_package_is_the_operators_business(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a provider's package the answer is a 503; the log says what to install."""
    app = make_host(providers={"bedrock": {"api_key": "k"}})
    answer = client_of(app, None).get("/v1/batches?provider=bedrock")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "provider_not_configured")
    assert "pip install" in caplog.text
    assert answer.get_json()["detail"].endswith("from this server: its package is not installed")


def test_reasons_of_a_failed_batch_are_redacted(ada: FlaskClient, llm_provider: Simulator) -> None:
    """What a provider says of a failed batch is shown without keys."""
    batch_id = create_batch(ada)
    llm_provider.batches[0].fail(f"key {PLANTED} is over its limit")
    for path in ("", "/results"):
        text = ada.get(f"/v1/batches/{batch_id}{path}").text
        assert f"key {REDACTED} is over its limit" in text


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("key sk-proj-abc123DEF456 is bad", f"key {REDACTED} is bad"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {REDACTED}"),
        ("AIzaSyA1234567890abcdefghij", REDACTED),
        ("token eyJhbGciOi.eyJzdWIiOi.sflKxw", f"token {REDACTED}"),
        ("0123456789abcdef0123456789abcdef", REDACTED),
        ("batch_68f0a1b2c3d4e5f60718293a4b5c6d7e", "batch_68f0a1b2c3d4e5f60718293a4b5c6d7e"),
        ("2c1f8f1e-8a51-4c3f-9b1f-0a1b2c3d4e5f", "2c1f8f1e-8a51-4c3f-9b1f-0a1b2c3d4e5f"),
        ("No such File object: file-abc", "No such File object: file-abc"),
        ("the risk-averse desk-top", "the risk-averse desk-top"),
        ("our words here", f"our {REDACTED} here"),
        ("from the environment", f"from the {REDACTED}"),
    ],
)
def test_keys_are_redacted_and_ids_are_not(monkeypatch: pytest.MonkeyPatch, text: str, redacted: str) -> None:
    """Configured values and whatever is shaped like a key go; ids that help stay."""
    settings = Settings.from_config(
        {
            "LLM_BATCHES_MASTER_KEY": "our-key",
            "LLM_BATCHES_PROVIDERS": {
                "openai": {"api_key": None, "client_args": {"nested": [{"deep": "words "}]}}
            },
        }
    )
    monkeypatch.setenv("SOME_KEY", "environment")
    redact = Redactor(settings)
    redact.learn("SOME_KEY")
    assert redact(text).replace(REDACTED + "here", REDACTED + " here") == redacted


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_wrong_argument_in_the_settings_is_not_the_callers_fault(
    make_host: MakeHost, llm_provider: Simulator, provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression: it was a 400 whose text was the ``TypeError`` of the SDK."""
    entry = {**llm_provider.providers[provider], "client_args": {"nonsense": 1}}
    ada = client_of(make_host(providers={provider: entry}), "ada")
    answer = ada.post("/v1/batches", json={"model": f"{provider}:m", "requests": requests(1, max_tokens=9)})
    assert (answer.status_code, answer.get_json()["detail"]) == (502, "LLM provider error")
    assert "nonsense" in caplog.text
    assert ada.get("/v1/batches").get_json()["data"] == []
