"""A provider cannot redirect calls, keys or uploads to another host, and sets no cookies."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from flask import Flask
from werkzeug.wrappers import Response

from flask_llm_batches.testing import Call, Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests
from tests.others import Others

CALLS = {
    "openai": {"upload": "POST /files", "create": "POST /batches", "retrieve": "GET /batches/"},
    "anthropic": {"create": "POST /messages/batches", "retrieve": "GET /messages/batches/"},
    "mistral": {"upload": "POST /files", "create": "POST /batch/jobs", "retrieve": "GET /batch/jobs/"},
}


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> Flask:
    return make_host(providers=llm_provider.providers, database=tmp_path / "host.sqlite3")


def elsewhere(url: str) -> str:
    """Return an address that leads to the same server, and is another host all the same."""
    return url.replace("127.0.0.1", "localhost")


def redirect(provider: Simulator, on: str, status: int, to: str | None = None) -> None:
    """Redirect calls: by default to the same server under another host name."""

    def rewrite(call: Call, response: Response) -> Response:
        if not f"{call.method} {call.path}".startswith(on) or call.target == to:
            return response
        host = elsewhere(f"http://127.0.0.1:{call.headers['Host'].partition(':')[2]}")
        return Response(status=status, headers={"Location": to or host + call.target})

    provider.rewrite = rewrite


def strangers(provider: Simulator) -> list[Call]:
    return [call for call in provider.calls if "localhost" in call.headers["Host"]]


@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize(("provider", "call"), [(name, call) for name in CALLS for call in CALLS[name]])
def test_calls_stay_where_they_are_sent(
    app: Flask, llm_provider: Simulator, provider: str, call: str, status: int
) -> None:
    """Regression: keys and uploads followed redirects to other hosts; now nothing goes there."""
    ada = client_of(app, "ada")
    asked: dict[str, Any] = {"model": f"{provider}:m", "requests": requests(1, max_tokens=9)}
    if call == "retrieve":
        batch_id = create_batch(ada, **asked)
    redirect(llm_provider, CALLS[provider][call], status)
    answer = ada.get(f"/v1/batches/{batch_id}") if call == "retrieve" else ada.post("/v1/batches", json=asked)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")
    assert not strangers(llm_provider)


@pytest.mark.parametrize("provider", CALLS)
def test_a_create_is_never_redirected(
    app: Flask, llm_provider: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture, provider: str
) -> None:
    """Regression: a redirect of a create to itself sent it 21 times, and one to a 404 made it a refusal."""
    on = CALLS[provider]["create"]
    base = llm_provider.providers[provider]["api_base"]
    redirect(llm_provider, on, 307, to=f"{base}/nowhere")
    asked = {"model": f"{provider}:m", "requests": requests(1, max_tokens=9)}
    answer = client_of(app, "ada").post("/v1/batches", json=asked)
    assert (answer.status_code, answer.headers["X-Should-Retry"]) == (502, "false")
    assert len(llm_provider.calls_to(on)) == 1
    assert llm_provider.calls[-1] == llm_provider.calls_to(on)[0]
    assert "RedirectRefused" in caplog.text
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database, database:
        assert database.execute("SELECT state FROM llm_batches_batch").fetchall() == [("unknown",)]


def test_a_question_may_be_redirected_within_its_origin(app: Flask, llm_provider: Simulator) -> None:
    """A gateway that tidies up paths goes on working."""
    ada = client_of(app, "ada")
    batch_id = create_batch(ada)
    redirect(llm_provider, "GET /batches/", 308, to=f"/v1/batches/{batch_id}?tidy=1")
    assert ada.get(f"/v1/batches/{batch_id}").get_json()["id"] == batch_id
    assert llm_provider.calls[-1].target.endswith("?tidy=1")


@pytest.mark.parametrize("provider", CALLS)
def test_cookies_are_not_kept(app: Flask, llm_provider: Simulator, provider: str) -> None:
    """Regression: cookies of a provider were sent to it with every call, until it refused their size."""

    def rewrite(_: Call, response: Response) -> Response:
        response.set_cookie("big", "x" * 2000)
        return response

    llm_provider.rewrite = rewrite
    ada = client_of(app, "ada")
    batch_id = create_batch(ada, model=f"{provider}:m", requests=requests(1, max_tokens=9))
    assert ada.get(f"/v1/batches/{batch_id}").status_code == 200
    assert len(llm_provider.calls) > 1
    assert not [call for call in llm_provider.calls if "Cookie" in call.headers]


@pytest.mark.parametrize(("provider", "package"), [("gemini", "google.genai"), ("together", "together")])
def test_other_sdks_stay_and_keep_no_cookies(
    make_host: MakeHost, others: Others, tmp_path: Path, provider: str, package: str
) -> None:
    """Calls through any-llm alone are held to the same."""
    pytest.importorskip(package)
    entry = {"api_key": "k", "api_base": others.url}
    ada = client_of(make_host(providers={provider: entry}, database=tmp_path / "host.sqlite3"), "ada")
    batch_id = create_batch(ada, model=f"{provider}:m")
    others.headers["Set-Cookie"] = "big=x"
    others.redirect = elsewhere(f"{others.url}/batches/b1")
    others.got.clear()
    for _ in range(2):
        assert ada.get(f"/v1/batches/{batch_id}").status_code == 502
    assert len(others.got) == 2
    assert not [headers for headers in others.got if "localhost" in headers["Host"] or "Cookie" in headers]


def test_a_client_of_the_hosts_is_held_to_it_too(make_host: MakeHost, llm_provider: Simulator) -> None:
    """An ``http_client`` in ``client_args`` keeps its own cookies and hooks, and goes nowhere else."""
    seen: list[str] = []

    async def hear(request: Any) -> None:
        seen.append(request.url.host)

    client = openai.DefaultAsyncHttpxClient(cookies={"own": "1"}, event_hooks={"request": [hear]})
    entry = {**llm_provider.settings, "client_args": {"http_client": client}}
    ada = client_of(make_host(providers={"openai": entry}), "ada")
    batch_id = create_batch(ada)
    redirect(llm_provider, "GET /batches/", 307)
    assert ada.get(f"/v1/batches/{batch_id}").status_code == 502
    assert not strangers(llm_provider)
    assert "127.0.0.1" in seen
    assert {call.headers["Cookie"] for call in llm_provider.calls} == {"own=1"}
