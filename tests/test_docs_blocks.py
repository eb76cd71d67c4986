"""The blocks of code in the README and in docs do what they say."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from celery import Celery
from flask import Flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from jinja2 import DictLoader

from flask_llm_batches import Batch, DeliveredRow, Principal, current_llm_batches, errors
from flask_llm_batches.config import Settings
from flask_llm_batches.core.webhooks import event
from flask_llm_batches.store.models import Webhook
from flask_llm_batches.testing import Simulator
from tests.databases import query
from tests.documents import Namespace, block, run
from tests.hosts import requests


@pytest.fixture
def example(llm_provider: Simulator, tmp_path: Path) -> Namespace:
    """What the factory example defines, and the app it makes, with the simulator for a provider."""
    names: Namespace = {"__name__": "readme"}
    run(block("def load_user"), names)
    create_app: Callable[..., Flask] = names["create_app"]
    settings: dict[str, Any] = {
        "SECRET_KEY": "secret",
        "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'app.sqlite3'}",
        "LLM_BATCHES_PROVIDERS": {"openai": llm_provider.settings},
    }
    names["create_app"] = lambda **config: create_app(**{**settings, **config})
    names["app"] = names["create_app"]()
    return names


def test_the_factory_example_is_an_app(example: Namespace) -> None:
    """The app of the example asks its users, and lets nobody else in."""
    assert example["app"].test_client().get("/v1/batches").status_code == 401
    with example["app"].test_request_context():
        assert example["principal"]() is None


def test_the_hosts_own_code(example: Namespace) -> None:
    """The calls of the example do what the endpoints do."""
    run(block("current_llm_batches.list("), example)
    assert example["batch"].status == "cancelling"
    assert len(example["batches"]) == 1


def test_files_from_python(example: Namespace, llm_provider: Simulator) -> None:
    """A file that the app writes itself becomes a batch."""
    run(block("files.upload("), {**example, "current_llm_batches": current_llm_batches})
    assert len(llm_provider.batches) == 1


def test_the_blueprint_elsewhere(example: Namespace) -> None:
    """The endpoints are where the host registers them."""
    app = example["app"] = Flask("other")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    example["db"].init_app(app)
    example["login"].init_app(app)
    run(block("register_blueprint=False"), example)
    assert app.test_client().get("/internal/batches").status_code == 401
    assert app.test_client().get("/v1/batches").status_code == 404


def test_a_button_is_pressed_twice(example: Namespace, llm_provider: Simulator) -> None:
    """The view makes one batch of the user's requests, and answers an error with its status."""
    names = {**example, "requests_of": lambda user: requests(int(user.id))}
    run(block("Summarise my tickets"), names)
    app = example["app"]
    with app.app_context():
        example["db"].session.add(example["User"](id=2))
        example["db"].session.commit()
    client = app.test_client()
    with client.session_transaction() as session:
        session["_user_id"] = "2"
    form = dict(re.findall(r'name="(\w+)" value="([^"]+)"', client.get("/summaries").text))
    answers = {client.post("/summaries", data=form).text for _ in range(2)}
    assert answers == {f"This is batch {llm_provider.batches[0].id}."}
    llm_provider.fail_next(401, on="POST /files")
    again = dict(re.findall(r'name="(\w+)" value="([^"]+)"', client.get("/summaries").text))
    assert client.post("/summaries", data=again).status_code == 502
    assert len(llm_provider.batches) == 1


def test_the_layout_of_the_dashboard(example: Namespace) -> None:
    """A template of the host's is the frame of its pages."""
    app = example["create_app"](LLM_BATCHES_MASTER_KEY="key")
    app.register_blueprint(example["llm_batches"].dashboard, url_prefix="/batches")
    app.jinja_loader = DictLoader(
        {
            "layout.html": "<title>The shop</title>{% block head %}<!-- theirs -->{% endblock %}"
            "<nav>Shop</nav>{% block body %}{% endblock %}",
            "llm_batches/base.html": block("extends "),
        }
    )
    answer = app.test_client().get("/batches/", headers={"Authorization": "Bearer key"})
    assert answer.status_code == 200, answer.text
    for theirs in ("<title>The shop</title>", "<!-- theirs -->", "<nav>Shop</nav>"):
        assert theirs in answer.text
    for ours in ("dashboard.css", "htmx.min.js", ">All batches</a>", "<h1>"):
        assert ours in answer.text


def test_rows_come_into_the_apps_own_table(
    example: Namespace, llm_provider: Simulator, tmp_path: Path
) -> None:
    """The function of the example labels tickets, and the commands are there."""
    db = example["db"]
    ticket = type(
        "Ticket",
        (db.Model,),
        {"id": db.Column(db.Integer, primary_key=True), "label": db.Column(db.String(99))},
    )
    app = example["create_app"]()
    with app.app_context():
        db.session.add(ticket(id=7))
        db.session.commit()
    example |= {"app": app, "Ticket": ticket}
    run(block("inside a view there is one already"), example)
    llm_provider.batches[-1].finish()
    query(f"sqlite:///{tmp_path / 'app.sqlite3'}", "UPDATE llm_batches_task SET due_at = 0")
    _, tick = block("flask llm-batches tick").splitlines()
    done = app.test_cli_runner().invoke(args=tick.partition("#")[0].split()[1:])
    assert done.exit_code == 0, done.output
    with app.app_context():
        assert db.session.get(ticket, 7).label == "Bug or question? ..."  # the simulator echoes


def test_webhooks(
    example: Namespace, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The settings of the example are right, and the event is as it says."""
    for name in ("CRM_WEBHOOK_SECRET", "OPENAI_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "whsec_" + b64encode(b"0123456789abcdef").decode())
    names: Namespace = {"os": os, "app": Flask("settings")}
    run(block("CRM_WEBHOOK_SECRET"), names)
    settings = Settings.from_config(names["app"].config)
    assert settings.webhooks["crm"].url == "https://crm.example.com/hooks/batches"
    assert settings.providers is not None
    assert settings.providers["openai"].webhook_secrets == (b"0123456789abcdef",)
    webhook = Webhook(1, "u", "b", "crm", "batch.completed", 1764240000, 0, None, None, None)
    sent = json.loads(event(webhook, "batch_..."))
    assert sent | {"id": "evt_..."} == json.loads(block("1764240000"))


def test_celery_gets_a_task(example: Namespace) -> None:
    """The task is registered, and beat sends it."""
    example["celery"] = Celery("host")
    run(block("register_tasks"), example)
    assert "llm_batches.tick" in example["celery"].tasks
    assert example["celery"].conf.beat_schedule["llm_batches.tick"]["task"] == "llm_batches.tick"
    example["celery"].tasks["llm_batches.tick"]()


def test_the_commands(example: Namespace) -> None:
    """The commands make, list and revoke keys."""
    runner = example["app"].test_cli_runner()
    for line in block("keys create --owner 42").splitlines():
        done = runner.invoke(args=line.partition("#")[0].split()[1:])
        assert done.exit_code == 0, done.output


def test_a_form_on_another_site_changes_nothing(example: Namespace, llm_provider: Simulator) -> None:
    """A caller with a cookie may look, and needs the token for anything else; with a key none is needed."""
    app = example["create_app"](LLM_BATCHES_MASTER_KEY="key")
    with app.app_context():
        example["db"].session.add(example["User"](id=1))
        example["db"].session.commit()
        batch = current_llm_batches.create(owner="1", model="openai:gpt-4o-mini", requests=requests(1))
    client = app.test_client()
    with client.session_transaction() as session:
        session["_user_id"] = "1"
    assert client.get(f"/v1/batches/{batch.id}").status_code == 200
    refused = client.post(f"/v1/batches/{batch.id}/cancel", data={"any": "form"})
    assert (refused.status_code, refused.get_json()["detail"]) == (400, "The CSRF token is missing.")
    assert llm_provider.batches[0].status != "cancelling"
    keyed = app.test_client().post(f"/v1/batches/{batch.id}/cancel", headers={"X-API-Key": "key"})
    assert keyed.status_code == 200


def test_signals(example: Namespace, llm_provider: Simulator, caplog: pytest.LogCaptureFixture) -> None:
    """The receiver hears of a batch that has ended."""
    caplog.set_level("INFO")
    run(block("connect_via"), example)
    run(block("current_llm_batches.list("), example)
    llm_provider.batches[0].finish()
    with example["app"].app_context():
        example["current_llm_batches"].retrieve(example["batch"].id, owner="42")
    assert "of 42 is cancelled" in caplog.text


def test_the_error(example: Namespace) -> None:
    """A batch that is not there is answered as printed, and the handler says it another way."""
    app = example["create_app"](LLM_BATCHES_MASTER_KEY="key")
    client = app.test_client()
    path, headers = "/v1/batches/b1?provider=openai", {"X-API-Key": "key"}
    assert client.get(path, headers=headers).get_json() == json.loads(block("not_found_error"))
    run(block("error_handler"), example)
    answer = client.get(path, headers=headers)
    assert (answer.status_code, answer.get_json()["title"]) == (404, "not_found")


def test_the_asgi_app(example: Namespace) -> None:
    """The ASGI app answers."""
    run(block("WsgiToAsgi"), example)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/v1/batches"}
    scope |= {"query_string": b"", "headers": []}
    asyncio.run(example["asgi"](scope, receive, send))
    assert sent[0]["status"] == 401


def test_owners_have_limits(example: Namespace, llm_provider: Simulator) -> None:
    """The function of the example limits every owner to ten batches at once."""
    run(block("@llm_batches.limits"), example)
    with example["app"].app_context():
        for _ in range(10):
            current_llm_batches.create(owner="42", model="openai:m", requests=requests(1))
        with pytest.raises(errors.OwnerLimitReached, match="10 batches at once"):
            current_llm_batches.create(owner="42", model="openai:m", requests=requests(1))
    assert len(llm_provider.batches) == 10
    example["principal"] = example["llm_batches"].authenticator(lambda: Principal("42"))
    body = {"model": "openai:m", "requests": requests(1)}
    answer = example["app"].test_client().post("/v1/batches", json=body)
    assert answer.get_json() == json.loads(block("owner_limit_reached"))


def test_the_test(example: Namespace, llm_provider: Simulator) -> None:
    """The test of the example passes."""
    run(block("def test_batches").replace("from app import create_app", ""), example)
    example["test_batches"](llm_provider)


def test_answers_of_the_simulator(llm_provider: Simulator, example: Namespace) -> None:
    """The function of the example refuses one request, and answers the others as the simulator does."""
    run(block("too hot"), {"llm_provider": llm_provider})
    with example["app"].app_context():
        batch = current_llm_batches.create(owner="42", model="openai:m", requests=requests(3))
        llm_provider.batches[0].finish()
        rows = {row["custom_id"]: row for row in current_llm_batches.results(batch.id, owner="42")}
    assert (rows["r2"]["error"]["message"], rows["r2"]["error"]["status"]) == ("too hot", 400)
    assert rows["r1"]["result"]["choices"][0]["message"]["content"] == "say 1"


def test_verdicts_are_checked(
    example: Namespace, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler of the example takes what has the form, and logs what has not."""
    tickets = {1: SimpleNamespace(label=None), 2: SimpleNamespace(label=None)}
    names = {
        "llm_batches": example["llm_batches"],
        "db": SimpleNamespace(session=SimpleNamespace(get=lambda _, number: tickets[number])),
        "Ticket": None,
        "__name__": __name__,
    }
    run(block("judge-tickets"), names)
    texts = ('{"label": "bug", "certain": true}', "It is a bug.")
    rows = [
        DeliveredRow(str(number), {"choices": [{"message": {"content": text}}]}, None, str(number))
        for number, text in enumerate(texts, 1)
    ]
    names["judge"](rows, Batch(id="b1", provider="openai", status="completed", created_at=0))
    assert [one.label for one in tickets.values()] == ["bug", None]
    assert "b1: The text of request '2' does not fit" in caplog.text


def test_tokens_name_the_caller(example: Namespace) -> None:
    """The authenticator of the example reads the owner and the role out of a token."""
    run(block("jwt.decode"), example)
    key = example["app"].config["SECRET_KEY"] = "a secret of at least 32 characters"
    claims = {"sub": "42", "role": "admin", "exp": int(time.time()) + 60}
    token = jwt.encode(claims, key, algorithm="HS256")
    old = jwt.encode(claims | {"exp": int(time.time()) - 60}, key, algorithm="HS256")
    nobodys = jwt.encode({"exp": claims["exp"]}, key, algorithm="HS256")
    for given, principal in (
        (f"Bearer {token}", Principal("42", admin=True)),
        (f"Bearer {token}x", None),
        (f"Bearer {old}", None),
        (f"Bearer {nobodys}", None),
        (f"Basic {token}", None),
    ):
        with example["app"].test_request_context(headers={"Authorization": given}):
            assert example["principal"]() == principal


def test_calls_have_limits(example: Namespace) -> None:
    """Flask-Limiter takes the blueprint."""
    limiter = Limiter(get_remote_address, storage_uri="memory://")
    run(block("limiter.limit("), {**example, "limiter": limiter})
    app = Flask("limited")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    example["db"].init_app(app)
    example["login"].init_app(app)
    limiter.init_app(app)
    example["llm_batches"].init_app(app)
    statuses = [app.test_client().get("/v1/batches").status_code for _ in range(101)]
    assert statuses == [401] * 100 + [429]


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (block("LLM_BATCHES_URL_PREFIX"), {"url_prefix": ("/v1/batches", "/api/v1/batches")}),
        (block("s3://bucket/path"), {"storage": "s3://bucket/path"}),
    ],
)
def test_settings_are_right(mark: str, expected: dict[str, Any]) -> None:
    """The settings of the examples are valid."""
    app = Flask("settings")
    run(mark, {"app": app})
    settings = Settings.from_config(app.config)
    assert {name: getattr(settings, name) for name in expected} == expected


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    """The URL of the example is that of a folder."""
    app = Flask("settings")
    run(block("file:///srv/batches").replace("/srv/batches", str(tmp_path)), {"app": app})
    assert Settings.from_config(app.config).storage == f"file://{tmp_path}"


def test_a_dry_run(example: Namespace) -> None:
    """The answer of the example is what the endpoint returns for the lines of the example."""
    app = example["create_app"](LLM_BATCHES_MASTER_KEY="key")
    lines = block("gzip -c requests.jsonl").split("END")[1].strip("'\n")
    answer = app.test_client().post(
        "/v1/batches?dry_run=true&model=openai:gpt-4o-mini",
        data=lines,
        headers={"X-API-Key": "key", "Content-Type": "application/jsonl"},
    )
    printed = json.loads(block("estimated_tokens"))
    costs = {name: answer.get_json()[name] for name in ("estimated_cost", "standard_cost")}
    assert answer.get_json() == printed | costs  # prices change
    assert all(re.fullmatch(r"0\.\d{9}", cost) for cost in costs.values())


def test_what_the_log_says(
    example: Namespace, caplog: pytest.LogCaptureFixture, llm_provider: Simulator
) -> None:
    """The lines of the log are those that are printed."""
    wrong = {"openai": {**llm_provider.settings, "api_key": "sk-wrong-key-0123456789"}}
    app = example["create_app"](LLM_BATCHES_PROVIDERS=wrong)
    example["llm_batches"].on_results("any")(print)
    with app.app_context(), pytest.raises(errors.ProviderFailed):
        current_llm_batches.create(owner="42", model="openai:m", requests=requests(1), on_results="any")
    messages = [record.getMessage() for record in caplog.records]
    for line in (block("Incorrect API key provided"), block("No worker is alive")):
        assert line.strip() in messages


def test_a_row_that_is_refused(example: Namespace, llm_provider: Simulator, tmp_path: Path) -> None:
    """The command prints a row that was set aside as the page shows it."""
    app, refused = example["app"], block("no such ticket").strip()

    def refuse(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
        if any(row.custom_id == "r1" for row in rows):
            raise ValueError("no such ticket")

    example["llm_batches"].on_results("refuses")(refuse)
    with app.app_context():
        current_llm_batches.create(owner="42", model="openai:m", requests=requests(3), on_results="refuses")
    llm_provider.batches[0].finish()
    for _ in range(4):
        this = "UPDATE llm_batches_task SET due_at = 0 WHERE step != 'expire'"
        query(f"sqlite:///{tmp_path / 'app.sqlite3'}", this)
        app.test_cli_runner().invoke(args=["llm-batches", "tick"])
    done = app.test_cli_runner().invoke(args=["llm-batches", "deliveries"])
    assert done.output.split()[1:] == refused.split()[1:]


def test_from_a_file_to_a_table(
    example: Namespace, llm_provider: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the example make a batch of the file, and a table of its results."""
    monkeypatch.chdir(tmp_path)
    lines = block("gzip -c requests.jsonl").split("END")[1].strip("'\n")
    Path("requests.jsonl").write_text(lines)
    llm_provider.seconds = 0
    batch_id = "BATCH_ID"
    for line in block("--dry-run   # checks it").splitlines():
        arguments = line.partition("#")[0].replace("BATCH_ID", batch_id).split()[1:]
        done = example["app"].test_cli_runner().invoke(args=arguments)
        assert done.exit_code == 0, done.output
        if "--wait" in arguments:
            (batch_id,) = set(re.findall("batch_[0-9a-f]{32}", done.output))
    assert '"r2","Say it louder."' in Path("labels.csv").read_text()


def test_the_log_in_of_the_dashboard(example: Namespace, llm_provider: Simulator) -> None:
    """Visitors are sent to the log-in, users need the token of a page, and so do the endpoints."""
    names = {**example, "app": example["create_app"]()}
    run(block("register_blueprint(llm_batches.dashboard"), names)
    client = names["app"].test_client()
    assert client.get("/batches/").status_code == 401
    run(block("request.blueprint == llm_batches.dashboard"), names)
    assert client.get("/batches/").headers["Location"] == "/login"
    assert client.get("/v1/batches").status_code == 401
    with names["app"].app_context():
        example["db"].session.add(example["User"](id=1))
        example["db"].session.commit()
        batch = current_llm_batches.create(owner="1", model="openai:gpt-4o-mini", requests=requests(1))
    with client.session_transaction() as session:
        session["_user_id"] = "1"
    assert client.post(f"/v1/batches/{batch.id}/cancel").status_code == 400
    page = f"/batches/batch?id={batch.id}"
    form = dict(re.findall(r'name="(\w+)" value="([^"]+)"', client.get(page).text)) | {"action": "cancel"}
    sent = client.post(page, data=form, headers={"Sec-Fetch-Site": "same-origin"})
    assert sent.status_code == 303, sent.text
    assert llm_provider.batches[0].status == "cancelling"
