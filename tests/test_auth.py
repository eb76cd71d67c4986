"""The host's authenticator, the master key and built-in keys decide who may call."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, abort

from flask_llm_batches import LLMBatches
from flask_llm_batches.testing import Simulator
from tests.hosts import MASTER_KEY

CALLS = [
    ("GET", ""),
    ("POST", ""),
    ("GET", "/b1"),
    ("POST", "/b1/cancel"),
    ("GET", "/b1/results"),
    ("DELETE", "/b1"),
    ("GET", "/../x"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": "wrong"},
        {"X-API-Key": ""},
        {"Authorization": f"Basic {MASTER_KEY}"},
        {"Authorization": MASTER_KEY},
        {"Authorization": "Bearer "},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {MASTER_KEY}"},
    ],
)
def test_nobody_is_turned_away_first(
    app: Flask, llm_provider: Simulator, method: str, path: str, headers: dict[str, str]
) -> None:
    """Missing and wrong credentials are a 401 before any other check, even with the body wrong."""
    answer = app.test_client().open(f"/v1/batches{path}", method=method, headers=headers, data=b"{")
    assert answer.status_code == 401
    assert answer.get_json()["error"]["code"] == "unauthenticated"
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert not llm_provider.calls


@pytest.mark.parametrize(
    "headers",
    [
        {"Otari-Key": f"Bearer {MASTER_KEY}", "X-API-Key": "wrong"},
        {"Otari-Key": MASTER_KEY},
        {"AnyLLM-Key": f"Bearer {MASTER_KEY}", "Authorization": "Bearer wrong"},
        {"X-AnyLLM-Key": MASTER_KEY},
        {"X-API-Key": MASTER_KEY},
        {"Authorization": f"bearer {MASTER_KEY}"},
    ],
)
def test_the_master_key_is_an_admin(app: Flask, headers: dict[str, str]) -> None:
    """The master key is taken from the headers of the known clients; the first present decides."""
    answer = app.test_client().get("/v1/batches?provider=openai", headers=headers)
    assert answer.status_code == 200


def test_without_an_authenticator_nobody_comes_in() -> None:
    """An app that says nothing about its callers lets nobody in."""
    app = Flask(__name__)
    LLMBatches(app)
    assert app.test_client().get("/v1/batches", headers={"X-API-Key": "None"}).status_code == 401


def test_a_hosts_abort_is_said_our_way() -> None:
    """An authenticator may abort; the answer keeps its status and has our form."""
    app = Flask(__name__)
    extension = LLMBatches(app)

    @extension.authenticator
    def principal() -> None:
        abort(403, "Your account is closed")

    answer = app.test_client().get("/v1/batches")
    assert answer.status_code == 403
    assert answer.get_json()["detail"] == "Your account is closed"


def test_an_authenticator_that_returns_something_else_is_a_bug() -> None:
    """An authenticator that returns no Principal lets nobody in, and the operator learns why."""
    app = Flask(__name__)
    extension = LLMBatches(app)
    user: Any = "ada"
    extension.authenticator(lambda: user)
    answer = app.test_client().get("/v1/batches")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (500, "internal_error")
    app.testing = True
    with pytest.raises(TypeError, match="must return a Principal"):
        app.test_client().get("/v1/batches")


def test_a_preflight_needs_no_credentials(app: Flask) -> None:
    """A browser asks without credentials what it may do."""
    answer = app.test_client().options("/v1/batches")
    assert (answer.status_code, answer.headers["Allow"]) == (200, "GET, POST, HEAD, OPTIONS")
