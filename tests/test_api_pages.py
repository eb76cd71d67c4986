"""The interactive page of the OpenAPI document."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, session
from flask_wtf.csrf import CSRFProtect
from playwright.sync_api import Locator, Page, expect
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_llm_batches import LLMBatches, Principal
from flask_llm_batches.testing import Simulator
from flask_llm_batches.web.docs import ASSETS
from tests.browser import chromium, complaints
from tests.conftest import MakeHost
from tests.hosts import requests
from tests.servers import gunicorn, serving

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}


def test_the_page_is_everybodys(app: Flask) -> None:
    """The page needs no credentials, allows no inline script, and is kept by no cache."""
    client = app.test_client()
    for path in ("/v1/batches/docs", "/v1/batches/docs/"):
        answer = client.get(path)
        assert (answer.status_code, answer.mimetype) == (200, "text/html")
        policy = dict(
            part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";")
        )
        assert policy == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cache-Control"] == "no-store"
        assert 'data-csrf-token=""' in answer.text
        assert "Set-Cookie" not in answer.headers
    assert client.head("/v1/batches/docs").status_code == 200


def test_the_page_loads_what_is_served(make_host: MakeHost) -> None:
    """Whatever the prefix is and what a proxy puts before it, the page names assets that are there."""
    client = make_host(url_prefix=["/a", "/b/c"]).test_client()
    for prefix in ("/a", "/b/c"):
        page = client.get(f"{prefix}/docs", environ_overrides={"SCRIPT_NAME": "/base"}).text
        named = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(named) == len(ASSETS)
        for address in named:
            assert address.startswith(f"/base{prefix}/docs/")
            answer = client.get(address.removeprefix("/base"))
            name = address.rpartition("/")[2].partition("?")[0]
            assert (answer.status_code, answer.mimetype) == (200, ASSETS[name])
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
            assert "Vary" not in answer.headers
            known = {"If-None-Match": answer.headers["ETag"]}
            again = client.get(address.removeprefix("/base"), headers=known)
            assert (again.status_code, again.data) == (304, b"")
            assert again.headers["Cache-Control"] == answer.headers["Cache-Control"]


def test_a_prefix_is_no_markup(app: Flask) -> None:
    """What a header of a proxy says does not become part of the page's markup."""
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
    headers = {"X-Forwarded-Prefix": '/"><script>alert(1)</script>'}
    assert "<script>alert" not in app.test_client().get("/v1/batches/docs", headers=headers).text


@pytest.mark.parametrize(
    "path",
    [
        "swagger-ui.js",
        "index.html",
        "VERSION",
        "../docs.py",
        "..%2fdocs.py",
        "%2e%2e/docs.py",
        "docs.js/../docs.py",
        "docs.js%00",
        "/etc/passwd",
        "..\\docs.py",
    ],
)
def test_nothing_else_is_served(app: Flask, path: str) -> None:
    """Any other name is the id of a batch, for which credentials are needed."""
    assert app.test_client().get(f"/v1/batches/docs/{path}").status_code == 401
    headers = {"X-User": "ada"}
    answer = app.test_client().get(f"/v1/batches/docs/{path}?provider=openai", headers=headers)
    assert answer.status_code == 404


@pytest.mark.parametrize("path", ["docs", "docs/", "docs/docs.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_page_is_only_read(app: Flask, path: str, method: str) -> None:
    """Other methods need credentials, and then they are a 405 of ours."""
    client = app.test_client()
    assert client.open(f"/v1/batches/{path}", method=method).status_code == 401
    answer = client.open(f"/v1/batches/{path}", method=method, headers={"X-User": "ada"})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert client.options(f"/v1/batches/{path}").headers["Allow"] == "GET, HEAD, OPTIONS"


def test_calls_about_a_batch_go_on(app: Flask) -> None:
    """The page shadows no call about a batch, not even about one with that id."""
    headers = {"X-User": "ada"}
    for method, path in (("GET", "docs/results"), ("POST", "docs/cancel"), ("POST", "docs/retry")):
        url = f"/v1/batches/{path}?provider=openai"
        answer = app.test_client().open(url, method=method, headers=headers)
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "not_found")


def test_without_the_package(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flask-swagger-ui the page is a 501 that names the extra, and all else works."""
    monkeypatch.setitem(sys.modules, "flask_swagger_ui", None)
    client = app.test_client()
    for path in ("/v1/batches/docs", "/v1/batches/docs/swagger-ui.css"):
        answer = client.get(path)
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (501, "docs_not_installed")
        assert "pip install 'flask-llm-batches[swagger]'" in answer.get_json()["detail"]
        assert answer.headers["Cache-Control"] == "no-store"
    assert client.get("/v1/batches/openapi.json").status_code == 200


def test_a_csrf_protection_without_a_session(app: Flask) -> None:
    """The page is shown where Flask-WTF has no key to make tokens with."""
    CSRFProtect(app)
    answer = app.test_client().get("/v1/batches/docs")
    assert (answer.status_code, 'data-csrf-token=""' in answer.text) == (200, True)


def authorize(page: Page, key: str) -> None:
    page.get_by_role("button", name="Authorize").click()
    page.get_by_label("auth-bearer-value").fill(key)
    page.locator(".auth-container", has_text="bearer").get_by_label("Apply credentials").click()
    page.locator(".close-modal").click()


def try_out(page: Page, operation: str, body: Any = None, **fields: str) -> Locator:
    """Open an operation, fill in its body and fields, and execute it; return where its answer appears."""
    block = page.locator(f"#operations-Batches-{operation}")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    for name, value in fields.items():
        block.locator(f'[data-param-name="{name}"] input').fill(value)
    if body is not None:
        block.locator("textarea").fill(json.dumps(body))
    block.get_by_role("button", name="Execute").click()
    return block.locator(".live-responses-table .response")


@pytest.mark.slow
def test_a_key_of_ours_in_a_browser(tmp_path: Path) -> None:
    """With a built-in key, the calls work in the page of each prefix. It asks no other server."""
    with (
        Simulator() as simulator,
        gunicorn(simulator, tmp_path, "--threads=4") as server,
        chromium() as browser,
    ):
        page = browser.new_page()
        wrong, asked = complaints(page), []
        page.on("request", lambda request: asked.append(request.url))
        key = httpx.post(f"{server.url}/keys/ada").text
        page.goto(f"{server.url}/v1/batches/docs")
        authorize(page, key)
        expect(try_out(page, "create")).to_contain_text('"object": "batch"')
        (batch,) = simulator.batches
        expect(try_out(page, "list")).to_contain_text(batch.id)
        expect(try_out(page, "retrieve", batch_id=batch.id)).to_contain_text('"status": "in_progress"')
        batch.finish()
        expect(try_out(page, "results", batch_id=batch.id)).to_contain_text('"custom_id": "r1"')
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
        upload = page.locator("#operations-Files-upload_file")
        upload.locator(".opblock-summary-control").click()
        upload.get_by_role("button", name="Try it out").click()
        content = json.dumps(requests(1)[0]).encode()
        upload.locator('input[type="file"]').set_input_files(
            {"name": "requests.jsonl", "mimeType": "application/jsonl", "buffer": content}
        )
        upload.get_by_role("button", name="Execute").click()
        expect(upload.locator(".live-responses-table .response")).to_contain_text("requests.jsonl")
        (file,) = httpx.get(f"{server.url}/v1/files?purpose=batch", headers={"X-API-Key": key}).json()["data"]
        assert file["expires_at"] - file["created_at"] == 30 * 24 * 3600  # nothing was filled in
        page.goto(f"{server.url}/api/v1/batches/docs")
        authorize(page, key)
        expect(try_out(page, "list")).to_contain_text(batch.id)
        assert wrong == []
        page.goto(f"{server.url}/v1/batches/docs")  # which has forgotten the key
        expect(try_out(page, "list")).to_contain_text("Missing or invalid credentials")
        assert all("401" in text for text in wrong)
        assert all(url.startswith((f"{server.url}/", "data:")) for url in asked)


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an app behind a proxy that puts ``/shop`` before it, and return its URL."""
    wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)

    def proxy(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        assert path.startswith("/shop/"), path
        environ |= {"PATH_INFO": path.removeprefix("/shop"), "HTTP_X_FORWARDED_PREFIX": "/shop"}
        return wsgi_app(environ, start_response)

    with serving(proxy) as url:
        yield f"{url}/shop"


@pytest.mark.slow
def test_a_cookie_in_a_browser(llm_provider: Simulator, tmp_path: Path) -> None:
    """Whoever has logged in needs no key, and the page sends the token of Flask-WTF; also behind a proxy."""
    app = Flask(__name__, instance_path=str(tmp_path))
    app.config |= {"LLM_BATCHES_PROVIDERS": {"openai": llm_provider.settings}, "SECRET_KEY": "secret"}
    csrf, llm_batches = CSRFProtect(app), LLMBatches()
    csrf.exempt(llm_batches.blueprint)
    llm_batches.init_app(app)

    @llm_batches.authenticator
    def principal() -> Principal | None:
        if "user" not in session:
            return None
        csrf.protect()
        return Principal(session["user"])

    @app.get("/login")
    def log_in() -> str:
        session["user"] = "ada"
        return "<title>Welcome</title><link rel=icon href=data:>"

    with served(app) as url, chromium() as browser:
        page = browser.new_page()
        wrong = complaints(page)
        page.goto(f"{url}/login")
        page.goto(f"{url}/v1/batches/docs")
        expect(try_out(page, "create")).to_contain_text('"object": "batch"')
        (batch,) = llm_provider.batches
        expect(try_out(page, "list")).to_contain_text(batch.id)
        expect(try_out(page, "cancel", batch_id=batch.id)).to_contain_text("cancelling")
        assert wrong == []


@pytest.mark.slow
def test_answers_are_text_in_a_browser(llm_provider: Simulator, make_host: MakeHost) -> None:
    """What callers and providers chose is shown as it is: no markup, no picture, no script of it."""
    app = make_host()
    hostile = (
        "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)> ![](https://evil.example)"
    )
    llm_provider.respond = lambda _: {"choices": [{"message": {"content": hostile}}]}
    made = [{"custom_id": hostile, "body": {"messages": [{"role": "user", "content": hostile}]}}]
    body = {"model": "openai:m", "requests": made, "metadata": {"<b>": hostile}}
    with served(app) as url, chromium() as browser:
        page = browser.new_page(extra_http_headers={"X-User": "ada"})
        wrong, asked = complaints(page), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}/v1/batches/docs")
        expect(try_out(page, "create", body)).to_contain_text(hostile)
        (batch,) = llm_provider.batches
        batch.finish()
        expect(try_out(page, "results", batch_id=batch.id)).to_contain_text(hostile)
        assert wrong == []
        assert all(address.startswith((f"{url}/", "data:")) for address in asked)
