"""Built-in keys, over HTTP and on the command line."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from sqlalchemy import event

from flask_llm_batches import current_llm_batches
from tests.conftest import create_batch


@pytest.fixture
def cli(app: Flask) -> FlaskCliRunner:
    return app.test_cli_runner()


def bearer(app: Flask, key: str) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


def test_a_key_is_made_used_and_revoked(app: Flask, cli: FlaskCliRunner) -> None:
    """The key stands alone on the last line of standard output, works, and works no more once revoked."""
    made = cli.invoke(args=["llm-batches", "keys", "create", "--owner", "ada"])
    assert made.exit_code == 0
    key = made.stdout.splitlines()[-1]
    ada = bearer(app, key)
    batch_id = create_batch(ada)
    assert ada.get(f"/v1/batches/{batch_id}").status_code == 200
    assert ada.get("/v1/batches?provider=openai").get_json()["data"][0]["id"] == batch_id
    other = cli.invoke(args=["llm-batches", "keys", "create", "--owner", "bob"]).stdout.splitlines()[-1]
    assert bearer(app, other).get(f"/v1/batches/{batch_id}?provider=openai").status_code == 404

    listed = cli.invoke(args=["llm-batches", "keys", "list"]).stdout.splitlines()
    assert len(listed) == 2
    assert listed[0].split("\t") == ["1", f"{key[:11]}...", listed[0].split("\t")[2], "valid", "ada"]
    assert key not in "".join(listed)
    assert cli.invoke(args=["llm-batches", "keys", "revoke", "1"]).exit_code == 0
    assert ada.get("/v1/batches").status_code == 401
    assert bearer(app, other).get("/v1/batches").status_code == 200
    assert "revoked" in cli.invoke(args=["llm-batches", "keys", "list"]).stdout


def test_what_cannot_be_done_with_keys_is_said(cli: FlaskCliRunner) -> None:
    """An unknown key or an invalid owner is an error that says what to do."""
    gone = cli.invoke(args=["llm-batches", "keys", "revoke", "7"])
    assert gone.exit_code == 2
    assert "keys list" in gone.stderr
    nobody = cli.invoke(args=["llm-batches", "keys", "create", "--owner", ""])
    assert nobody.exit_code == 2
    assert "1 to 255 characters" in nobody.stderr


def test_an_admins_key_is_an_admins(app: Flask, cli: FlaskCliRunner) -> None:
    """A key made with ``--admin`` sees what the provider has."""
    key = cli.invoke(
        args=["llm-batches", "keys", "create", "--owner", "root", "--admin"]
    ).stdout.splitlines()[-1]
    assert bearer(app, key).get("/v1/batches").status_code == 422
    assert bearer(app, key).get("/v1/batches?provider=openai").status_code == 200


def test_keys_are_kept_as_hashes(app: Flask, tmp_path: Path) -> None:
    """The database has nothing of a key but its hash and how it begins."""
    with app.app_context():
        key = current_llm_batches.keys.create(owner="ada")
    with closing(sqlite3.connect(tmp_path / "host.sqlite3")) as database:
        stored = "\n".join(database.iterdump())
    assert key[:11] in stored
    assert key[11:] not in stored


def test_a_key_costs_one_query(app: Flask) -> None:
    """Looking a key up is one query, by the column that is indexed; what is no key of ours is none."""
    with app.app_context():
        key = current_llm_batches.keys.create(owner="ada")
        engine = current_llm_batches._database.engine()
    queries: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: queries.append(call[2]))
    assert bearer(app, key).get("/v1/batches?limit=0").status_code == 422
    assert bearer(app, "wrong").get("/v1/batches").status_code == 401
    (query,) = queries
    assert "WHERE llm_batches_api_key.key_hash = ?" in query


@pytest.mark.parametrize("wrong", ["", "llmb_", "llmb_wrong", "llmb_" + "x" * 43, "LLMB_", "llmb_\u00ff"])
def test_wrong_keys_are_nobodys(app: Flask, wrong: str) -> None:
    """Keys that are none of ours are a 401, whatever they look like."""
    with app.app_context():
        current_llm_batches.keys.create(owner="ada")
        assert current_llm_batches.keys.verify(wrong) is None


def test_the_openapi_document_is_printed(cli: FlaskCliRunner) -> None:
    """``flask llm-batches openapi`` prints the document."""
    printed = cli.invoke(args=["llm-batches", "openapi"]).stdout
    assert "/v1/batches/{batch_id}/results" in json.loads(printed)["paths"]
