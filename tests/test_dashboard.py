"""The dashboard: owners see theirs, admins all, and no other site can act in their name."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, abort, redirect, request, url_for
from flask.testing import FlaskClient
from flask_wtf.csrf import CSRFProtect
from jinja2 import StrictUndefined
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.test import TestResponse

from flask_llm_batches import LLMBatches, Principal, current_llm_batches
from flask_llm_batches.dashboard.blueprint import POLICY
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.databases import query
from tests.hosts import MASTER_KEY

PAGES = ("/batches/", "/batches/list", "/batches/usage")
ADMINS_PAGES = ("/batches/keys", "/batches/health")
HOSTILE = "</a><script>alert(1)</script>'\"{{7*7}}\u202e"


@pytest.fixture
def app(make_host: MakeHost, tmp_path: Path) -> Flask:
    return make_host(database=tmp_path / "host.sqlite3", dashboard="/batches")


def page_of(batch_id: str) -> str:
    return f"/batches/batch?id={batch_id}&provider=openai"


def token_of(page: TestResponse) -> str:
    found = re.search(r'name="llm_batches_token" value="([0-9a-f]+)"', page.text)
    assert found is not None
    return found[1]


def post(client: FlaskClient, path: str, **fields: str) -> TestResponse:
    """Send a form as a browser does: with the token of its page, and from this origin."""
    page = client.get(path)
    data = {"llm_batches_token": token_of(page), **fields}
    return client.post(path, data=data, headers={"Sec-Fetch-Site": "same-origin"})


def ended(client: FlaskClient, provider: Simulator, count: int = 3, **fields: Any) -> str:
    """Make a batch that has ended, whose last request failed."""
    provider.respond = lambda line: (
        (400, {"error": {"message": "too hot", "code": "invalid_value"}})
        if line["custom_id"] == f"r{count - 1}"
        else {"id": "x", "choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}
    )
    batch_id = create_batch(client, count, **fields)
    provider.batches[-1].finish()
    client.get(f"/v1/batches/{batch_id}")
    return batch_id


def test_it_is_off_until_it_is_registered(make_host: MakeHost) -> None:
    """Without registration, there are no pages."""
    assert client_of(make_host(), "ada").get("/batches/").status_code == 404


@pytest.mark.parametrize("path", [*PAGES, *ADMINS_PAGES, "/batches/batch?id=b", "/batches/results?id=b"])
def test_who_is_not_known_sees_nothing(app: Flask, path: str) -> None:
    """A visitor without credentials gets a 401 page, without links into the dashboard."""
    answer = app.test_client().get(path)
    assert answer.status_code == 401
    assert "Please log in" in answer.text
    assert "<nav" not in answer.text
    assert answer.headers["Content-Security-Policy"] == POLICY


def test_a_host_may_ask_for_credentials(app: Flask, llm_provider: Simulator) -> None:
    """A redirect or a challenge of the host's authenticator reaches the browser."""
    host = Flask("host")
    host.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    extension = LLMBatches(host)
    host.register_blueprint(extension.dashboard, url_prefix="/batches")

    @extension.authenticator
    def principal() -> Principal | None:
        if "basic" in request.args:
            abort(401, www_authenticate=WWWAuthenticate("basic", {"realm": "shop"}))
        abort(redirect("/login"))

    asked = host.test_client().get("/batches/?basic")
    assert asked.headers["WWW-Authenticate"] == "Basic realm=shop"
    assert "Please log in" in asked.text
    sent = host.test_client().get("/batches/")
    assert (sent.status_code, sent.location) == (302, "/login")


@pytest.mark.parametrize("path", [*PAGES, *ADMINS_PAGES])
def test_headers(admin: FlaskClient, path: str) -> None:
    """Every page forbids code of others, frames, sniffing, and storage by caches."""
    answer = admin.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert " style=" not in answer.text
    assert not re.search(r"<script(?! src=)|<style| on[a-z]+=", answer.text)


def test_assets_need_no_credentials(app: Flask) -> None:
    """The style of the 401 page is there for everybody."""
    page = app.test_client().get("/batches/")
    for path in re.findall(r'(?:href|src)="(/batches/assets/[^"]+)"', page.text):
        with app.test_client().get(path) as asset:
            assert asset.status_code == 200
            assert asset.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ADMINS_PAGES)
def test_admins_pages(ada: FlaskClient, path: str) -> None:
    """Keys and health are not for owners, and are not linked for them."""
    answer = ada.get(path)
    assert answer.status_code == 403
    assert f'href="{path}"' not in answer.text


def test_an_overview(app: Flask, ada: FlaskClient, admin: FlaskClient, llm_provider: Simulator) -> None:
    """Owners see what runs and failed of theirs, admins of all; it is loaded again while something runs."""
    mine = create_batch(ada)
    create_batch(client_of(app, "bob"))
    for client in (ada, client_of(app, "bob")):
        client.get("/v1/batches")
    page = ada.get("/batches/").text
    assert mine in page
    assert page.count('class="id"') == 1
    assert 'hx-trigger="every 4s"' in page
    assert "No worker is alive" in page
    assert admin.get("/batches/").text.count('class="id"') == 2
    for batch in llm_provider.batches:
        batch.fail("no")
    ada.get(f"/v1/batches/{mine}")
    assert "hx-trigger" not in ada.get("/batches/").text


def test_what_has_not_changed_is_not_sent(ada: FlaskClient, llm_provider: Simulator) -> None:
    """What is loaded again is a 204 until it is different, and the whole page if the status is."""
    batch_id = create_batch(ada)
    ada.get("/v1/batches")
    for path in ("/batches/", "/batches/list", page_of(batch_id)):
        found = re.search('hx-get="([^"]+)"', ada.get(path).text)
        assert found is not None
        live = html.unescape(found[1])
        assert ada.get(live).status_code == 204
        if path == page_of(batch_id):
            llm_provider.batches[0].finish()
        changed = ada.get(live)
        assert (changed.headers.get("HX-Refresh") == "true") == (path == page_of(batch_id))


def test_a_list(app: Flask, ada: FlaskClient, admin: FlaskClient) -> None:
    """Batches are filtered, searched and paged; owners see theirs whatever they ask for."""
    mine = [create_batch(ada, 1, metadata={"team": "search"}) for _ in range(2)]
    other = create_batch(client_of(app, "bob"), 1)
    page = ada.get("/batches/list?owner=bob").text
    assert all(one in page for one in mine)
    assert other not in page
    assert f"id={other}" not in ada.get(f"/batches/list?search={other}").text
    assert other not in ada.get("/batches/list?search=bob").text
    assert other in admin.get("/batches/list?search=bob").text
    assert mine[0] not in admin.get("/batches/list?owner=bob").text
    assert mine[0] in ada.get("/batches/list?search=team%3Dsearch").text
    assert "No batch fits" in ada.get("/batches/list?status=completed").text
    assert "No batch fits" in ada.get("/batches/list?provider=other").text


def test_pages_of_a_list(ada: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list has pages, each of which keeps the filters."""
    monkeypatch.setattr("flask_llm_batches.dashboard.views._PAGE", 2)
    made = [create_batch(ada, 1) for _ in range(3)]
    first = ada.get("/batches/list?provider=openai").text
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    assert "provider=openai" in older[1]
    second = ada.get(html.unescape(older[1])).text
    assert made[0] not in first
    assert made[0] in second
    assert 'rel="next"' not in second


@pytest.mark.parametrize("query", ["status=lost", "after=nothing", "owner=a%0Ab"])
def test_a_wrong_filter(admin: FlaskClient, query: str) -> None:
    """A filter that cannot be is a 422 with the form, in which it can be corrected."""
    answer = admin.get(f"/batches/list?{query}")
    assert answer.status_code == 422
    assert 'role="search"' in answer.text


def test_a_batch(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """A batch is shown with its times, counts, usage and metadata, and to no other owner."""
    batch_id = ended(ada, llm_provider, metadata={"team": "search"})
    assert "too hot" in ada.get(f"/v1/batches/{batch_id}/results").text
    page = ada.get(page_of(batch_id)).text
    for text in ("Timeline", "Created", "Completed", "search", "2,000", "$0.0"):
        assert text in page
    assert "Cancel" not in page
    bob = client_of(app, "bob").get(page_of(batch_id))
    assert bob.status_code == 404
    assert "search" not in bob.text
    assert client_of(app, None).get(page_of(batch_id)).status_code == 200


def test_the_parts_of_a_batch(ada: FlaskClient) -> None:
    """A batch of several models has a table of its parts."""
    requests = [{"custom_id": f"r{n}", "body": {"model": f"openai:m{n % 2}"}} for n in range(4)]
    batch_id = ada.post("/v1/batches", json={"requests": requests}).get_json()["id"]
    page = ada.get(page_of(batch_id)).text
    assert "<caption>Parts" in page
    assert page.count(">m1<") == 1


def test_a_provider_that_counts_nothing(
    ada: FlaskClient, admin: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """Regression: a batch whose provider has no counts made a 500 of every page that shows it."""
    batch_id = ended(ada, llm_provider)
    nothing = "json_set(snapshot, '$.request_counts', json('null'))"
    query(f"sqlite:///{tmp_path / 'host.sqlite3'}", f"UPDATE llm_batches_batch SET snapshot = {nothing}")
    for client in (ada, admin):
        for path in ("/batches/", "/batches/list", page_of(batch_id)):
            answer = client.get(path)
            assert answer.status_code == 200
            assert batch_id in answer.text


def test_a_strict_host(app: Flask, ada: FlaskClient, admin: FlaskClient, llm_provider: Simulator) -> None:
    """Regression: pages were a 500 where undefined names are errors, or csrf_token is the token itself."""
    app.jinja_env.undefined = StrictUndefined
    app.context_processor(lambda: {"csrf_token": "theirs"})
    done, running = ended(ada, llm_provider), create_batch(ada)
    for client in (ada, admin):
        for path in (*PAGES, page_of(running), f"{page_of(done)}&failures=&custom_id=r1"):
            assert client.get(path).status_code == 200, path
    assert 'name="csrf_token" value="theirs"' in ada.get(page_of(running)).text


def test_failures(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Failures are read when they are asked for, and lead to the request beside its error."""
    batch_id = ended(ada, llm_provider)
    assert "too hot" not in ada.get(page_of(batch_id)).text
    page = ada.get(f"{page_of(batch_id)}&failures=").text
    assert "invalid_value" in page
    assert "too hot" in page
    link = re.search(r'href="([^"]+custom_id=r2[^"]*)"', page)
    assert link is not None
    beside = html.unescape(ada.get(html.unescape(link[1])).text)
    assert '"content": "say 2"' in beside
    assert '"message": "too hot"' in beside


def test_a_request_that_is_not_kept(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Where nobody has the requests any more, the page says so."""
    batch_id = ended(ada, llm_provider)
    llm_provider.fail_next(404, on="GET /files/")
    assert "not kept any more" in ada.get(f"{page_of(batch_id)}&custom_id=r1").text


def test_large_and_deep_text(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Of a large response the page has a part, and deep JSON does not become a page of spaces."""
    deep = "[" * 400 + "0," * 9000 + "0" + "]" * 400
    for content, most in (("x" * 500_000, 80_000), (json.loads(deep), 60_000)):
        llm_provider.respond = lambda _line, content=content: {"id": "x", "content": content}  # type: ignore[misc]
        batch_id = create_batch(ada, 1)
        llm_provider.batches[-1].finish()
        page = ada.get(f"{page_of(batch_id)}&custom_id=r0").text
        assert '"id":"x"' in html.unescape(page)
        assert len(page) < most


def test_cancel(ada: FlaskClient, admin: FlaskClient, app: Flask) -> None:
    """Owners cancel theirs, admins any, others none."""
    for client in (ada, admin):
        batch_id = create_batch(ada)
        answer = post(client, page_of(batch_id), action="cancel")
        assert answer.status_code == 303
        assert "asked to cancel" in client.get(answer.location).text
        assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] in ("cancelling", "cancelled")
    batch_id = create_batch(ada)
    bob = client_of(app, "bob")
    data = {"action": "cancel", "llm_batches_token": token_of(bob.get(page_of(create_batch(bob))))}
    answer = bob.post(page_of(batch_id), data=data, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 404
    assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] == "in_progress"


def test_retry(ada: FlaskClient, llm_provider: Simulator) -> None:
    """What failed becomes a new batch, and a form that is sent twice makes one."""
    batch_id = ended(ada, llm_provider)
    answer = post(ada, page_of(batch_id), action="retry", key="once")
    assert answer.status_code == 303
    page = ada.get(answer.location).text
    assert "of the requests that failed" in page
    assert batch_id in page
    assert post(ada, page_of(batch_id), action="retry", key="once").location == answer.location


def test_results(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """The results are a download of one line a row, for their owner."""
    batch_id = ended(ada, llm_provider)
    llm_provider.calls.clear()
    assert ada.head(f"/batches/results?id={batch_id}").status_code == 200
    assert not [call for call in llm_provider.calls if call.path.startswith("/files/")]
    answer = ada.get(f"/batches/results?id={batch_id}&provider=openai")
    assert len(answer.text.splitlines()) == 3
    assert answer.headers["Content-Disposition"] == f"attachment; filename={batch_id}.jsonl"
    running = create_batch(ada)
    assert ada.get(f"/batches/results?id={running}").status_code == 409
    assert client_of(app, "bob").get(f"/batches/results?id={batch_id}&provider=openai").status_code == 404


def test_deliver_and_notify_again(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> None:
    """Admins deliver rows and send webhooks again; their owner sees both, and may do neither.

    The text of a handler's error is the host's: only admins see it.
    """
    path = tmp_path / "host.sqlite3"
    webhooks = {"crm": {"url": "https://127.0.0.1:1/", "secret": "whsec_" + "A" * 32, "every": True}}
    app = make_host(database=path, dashboard="/batches", webhooks=webhooks)
    ada, admin = client_of(app, "ada"), client_of(app, None)
    got: list[str] = []
    broken = [True]

    def handler(rows: Any, _batch: Any) -> None:
        for row in rows:
            if broken[0] and row.custom_id == "r1":
                raise ValueError(HOSTILE)
            got.append(row.custom_id)

    with app.app_context():
        current_llm_batches.handlers.register("label", handler, http=True)
        batch_id = ended(ada, llm_provider, on_results="label")
        for _ in range(4):
            query(f"sqlite:///{path}", "UPDATE llm_batches_task SET due_at = 0 WHERE step != 'expire'")
            current_llm_batches.tick()
    page = ada.get(page_of(batch_id)).text
    assert f"ValueError: {HOSTILE}" in html.unescape(admin.get(page_of(batch_id)).text)
    assert "Refused rows" in page
    assert "ValueError" not in page
    assert "crm" in page
    assert "Deliver again" not in page
    assert "Send webhooks again" not in page
    for action in ("deliver", "notify"):
        assert post(ada, page_of(batch_id), action=action).status_code == 403
    answer = post(admin, page_of(batch_id), action="deliver")
    assert "r1</bdi>" in admin.get(answer.location).text
    broken[0] = False
    answer = post(admin, page_of(batch_id), action="deliver")
    assert "Refused rows" not in admin.get(answer.location).text
    assert got.count("r1") == 1
    assert "crm" in admin.get(post(admin, page_of(batch_id), action="notify").location).text
    with app.app_context():
        assert [one.attempts for one in current_llm_batches.sent_webhooks()] == [0]


def test_keys(app: Flask, admin: FlaskClient) -> None:
    """Admins make keys, which are shown once, and revoke them."""
    made = post(admin, "/batches/keys", owner="eve")
    key = re.search(r"llmb_[A-Za-z0-9_-]{43}", made.text)
    assert key is not None
    assert made.headers["Cache-Control"] == "no-store"
    assert app.test_client().get("/v1/batches", headers={"X-API-Key": key[0]}).status_code == 200
    page = admin.get("/batches/keys").text
    assert key[0] not in page
    assert key[0][:11] in page
    revoked = post(admin, "/batches/keys", revoke="1")
    assert revoked.status_code == 303
    assert app.test_client().get("/v1/batches", headers={"X-API-Key": key[0]}).status_code == 401
    assert post(admin, "/batches/keys", revoke="1").status_code == 400
    assert post(admin, "/batches/keys", owner="a\nb").status_code == 422


def test_owners_make_no_keys(ada: FlaskClient) -> None:
    """A form of an owner with a valid token makes no key."""
    page = ada.get(page_of(create_batch(ada)))
    data = {"owner": "ada", "admin": "on", "llm_batches_token": token_of(page)}
    answer = ada.post("/batches/keys", data=data, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 403
    with ada.application.app_context():
        assert current_llm_batches.keys.list() == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
        {"Origin": "http://localhost.example.com"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Referer": "http://localhost/batches/"},
    ],
)
def test_forms_of_other_sites(ada: FlaskClient, headers: dict[str, str]) -> None:
    """A form counts only if the browser says that it is on a page of this origin."""
    batch_id = create_batch(ada)
    data = {"action": "cancel", "llm_batches_token": token_of(ada.get(page_of(batch_id)))}
    assert ada.post(page_of(batch_id), data=data, headers=headers).status_code == 403
    assert ada.get(f"/v1/batches/{batch_id}").get_json()["status"] == "in_progress"


def test_a_browser_without_fetch_metadata(ada: FlaskClient) -> None:
    """A browser that sends only an Origin can use the forms."""
    batch_id = create_batch(ada)
    data = {"action": "cancel", "llm_batches_token": token_of(ada.get(page_of(batch_id)))}
    answer = ada.post(page_of(batch_id), data=data, headers={"Origin": "http://localhost"})
    assert answer.status_code == 303


def test_tokens(app: Flask, ada: FlaskClient, admin: FlaskClient) -> None:
    """A form needs the token of the caller and of the cookie: no other is enough, nor a forged one."""
    batch_id = create_batch(ada)
    path, headers = page_of(batch_id), {"Sec-Fetch-Site": "same-origin"}
    token = token_of(ada.get(path))
    cookie = ada.get_cookie("llm_batches_form")
    assert cookie is not None
    assert cookie.http_only
    assert cookie.same_site == "Lax"
    of_admin = token_of(admin.get(path))
    without_cookie = client_of(app, "ada")
    planted = client_of(app, "ada")
    planted.set_cookie("llm_batches_form", "A" * 22)
    for client, sent in (
        (ada, ""),
        (ada, of_admin),
        (ada, token[:-1]),
        (ada, "\u00e9"),
        (without_cookie, token),
        (planted, token),
        (planted, "A" * 22),
        (admin, token),
    ):
        data = {"action": "cancel", "llm_batches_token": sent}
        assert client.post(path, data=data, headers=headers).status_code == 403
    # The key that signs is not the master key, which a caller could then try to guess.
    assert MASTER_KEY not in token
    assert (
        ada.post(path, data={"action": "cancel", "llm_batches_token": token}, headers=headers).status_code
        == 303
    )


@pytest.mark.parametrize("key", [None, "secret"])
def test_other_processes_take_a_token(make_host: MakeHost, tmp_path: Path, key: str | None) -> None:
    """A form of one process is valid in all, by the SECRET_KEY or, without one, by the keys of providers."""
    first, second = (make_host(database=tmp_path / "host.sqlite3", dashboard="/batches") for _ in range(2))
    first.secret_key = second.secret_key = key
    ada = client_of(first, "ada")
    path = page_of(create_batch(ada))
    token = token_of(ada.get(path))
    cookie = ada.get_cookie("llm_batches_form")
    assert cookie is not None
    elsewhere = client_of(second, "ada")
    elsewhere.set_cookie(cookie.key, cookie.value)
    data = {"action": "cancel", "llm_batches_token": token}
    headers = {"Sec-Fetch-Site": "same-origin"}
    assert elsewhere.post(path, data=data, headers=headers).status_code == 303
    second.secret_key = "another"
    assert elsewhere.post(path, data=data, headers=headers).status_code == 403


def test_the_cookie_with_tls(ada: FlaskClient) -> None:
    """With TLS, no other domain can plant the cookie."""
    batch_id = create_batch(ada)
    page = ada.get(page_of(batch_id), base_url="https://localhost")
    cookie = page.headers["Set-Cookie"]
    assert cookie.startswith("__Host-llm_batches_form=")
    assert "Secure" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie


def test_unknown_actions(ada: FlaskClient) -> None:
    """An action that there is none of is a 400, and a method that there is none of a 405."""
    path = page_of(create_batch(ada))
    assert post(ada, path, action="purge").status_code == 400
    answer = ada.post("/batches/usage", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 405
    assert "GET" in answer.headers["Allow"]


def test_large_forms(ada: FlaskClient) -> None:
    """A form is not read beyond 64 KiB."""
    path = page_of(create_batch(ada))
    data = {"action": "cancel", "key": "x" * 70_000}
    assert ada.post(path, data=data, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 413


@pytest.mark.parametrize("exempt", [True, False])
def test_flask_wtf(llm_provider: Simulator, exempt: bool, tmp_path: Path) -> None:
    """The forms work beside Flask-WTF's protection, whether or not the dashboard is exempt from it."""
    host = Flask("host", instance_path=str(tmp_path))
    host.config["SECRET_KEY"] = "secret"
    host.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    extension = LLMBatches(host)
    csrf = CSRFProtect(host)
    csrf.exempt(extension.blueprint)
    if exempt:
        csrf.exempt(extension.dashboard)
    host.register_blueprint(extension.dashboard, url_prefix="/batches")
    extension.authenticator(lambda: Principal("ada"))
    client = host.test_client()
    path = page_of(create_batch(client))
    page = client.get(path)
    theirs = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert theirs is not None
    data = {"action": "cancel", "llm_batches_token": token_of(page), "csrf_token": theirs[1]}
    assert client.post(path, data=data, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post(path, data=data, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 303


def test_hostile_text(app: Flask, admin: FlaskClient, llm_provider: Simulator) -> None:
    """Whatever callers and providers write is text on every page, and no address is made of it."""
    owner = HOSTILE
    with app.app_context():
        llm_provider.respond = lambda _line: (400, {"error": {"message": HOSTILE, "code": HOSTILE}})
        requests = [{"custom_id": HOSTILE, "body": {"messages": [{"role": "user", "content": HOSTILE}]}}]
        batch = current_llm_batches.create(
            owner=owner, model="openai:m<script>", requests=requests, metadata={HOSTILE: HOSTILE}
        )
        llm_provider.batches[0].finish()
        list(current_llm_batches.results(batch.id, owner=owner))
        current_llm_batches.keys.create(owner=owner)
    here = page_of(batch.id)
    for path, asked in (
        ("/batches/list", {"search": HOSTILE, "owner": HOSTILE, "provider": HOSTILE, "after": HOSTILE}),
        ("/batches/list", {}),
        ("/batches/batch", {"id": batch.id, "failures": "", "custom_id": HOSTILE}),
        ("/batches/usage", {"group_by": "owner"}),
        ("/batches/usage", {"group_by": HOSTILE, "since": HOSTILE, "until": HOSTILE}),
        ("/batches/keys", {}),
        ("/batches/batch", {"id": HOSTILE, "provider": HOSTILE}),
        ("/batches/batch", {"id": "javascript:alert(1)", "_scheme": "javascript", "_external": "1"}),
        ("/batches/list", {"done": HOSTILE, "_scheme": "javascript", "_external": "1", "_anchor": HOSTILE}),
    ):
        answer = admin.get(path, query_string=asked)
        assert answer.status_code in (200, 400, 404, 422), answer.text
        assert "<script>" not in answer.text
        assert "7*7}}" in answer.text or "49" not in answer.text
        for address in re.findall(r'(?:href|action|src|hx-get)="([^"]*)"', answer.text):
            assert address.startswith(("/batches/", "#", "data:,"))
    text = html.unescape(admin.get(f"{here}&failures=").text)
    assert HOSTILE in text


def test_a_spreadsheet(app: Flask, admin: FlaskClient, ada: FlaskClient) -> None:
    """The usage is a download that no spreadsheet takes for formulas; owners see theirs."""
    create_batch(client_of(app, "=1+1"))
    create_batch(ada)
    answer = admin.get("/batches/usage.csv?group_by=owner")
    assert answer.headers["Content-Disposition"] == "attachment; filename=usage.csv"
    assert '"\'=1+1"' in answer.text
    assert "1+1" not in ada.get("/batches/usage.csv?group_by=owner").text
    assert "1+1" in admin.get("/batches/usage?group_by=owner").text
    assert "1+1" not in ada.get("/batches/usage?group_by=owner").text
    assert admin.get("/batches/usage?since=lately").status_code == 422
    assert admin.get("/batches/usage.csv?since=lately").status_code == 422


def test_health(admin: FlaskClient) -> None:
    """Admins see what a checkup finds, without a call to a provider."""
    page = admin.get("/batches/health").text
    with admin.application.app_context():
        for finding in current_llm_batches.checkup():
            assert finding.subject in page


def test_an_unexpected_error(app: Flask, ada: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails unexpectedly is a page without a trace of why."""

    def fail(**_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("flask_llm_batches.core.service.Service.overview", fail)
    answer = ada.get("/batches/")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "That did not work" in answer.text


def test_templates_of_the_host(make_host: MakeHost, tmp_path: Path) -> None:
    """A host's template of the same name replaces ours: its base frames every page."""
    folder = tmp_path / "templates"
    (folder / "llm_batches").mkdir(parents=True)
    base = "<title>{% block title %}{% endblock %}</title><i>shop</i>{% block content %}{% endblock %}"
    (folder / "llm_batches" / "base.html").write_text(base)
    app = make_host(database=tmp_path / "host.sqlite3", dashboard="/batches")
    app.template_folder = str(folder)
    page = client_of(app, "ada").get("/batches/").text
    assert "<i>shop</i>" in page
    assert "Nothing runs." in page


def test_two_places(make_host: MakeHost, tmp_path: Path) -> None:
    """Links of the dashboard lead to where the host has put it."""
    app = make_host(database=tmp_path / "host.sqlite3", dashboard="/internal/llm")
    page = client_of(app, "ada").get("/internal/llm/").text
    assert 'href="/internal/llm/list"' in page
    with app.test_request_context():
        assert url_for("llm_batches_dashboard.usage") == "/internal/llm/usage"


def test_the_host_may_replace_the_policy(app: Flask, ada: FlaskClient) -> None:
    """An after_request function of the host has the last word, for a layout that needs more."""

    @app.after_request
    def allow(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        return response

    assert ada.get("/batches/").headers["Content-Security-Policy"] == "default-src 'self'"


def test_health_with_the_providers(admin: FlaskClient, llm_provider: Simulator) -> None:
    """A button calls every provider; a wrong key is named. Another site's form calls none."""
    llm_provider.fail_next(401, on="GET /batches")
    assert admin.post("/batches/health", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert not llm_provider.calls
    assert "refuses the key (401)" in post(admin, "/batches/health").text
