"""The extension stays out of the host's way."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_batches import EVERYONE, LLMBatches, Principal, current_llm_batches
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import create_host, requests


def test_initialising_twice_is_an_error(app: Flask) -> None:
    """A second ``init_app`` on one app says what to do."""
    with pytest.raises(RuntimeError, match="call init_app once"):
        LLMBatches().init_app(app)


def test_a_database_in_the_apps_place_is_said() -> None:
    """``LLMBatches(db)`` says how it is meant."""
    db: Any = SQLAlchemy()
    with pytest.raises(TypeError, match=r"LLMBatches\(db=db\)"):
        LLMBatches(db)


def test_an_owner_that_is_none_is_said(app: Flask) -> None:
    """An owner that is not a string is an error that says how to convert it."""
    number: Any = 1
    with app.app_context():
        for call in (
            lambda: current_llm_batches.create(owner=number, model="openai:m", requests=requests(1)),
            lambda: current_llm_batches.list(owner=number),
            lambda: current_llm_batches.retrieve("b1", owner=number),
        ):
            with pytest.raises(ValueError, match=r"str\(user.id\)"):
                call()


def test_an_app_without_the_extension_says_so() -> None:
    """``current_llm_batches`` in an app that was not initialised says what is missing."""
    with Flask(__name__).app_context(), pytest.raises(RuntimeError, match="Call llm_batches"):
        current_llm_batches.list(owner="ada")


def test_two_apps_share_nothing(tmp_path: Path) -> None:
    """Two apps in one process share no providers, keys or batches."""
    with Simulator() as first, Simulator() as second:
        apps = [
            create_host(
                database=tmp_path / f"{name}.sqlite3",
                providers={name: {"provider": "openai", **simulator.settings}},
                master_key=f"master-{name}",
            )
            for name, simulator in (("one", first), ("two", second))
        ]
        made = [
            create_batch(client_of(app, "ada"), model=f"{name}:m")
            for app, name in zip(apps, ("one", "two"), strict=True)
        ]
        assert [len(simulator.batches) for simulator in (first, second)] == [1, 1]
        for app, own, other, key in ((apps[0], 0, 1, "two"), (apps[1], 1, 0, "one")):
            ada = client_of(app, "ada")
            assert [batch["id"] for batch in ada.get("/v1/batches").get_json()["data"]] == [made[own]]
            assert (
                ada.get(f"/v1/batches/{made[other]}?provider={'one' if own == 0 else 'two'}").status_code
                == 404
            )
            assert ada.get(f"/v1/batches/{made[own]}?provider={key}").status_code == 400
            stranger = app.test_client().get("/v1/batches", headers={"X-API-Key": f"master-{key}"})
            assert stranger.status_code == 401


def test_one_extension_serves_several_apps(llm_provider: Simulator, tmp_path: Path) -> None:
    """One LLMBatches and one db in a module serve every app of the factory."""
    db = SQLAlchemy()
    extension = LLMBatches(db=db)
    extension.authenticator(lambda: Principal("ada"))
    for name in ("a", "b"):
        app = Flask(__name__)
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / name}.sqlite3"
        app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
        db.init_app(app)
        extension.init_app(app)
        with app.app_context():
            db.create_all()
        create_batch(app.test_client())
        assert len(app.test_client().get("/v1/batches").get_json()["data"]) == 1


def test_the_hosts_pages_stay_the_hosts(make_host: MakeHost) -> None:
    """The host's own error pages answer everywhere but under our prefix."""
    app = make_host()
    app.register_error_handler(404, lambda _: ("our own page", 404))
    app.register_error_handler(405, lambda _: ("our own page", 405))
    app.register_error_handler(Exception, lambda _: ("our own page", 500))
    app.add_url_rule("/boom", view_func=lambda: str(1 / 0))
    client = client_of(app, "ada")
    assert client.get("/nowhere").text == "our own page"
    assert client.post("/boom").text == "our own page"
    assert client.get("/boom").text == "our own page"
    assert client.get("/v1/batches/b1?provider=openai").get_json()["error"]["code"] == "not_found"
    assert client.put("/v1/batches").get_json()["error"]["code"] == "method_not_allowed"
    assert client.get("/v1/batches?limit=0").status_code == 422


def test_the_host_may_register_the_blueprint(llm_provider: Simulator) -> None:
    """With ``register_blueprint=False`` nothing is registered until the host does, where it likes."""
    app = Flask(__name__)
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    extension = LLMBatches()
    extension.authenticator(lambda: Principal("ada"))
    extension.init_app(app, register_blueprint=False)
    assert not [rule for rule in app.url_map.iter_rules() if "batches" in rule.rule]
    app.register_blueprint(extension.blueprint, url_prefix="/mine")
    batch = app.test_client().post("/mine", json={"model": "openai:m", "requests": requests(1)})
    assert batch.status_code == 200


def test_a_host_without_a_database_gets_a_file(make_host: MakeHost) -> None:
    """The record is a SQLite file in the instance folder, made at the first use and not before."""
    app = make_host()
    file = Path(app.instance_path) / "llm_batches.sqlite3"
    assert not file.exists()
    create_batch(client_of(app, "ada"))
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT owner FROM llm_batches_batch").fetchall() == [("ada",)]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_file_is_the_apps_alone(make_host: MakeHost) -> None:
    """Regression: every user of the machine could read the record of a host without a database."""
    app = make_host()
    create_batch(client_of(app, "ada"))
    modes = {file.name: file.stat().st_mode & 0o777 for file in Path(app.instance_path).iterdir()}
    assert "llm_batches.sqlite3" in modes
    assert set(modes.values()) == {0o600}  # also of what SQLite puts beside it


def test_the_hosts_database_is_found(llm_provider: Simulator, tmp_path: Path) -> None:
    """A host that has Flask-SQLAlchemy on the app but passed no ``db`` shares that one."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    db = SQLAlchemy(app)
    LLMBatches(app)
    assert {"llm_batches_batch", "llm_batches_usage"} <= set(db.metadata.tables)


def test_missing_tables_are_said(
    llm_provider: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without our tables the answer is a 503, before a provider is called."""
    app = create_host(database=tmp_path / "host.sqlite3", providers={"openai": llm_provider.settings})
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database:
        database.execute("DROP TABLE llm_batches_batch")
    body = {"model": "openai:m", "requests": requests(1)}
    answer = client_of(app, "ada").post("/v1/batches", json=body)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "record_unavailable")
    assert not llm_provider.calls
    assert "no such table" in caplog.text
    assert "flask db upgrade" in caplog.text
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database:
        database.execute("DROP TABLE llm_batches_api_key")
    run = app.test_cli_runner().invoke(args=["llm-batches", "keys", "list"])
    assert run.exit_code == 3
    assert run.stderr.startswith("Error: The record of batches is unavailable")


def test_the_hosts_own_code_does_what_the_endpoints_do(app: Flask, llm_provider: Simulator) -> None:
    """``current_llm_batches`` creates, asks, lists, cancels and fetches, in an owner's name."""
    with app.app_context():
        batch = current_llm_batches.create(owner="ada", model="openai:m", requests=requests(2))
        llm_provider.batches[0].finish()
        assert current_llm_batches.retrieve(batch.id, owner="ada").status == "completed"
        assert [found.id for found in current_llm_batches.list(owner="ada").batches] == [batch.id]
        assert len(list(current_llm_batches.results(batch.id, owner="ada"))) == 2
        second = current_llm_batches.create(owner="ada", model="openai:m", requests=iter(requests(1)))
        assert current_llm_batches.cancel(second.id, owner=EVERYONE).status == "cancelling"
    assert client_of(app, "ada").get(f"/v1/batches/{batch.id}").status_code == 200
