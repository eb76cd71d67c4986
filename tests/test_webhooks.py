"""Webhooks that are sent when a batch ends, and webhooks of providers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import httpcore
import openai
import pytest
import standardwebhooks
from flask import Flask

from flask_llm_batches import EVERYONE, LLMBatches, current_llm_batches
from flask_llm_batches.core import outbound
from flask_llm_batches.core.outbound import AddressNotPublic, is_public, post
from flask_llm_batches.errors import ConfigurationError, ValidationFailed
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.databases import query
from tests.hosts import requests
from tests.test_worker import tasks, tick

SECRET, OLD_SECRET = (
    "whsec_" + "c2VjcmV0IG51bWJlciBvbmUsIG5ldyBvbmU=",
    "whsec_b2xkIHNlY3JldCwgbnVtYmVyIHR3by4uLg==",
)
GEMINI_SECRET = "whsec_Z2VtaW5pJ3Mgb3duIHNlY3JldCwgYXQgbGVhc3Q="


class Taken(NamedTuple):
    headers: dict[str, str]
    body: bytes


class Target:
    """An HTTP server that takes webhooks, and answers as it is told; 204 by default."""

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        target = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                target.taken.append(Taken({k.lower(): v for k, v in self.headers.items()}, body))
                status, headers = target.answers.pop(0) if target.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=1"


@contextmanager
def running_target() -> Iterator[Target]:
    target = Target()
    thread = Thread(target=target.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield target
    finally:
        target.server.shutdown()
        thread.join()
        target.server.server_close()


@pytest.fixture
def target() -> Iterator[Target]:
    with running_target() as target:
        yield target


MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(make_host: MakeHost, database_url: str, target: Target) -> MakeApp:
    """Make a host with the webhook ``crm`` to the target."""

    def make(**options: Any) -> Flask:
        crm = {"url": target.url, "secret": SECRET, "allow_private": True, "http": True, **options}
        return make_host(database=database_url, webhooks={"crm": crm})

    return make


def finish(app: Flask, database: str, simulator: Simulator) -> None:
    """Let the batches end, and a worker see it."""
    for batch in simulator.batches:
        batch.finish()
    tick(app, database)


def sent(app: Flask) -> list[tuple[str | None, int, bool, bool]]:
    """Return each webhook's answer and attempts, and whether it was sent and is due again."""
    with app.app_context():
        found = current_llm_batches.sent_webhooks()
    return [(one.answer, one.attempts, one.sent_at is not None, one.due_at is not None) for one in found]


def test_others_verify_what_is_sent(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, target: Target
) -> None:
    """OpenAI's SDK and Standard Webhooks' own library take it, with the new secret and with the old one."""
    app = make_app(secret=[SECRET, OLD_SECRET])
    batch_id = create_batch(client_of(app, "ada"), webhook="crm")
    finish(app, database_url, llm_provider)
    (taken,) = target.taken
    for secret in (SECRET, OLD_SECRET):
        event = openai.OpenAI(api_key="-").webhooks.unwrap(taken.body, taken.headers, secret=secret)
        assert (event.type, event.data.id) == ("batch.completed", batch_id)  # type: ignore[union-attr]
        assert event.id == taken.headers["webhook-id"]
        assert standardwebhooks.Webhook(secret).verify(taken.body, taken.headers)["object"] == "event"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(GEMINI_SECRET).verify(taken.body, taken.headers)
    assert sent(app) == [("answers 204", 1, True, False)]
    assert ("notify",) not in tasks(database_url)


@pytest.mark.parametrize(
    ("end", "event"),
    [("fail", "batch.failed"), ("expire", "batch.expired"), ("cancel", "batch.cancelled")],
)
def test_every_end_has_its_event(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, target: Target, end: str, event: str
) -> None:
    """A batch that fails, expires or is cancelled is told, too."""
    app = make_app(every=True)
    ada = client_of(app, "ada")
    batch_id = create_batch(ada)
    if end == "cancel":
        ada.post(f"/v1/batches/{batch_id}/cancel")
    elif end == "fail":
        llm_provider.batches[0].fail("no")
    else:
        llm_provider.batches[0].expire()
    if end == "cancel":
        llm_provider.batches[0].finish()
    tick(app, database_url)
    assert [json.loads(taken.body)["type"] for taken in target.taken] == [event]


def test_a_target_that_fails_is_told_again(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, target: Target
) -> None:
    """With the same webhook-id and body, later each time, and not before the Retry-After of the target."""
    app = make_app()
    target.answers = [(500, {}), (302, {"Location": target.url}), (429, {"Retry-After": "4000"})]
    create_batch(client_of(app, "ada"), webhook="crm")
    finish(app, database_url, llm_provider)
    waits = []
    for _ in range(3):
        ((due_at,),) = query(database_url, "SELECT due_at FROM llm_batches_webhook")
        waits.append(round(due_at - time.time(), -1))
        query(database_url, "UPDATE llm_batches_webhook SET due_at = 0")
        tick(app, database_url)
    assert waits == [pytest.approx(one, abs=10) for one in (5, 30, 4000)]
    assert sent(app) == [("answers 204", 4, True, False)]
    assert len({(taken.headers["webhook-id"], taken.body) for taken in target.taken}) == 1
    assert len(target.taken) == 4


def test_a_target_that_is_gone_is_told_no_more(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, target: Target
) -> None:
    """410 ends it at once, and so does the eleventh try, after a day. An operator can send it again."""
    app = make_app()
    target.answers = [(410, {}), *[(503, {})] * 11]
    batch_id = create_batch(client_of(app, "ada"), webhook="crm")
    finish(app, database_url, llm_provider)
    assert sent(app) == [("answers 410", 1, False, False)]
    run = app.test_cli_runner().invoke
    assert "\tgiven up\t1\tanswers 410\n" in run(args=["llm-batches", "webhooks"]).output
    assert run(args=["llm-batches", "webhooks", "--again", batch_id]).output == "1\n"
    waited = 0.0
    for _ in range(11):
        before = time.time()
        tick(app, database_url)
        ((due_at,),) = query(database_url, "SELECT due_at FROM llm_batches_webhook")
        waited += 0 if due_at is None else due_at - before
        query(database_url, "UPDATE llm_batches_webhook SET due_at = 0 WHERE due_at IS NOT NULL")
    assert sent(app) == [("answers 503", 11, False, False)]
    assert waited == pytest.approx(24 * 3600, rel=0.02)
    assert run(args=["llm-batches", "webhooks", "--again", batch_id]).output == "1\n"
    tick(app, database_url)
    assert sent(app) == [("answers 204", 1, True, False)]


def test_a_webhook_is_sent_again_while_a_worker_ends_its_task(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, target: Target
) -> None:
    """Regression: a worker that had just seen nothing left deleted the task for what was due again."""
    app = make_app()
    batch_id = create_batch(client_of(app, "ada"), webhook="crm")
    finish(app, database_url, llm_provider)
    again = ["llm-batches", "webhooks", "--again", batch_id]
    app.test_cli_runner().invoke(args=again)
    held = f"lease_token = 'a', lease_until = {int(time.time()) + 600}"
    query(database_url, f"UPDATE llm_batches_task SET {held} WHERE step = 'notify'")
    app.test_cli_runner().invoke(args=again)
    tick(app, database_url)
    assert len(target.taken) == 2


def test_one_target_does_not_wait_for_another(
    make_host: MakeHost, database_url: str, llm_provider: Simulator, target: Target
) -> None:
    """A target that cannot be reached leaves the others alone, and nothing of it is in the answer."""
    closed = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    closed.server_close()
    usual = {"secret": SECRET, "allow_private": True, "every": True}
    app = make_host(
        database=database_url,
        webhooks={
            "closed": {"url": f"http://127.0.0.1:{closed.server_port}/", **usual},
            "private": {"url": f"https://localhost:{closed.server_port}/", "secret": SECRET, "every": True},
            "unknown": {"url": "http://no-such-host.invalid/", **usual},
            "too-long": {"url": f"http://{'a' * 64}.invalid/", **usual},
            "good": {"url": target.url, **usual},
        },
    )
    create_batch(client_of(app, "ada"))
    finish(app, database_url, llm_provider)
    assert len(target.taken) == 1
    answers = {
        "is not reached: ConnectError",
        "has no public address",
        "is not reached: gaierror",
        "answers 204",
    }
    found = {str(one[0]) for one in sent(app)}
    assert {one for one in found if "Unicode" not in one} == answers
    assert len(found) == len(answers) + 1
    tick(app, database_url)
    assert len(target.taken) == 1


def test_creates_name_what_is_in_the_settings(
    make_host: MakeHost, tmp_path: Path, llm_provider: Simulator
) -> None:
    """Any name in Python, over HTTP only those that are open to it; anything else is a 422."""
    usual = {"url": "https://example.com/", "secret": SECRET}
    app = make_host(
        database=tmp_path / "host.sqlite3", webhooks={"open": {**usual, "http": True}, "closed": usual}
    )
    ada = client_of(app, "ada")
    for name in ("closed", "other"):
        body = {"model": "openai:gpt-4o-mini", "requests": requests(1), "webhook": name}
        answers = [ada.post("/v1/batches", json=body)]
        line = json.dumps(requests(1)[0])
        for_lines = f"/v1/batches?model=openai:gpt-4o-mini&webhook={name}"
        answers.append(ada.post(for_lines, data=line, content_type="application/x-ndjson"))
        for answer in answers:
            assert answer.status_code == 422
            assert answer.get_json()["detail"][0]["msg"] == "Not the name of a webhook."
    with app.app_context(), pytest.raises(ValidationFailed):
        current_llm_batches.create(owner="ada", model="openai:m", requests=requests(1), webhook="other")
    assert not llm_provider.calls
    create_batch(ada, webhook="open")
    with app.app_context():
        current_llm_batches.create(owner="ada", model="openai:m", requests=requests(1), webhook="closed")


def test_a_key_is_not_for_another_webhook(make_host: MakeHost, tmp_path: Path) -> None:
    """The same create with another webhook is another create."""
    usual = {"url": "https://example.com/", "secret": SECRET, "http": True}
    ada = client_of(make_host(database=tmp_path / "host.sqlite3", webhooks={"a": usual, "b": usual}), "ada")
    body = {"model": "openai:gpt-4o-mini", "requests": requests(1), "webhook": "a"}
    headers = {"Idempotency-Key": "k"}
    assert ada.post("/v1/batches", json=body, headers=headers).status_code == 200
    other = ada.post("/v1/batches", json={**body, "webhook": "b"}, headers=headers)
    assert other.get_json()["error"]["code"] == "idempotency_mismatch"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
    ],
)
def test_no_spelling_of_a_private_address_is_connected_to(target: Target, host: str) -> None:
    """The address is checked to which the name leads when the connection is made."""
    with pytest.raises(AddressNotPublic):
        post(f"http://{host}:{target.server.server_port}/", {}, b"{}", allow_private=False)
    assert not target.taken


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),  # 93.184.216.34 by NAT64
        ("64:ff9b::a9fe:a9fe", False),  # 169.254.169.254 by NAT64
        ("2002:7f00:1::", False),  # 127.0.0.1 by 6to4
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),  # Teredo
        ("::7f00:1", False),
        ("::", False),
        ("fe80::1%lo", False),
        ("fc00::1", False),
        ("fec0::1", False),  # an old form of that
        ("ff02::1", False),
        ("169.254.169.254", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("192.168.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
    ],
)
def test_addresses_that_are_not_public_are_known(address: str, public: bool) -> None:
    """In all forms of IPv6 that stand for an IPv4 address, as well."""
    assert is_public(address) is public


def test_a_target_that_answers_slowly_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One time is for the whole answer, however often a byte comes."""

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with pytest.raises(OSError):  # noqa: PT011
                for _ in range(100):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX: "[:1])
                    time.sleep(0.05)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(outbound, "_SECONDS", 0.5)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    Thread(target=server.serve_forever, args=(0.02,)).start()
    started = time.monotonic()
    try:
        with pytest.raises((httpcore.TimeoutException, httpcore.ProtocolError)):
            post(f"http://127.0.0.1:{server.server_port}/", {}, b"{}", allow_private=True)
        assert time.monotonic() - started < 3
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("webhooks", "says"),
    [
        ([], "must be a dict"),
        ({"a b": {}}, "The name of"),
        ({"a": "https://x"}, "must be a dict"),
        ({"a": {"url": "https://x/", "secret": SECRET, "events": []}}, "unknown option 'events'"),
        ({"a": {"url": "http://x/", "secret": SECRET}}, "['url'] must be the URL of an HTTPS server"),
        ({"a": {"url": "https://u:p@x/", "secret": SECRET}}, "['url'] must be"),
        ({"a": {"url": "https://x/#f\n", "secret": SECRET}}, "['url'] must be"),
        ({"a": {"url": "https://x:65536/", "secret": SECRET}}, "['url'] must be"),
        ({"a": {"url": "https://[1:2]/", "secret": SECRET}}, "['url'] must be"),
        ({"a": {"url": "https://x:/", "secret": SECRET}}, "['url'] must be"),
        ({"a": {"url": "https://b\u00fccher.example/", "secret": SECRET}}, "['url'] must be"),
        ({"a": {"url": "https://x/"}}, "['secret'] must be"),
        ({"a": {"url": "https://x/", "secret": "whsec_c2hvcnQ="}}, "['secret'] must be"),
        ({"a": {"url": "https://x/", "secret": [SECRET] * 3}}, "['secret'] must be"),
        ({"a": {"url": "https://x/", "secret": SECRET, "every": "yes"}}, "['every'] must be True or False"),
    ],
)
def test_wrong_settings_are_named(webhooks: object, says: str) -> None:
    """The error has the entry and the fix, and neither a secret nor a URL that may hold one."""
    app = Flask("host")
    app.config["LLM_BATCHES_WEBHOOKS"] = webhooks
    with pytest.raises(ConfigurationError) as error:
        LLMBatches(app)
    assert says in str(error.value)
    assert "u:p" not in str(error.value)
    assert SECRET not in str(error.value)


@pytest.fixture
def events_app(make_host: MakeHost, tmp_path: Path, llm_provider: Simulator) -> Flask:
    """A host whose OpenAI and Gemini send webhooks."""
    providers = {
        "openai": {**llm_provider.settings, "webhook_secret": [SECRET, OLD_SECRET]},
        "gemini": {"api_key": "k", "api_base": "http://127.0.0.1:9", "webhook_secret": GEMINI_SECRET},
        "mistral": {"api_key": "k"},
    }
    return make_host(database=tmp_path / "host.sqlite3", providers=providers)


def headers_of(body: bytes, secret: str = SECRET, *, age: float = 0) -> dict[str, str]:
    """Sign an event as OpenAI and Gemini do."""
    at = datetime.now(UTC) - timedelta(seconds=age)
    signature = standardwebhooks.Webhook(secret).sign("wh_1", at, body.decode())
    return {
        "webhook-id": "wh_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": f"v1,bm90IGl0 {signature}",
    }


def event_of(batch_id: str, kind: str = "batch.completed") -> bytes:
    return json.dumps({"id": "evt_1", "object": "event", "type": kind, "data": {"id": batch_id}}).encode()


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_an_event_lets_a_worker_look_now(
    events_app: Flask, llm_provider: Simulator, tmp_path: Path, secret: str
) -> None:
    """What it says is not believed: the provider is asked. No credentials are needed but the signature."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    batch_id = create_batch(client_of(events_app, "ada"))
    query(database, "UPDATE llm_batches_task SET due_at = due_at + 300")
    body = event_of(batch_id)
    answer = events_app.test_client().post(
        "/v1/batches/webhooks/OpenAI", data=body, headers=headers_of(body, secret)
    )
    assert (answer.status_code, answer.data) == (204, b"")
    with events_app.app_context():
        assert current_llm_batches.tick() == 1
        assert current_llm_batches.retrieve(batch_id, owner=EVERYONE).status == "in_progress"


def test_geminis_events_name_a_batch_with_or_without_its_path(events_app: Flask, tmp_path: Path) -> None:
    """Both forms are in its documentation: https://ai.google.dev/gemini-api/docs/webhooks."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    batch_id = create_batch(client_of(events_app, "ada"))
    query(database, "UPDATE llm_batches_batch SET provider = 'gemini', batch_id = 'batches/abc123'")
    assert batch_id
    for named in ("batches/abc123", "abc123"):
        query(database, f"UPDATE llm_batches_task SET due_at = {int(time.time()) + 300}")
        body = event_of(named, "batch.succeeded")
        answer = events_app.test_client().post(
            "/v1/batches/webhooks/gemini", data=body, headers=headers_of(body, GEMINI_SECRET)
        )
        assert answer.status_code == 204
        ((due_at,),) = query(database, "SELECT due_at FROM llm_batches_task")
        assert due_at <= time.time()


def test_an_event_that_comes_late_leaves_the_archive_alone(
    events_app: Flask, llm_provider: Simulator, tmp_path: Path
) -> None:
    """Regression: every task of the batch was due then, also the one that deletes its results."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    ada = client_of(events_app, "ada")
    batch_id = create_batch(ada)
    llm_provider.batches[0].finish()
    with events_app.app_context():
        query(database, "UPDATE llm_batches_task SET due_at = 0")
        current_llm_batches.tick()
        body = event_of(batch_id)
        events_app.test_client().post("/v1/batches/webhooks/openai", data=body, headers=headers_of(body))
        assert current_llm_batches.tick() == 0
    ((due_at,),) = query(database, "SELECT due_at FROM llm_batches_task WHERE step = 'expire'")
    assert due_at > time.time() + 29 * 24 * 3600


@pytest.mark.parametrize(
    ("path", "secret", "age", "changed"),
    [
        ("openai", SECRET, 0, {"webhook-signature": ""}),
        ("openai", SECRET, 0, {"webhook-signature": "v1,\u00e9" + " v1," * 5000}),
        ("openai", SECRET, 0, {"webhook-id": "other"}),
        ("openai", SECRET, 0, {"webhook-timestamp": "\u0663"}),
        ("openai", SECRET, 0, {"webhook-timestamp": "9" * 5000}),
        ("openai", SECRET, 301, {}),
        ("openai", SECRET, -310, {}),
        ("openai", GEMINI_SECRET, 0, {}),
        ("mistral", SECRET, 0, {}),
        ("nobody", SECRET, 0, {}),
    ],
)
def test_what_is_not_signed_is_a_401(
    events_app: Flask, path: str, secret: str, age: float, changed: dict[str, str]
) -> None:
    """Whatever is wrong, the answer is the same, and it does not say which providers there are."""
    body = event_of("b")
    headers = headers_of(body, secret, age=age) | changed
    environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    url = f"/v1/batches/webhooks/{path}"
    answer = events_app.test_client().post(url, data=body, environ_overrides=environ)
    assert answer.status_code == 401
    assert answer.get_json()["error"]["message"] == "The webhook is not signed, or not as it must be"


def test_what_is_signed_and_odd_does_nothing(events_app: Flask) -> None:
    """Events of other kinds, batches of others and what is no JSON are taken; what is too long is a 413."""
    client = events_app.test_client()
    for body in (
        b"",
        b"[]",
        b'{"data": {"id": 1}}',
        b'{"data": {"id": "../x"}}',
        event_of("batch_of_others"),
    ):
        answer = client.post("/v1/batches/webhooks/openai", data=body, headers=headers_of(body))
        assert answer.status_code == 204
    long = b" " * (64 * 1024 + 1)
    assert client.post("/v1/batches/webhooks/openai", data=long, headers=headers_of(long)).status_code == 413
    wrong = client.get("/v1/batches/webhooks/openai", headers={"X-User": "ada"})
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST, OPTIONS")
