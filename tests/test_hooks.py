"""The host may render errors in its own form, and receives signals."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from flask import Flask, Response, current_app, request
from flask.testing import FlaskClient
from werkzeug.wrappers import Response as WireResponse

from flask_llm_batches import LLMBatches, LLMBatchesError, Principal
from flask_llm_batches.signals import batch_finished, batch_submitted, usage_recorded
from flask_llm_batches.testing import Call, Simulator
from tests.conftest import client_of, create_batch
from tests.hosts import requests


def test_the_host_may_say_errors_its_way() -> None:
    """An error handler changes our answer, or gives its own, for errors of ours and of Flask's."""
    app = Flask(__name__)
    extension = LLMBatches(app)

    @extension.error_handler
    def say(error: LLMBatchesError, response: Response) -> Any:
        if error.status == 405:
            response.headers["X-Mine"] = error.code
            return response
        return {"oh": str(error)}, error.status

    assert app.test_client().get("/v1/batches").get_json() == {"oh": "Missing or invalid credentials"}
    app_client = app.test_client()
    extension.authenticator(lambda: None)
    assert app_client.get("/v1/batches").status_code == 401


def test_the_host_may_change_our_answer(app: Flask, ada: FlaskClient) -> None:
    """The error handler gets our answer, headers and all."""
    extension = LLMBatches()
    other = Flask(__name__)
    extension.init_app(other)

    @extension.error_handler
    def say(error: LLMBatchesError, response: Response) -> Response:
        response.headers["X-Code"] = error.code
        return response

    answer = other.test_client().get("/v1/batches")
    assert answer.headers["X-Code"] == "unauthenticated"
    assert answer.get_json()["error"]["code"] == "unauthenticated"


@pytest.fixture
def heard(app: Flask) -> Any:
    """What the signals of the app said, in order."""
    said: list[tuple[str, dict[str, Any]]] = []
    signals = {"submitted": batch_submitted, "finished": batch_finished, "usage": usage_recorded}
    receivers = []
    for name, signal in signals.items():

        def receive(sender: Flask, name: str = name, **payload: Any) -> None:
            assert sender is app
            said.append((name, payload))

        receivers.append(receive)
        signal.connect(receive, app)
    yield said
    for signal, receive in zip(signals.values(), receivers, strict=True):
        signal.disconnect(receive, app)


def test_signals_tell_what_happened(app: Flask, llm_provider: Simulator, heard: Any) -> None:
    """A submit, the end of a batch and each usage are told once, with the app as sender."""
    ada = client_of(app, "ada")
    batch_id = create_batch(ada, 2)
    ada.get(f"/v1/batches/{batch_id}")
    llm_provider.batches[0].finish()
    for _ in range(2):
        ada.get(f"/v1/batches/{batch_id}")
        ada.get(f"/v1/batches/{batch_id}/results").get_data()
    assert [name for name, _ in heard] == ["submitted", "usage", "finished", "usage"]
    submitted, created, finished, results = (payload for _, payload in heard)
    assert (submitted["batch"].id, submitted["owner"], submitted["requested_by"]) == (batch_id, "ada", "ada")
    assert (created["usage"]["event"], created["usage"]["requests"]) == ("create", 2)
    assert (finished["batch"].status, finished["owner"]) == ("completed", "ada")
    assert (results["usage"]["event"], results["usage"]["total_tokens"]) == ("results", 8)


def test_a_receiver_that_fails_costs_no_batch(
    app: Flask, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression: a receiver's error made a create a 500, which OpenAI's SDK repeats: three batches, paid."""
    ada = client_of(app, "ada")
    told = []

    def fail(_app: Flask, **_: Any) -> None:
        raise RuntimeError("the host's own")

    def listen(_app: Flask, **payload: Any) -> None:
        told.append(payload)

    with ExitStack() as stack:
        for signal in (batch_submitted, batch_finished, usage_recorded):
            for receiver in (fail, listen):
                stack.enter_context(signal.connected_to(receiver, app))
        batch_id = create_batch(ada, 2)
        llm_provider.batches[0].finish()
        assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] == "completed"
        assert len(ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]) == 2
    assert len(llm_provider.batches) == 1
    assert len(told) == 4
    assert caplog.text.count("RuntimeError: the host's own") == 4


def test_a_failed_create_is_told(app: Flask, llm_provider: Simulator, heard: Any) -> None:
    """A create that failed is told as usage, and as nothing else."""
    llm_provider.fail_next(500, on="POST /batches")
    client_of(app, "ada").post("/v1/batches", json={"model": "openai:m", "requests": requests(1)})
    ((name, payload),) = heard
    assert (name, payload["usage"]["event"], payload["usage"]["error"]) == (
        "usage",
        "create_failed",
        "provider_error",
    )


def test_a_batch_that_is_final_at_once_is_told(app: Flask, llm_provider: Simulator, heard: Any) -> None:
    """Regression: a batch that was final in the answer to its create was never said to be finished."""

    def finish(call: Call, response: WireResponse) -> WireResponse:
        if (call.method, call.path) != ("POST", "/batches"):
            return response
        batch = llm_provider.batches[-1]
        batch.finish()
        headers = {"Authorization": f"Bearer {llm_provider.api_key}"}
        return WireResponse(httpx.get(f"{llm_provider.base_url}/batches/{batch.id}", headers=headers).content)

    llm_provider.rewrite = finish
    ada = client_of(app, "ada")
    batch_id = create_batch(ada)
    assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] == "completed"
    assert [name for name, _ in heard] == ["submitted", "usage", "finished"]
    finished = heard[-1][1]
    assert (finished["batch"].id, finished["batch"].status, finished["owner"]) == (
        batch_id,
        "completed",
        "ada",
    )


def test_receivers_may_be_async(
    app: Flask, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression: an async receiver was called and never awaited. What it raises is logged."""
    told = []

    async def listen(_app: Flask, owner: str, **_: Any) -> None:
        await asyncio.sleep(0)
        told.append((owner, current_app.name))

    async def fail(_app: Flask, **_: Any) -> None:
        raise RuntimeError("the host's own")

    with batch_submitted.connected_to(listen, app), batch_submitted.connected_to(fail, app):
        create_batch(client_of(app, "ada"))
    assert told == [("ada", app.name)]
    assert caplog.text.count("RuntimeError: the host's own") == 1


def test_a_muted_signal_is_not_heard(app: Flask, heard: Any) -> None:
    """Regression: blinker's ``muted()`` did not keep our signals from their receivers."""
    with batch_submitted.muted():
        create_batch(client_of(app, "ada"))
    create_batch(client_of(app, "ada"))
    assert [name for name, _ in heard] == ["usage", "submitted", "usage"]


def test_authenticators_and_error_handlers_may_be_async(llm_provider: Simulator) -> None:
    """Regression: async ones were called and never awaited, and every call was a 500."""
    app = Flask(__name__)
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    extension = LLMBatches(app)

    @extension.authenticator
    async def principal() -> Principal | None:
        await asyncio.sleep(0)
        user = request.headers.get("X-User")
        return Principal(user) if user else None

    @extension.error_handler
    async def say(error: LLMBatchesError, response: Response) -> Response:
        await asyncio.sleep(0)
        response.headers["X-Mine"] = f"{error.code} at {request.path}"
        return response

    assert create_batch(client_of(app, "ada"))
    refused = app.test_client().get("/v1/batches")
    assert (refused.status_code, refused.headers["X-Mine"]) == (401, "unauthenticated at /v1/batches")
