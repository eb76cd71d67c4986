"""Every code block of the README does what it says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from celery import Celery
from flask import Flask

from flask_llm_batches import current_llm_batches
from flask_llm_batches.config import Settings
from flask_llm_batches.core.webhooks import event
from flask_llm_batches.store.models import Webhook
from flask_llm_batches.testing import Simulator
from tests.databases import query
from tests.hosts import requests
from tests.servers import free_port, gunicorn

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

Namespace = dict[str, Any]


def block(containing: str) -> str:
    """Return the one block that has this in it."""
    found: list[str] = [text for _, text in BLOCKS if containing in text]
    assert len(found) == 1, f"{len(found)} blocks have {containing!r}"
    return found[0]


def run(code: str, names: Namespace) -> None:
    """Run a block, as a module of its own would."""
    exec(compile(code, "README.md", "exec", dont_inherit=True), names)


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


def test_every_block_is_run_by_a_test() -> None:
    """No block of the README stands untested."""
    tested = Path(__file__).read_text()
    for language, text in BLOCKS:
        marks = re.findall(r"""block\(["']([^"']+)["']\)""", tested)
        assert any(mark in text for mark in marks), f"{language}: {text}"


def test_the_two_commands_are_targets() -> None:
    """``make demo`` and ``make test`` are what they say; CI runs them."""
    for line in block("make demo").splitlines():
        plan = subprocess.run(
            ["make", "-n", "-B", line.split()[1]],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "-m example_app" in plan.stdout or "-m pytest" in plan.stdout


def test_the_name_to_install_is_the_packages() -> None:
    """``pip install`` names this package."""
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    name = block("pip install flask").split()[-1]
    assert f'name = "{name}"' in project


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


@pytest.mark.slow
def test_the_curl_lines(tmp_path: Path) -> None:
    """The curl lines work as printed, against the demo's app."""
    port = free_port()
    blocks = (block("curl -s -u ada"), block("/cancel -X POST"), block("gzip -c requests.jsonl"))
    script = "\n".join(blocks).replace(":5000/", f":{port}/")
    command = [sys.executable, "-m", "example_app", "serve", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            assert "endpoints at" in server.stdout.readline()
            done = subprocess.run(
                ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True
            )
        finally:
            server.terminate()
    assert done.stdout.count('"object":"batch"') == 5
    assert "batch_not_complete" in done.stdout
    assert '"status":"cancelling"' in done.stdout


@pytest.mark.slow
def test_openais_client(tmp_path: Path) -> None:
    """OpenAI's client makes a batch, asks after it, and fetches its results."""
    with Simulator(seconds=1) as simulator, gunicorn(simulator, tmp_path, "--threads=4") as server:
        key = httpx.post(f"{server.url}/keys/ada").text
        code = block("from openai import OpenAI").replace("http://127.0.0.1:5000", server.url)
        create, results = re.sub(r'(?<=api_key=")[^"]+', key, code).split("results = ")
        names: Namespace = {"requests": requests(2)}
        run(create, names)
        with names["client"] as client:
            with pytest.raises(openai.ConflictError):
                run(f"results = {results}", names)
            while client.batches.retrieve(names["batch"].id).status != "completed":
                time.sleep(0.1)
            run(f"results = {results}", names)
    assert len(names["results"]["results"]) == 2


def test_the_blueprint_elsewhere(example: Namespace) -> None:
    """The endpoints are where the host registers them."""
    app = example["app"] = Flask("other")
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    example["db"].init_app(app)
    example["login"].init_app(app)
    run(block("register_blueprint=False"), example)
    assert app.test_client().get("/internal/batches").status_code == 401
    assert app.test_client().get("/v1/batches").status_code == 404


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
    example |= {"app": app, "Ticket": ticket, "current_llm_batches": current_llm_batches}
    example["requests"] = [{**requests(1)[0], "custom_id": "7"}]
    run(block("@llm_batches.on_results"), example)
    llm_provider.batches[-1].finish()
    query(f"sqlite:///{tmp_path / 'app.sqlite3'}", "UPDATE llm_batches_task SET due_at = 0")
    _, *others = block("flask llm-batches worker").splitlines()
    for line in others:
        done = app.test_cli_runner().invoke(args=line.partition("#")[0].split()[1:])
        assert done.exit_code == 0, done.output
    with app.app_context():
        assert db.session.get(ticket, 7).label == "say 0"


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
    for line in block("keys create --owner").splitlines():
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


def test_the_test(example: Namespace, llm_provider: Simulator) -> None:
    """The test of the example passes."""
    run(block("def test_batches").replace("from app import create_app", ""), example)
    example["test_batches"](llm_provider)


@pytest.mark.slow
def test_the_simulator_runs_by_itself() -> None:
    """``python -m flask_llm_batches.testing`` prints its address and answers there."""
    port = free_port()
    (line,) = re.findall(r"`python (-m flask_llm_batches.testing [^`]+)`", README)
    command = [sys.executable, *line.replace("8999", str(port)).split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/v1\n"
        assert process.stdout.readline().startswith('LLM_BATCHES_PROVIDERS = {"openai": {"api_key": ')
        process.terminate()
