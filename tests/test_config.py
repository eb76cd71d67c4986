"""Settings are read once, and wrong ones are errors of ``init_app``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_batches import ConfigurationError, LLMBatches, Principal, current_llm_batches
from flask_llm_batches.config import Settings
from flask_llm_batches.errors import RecordUnavailable


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "TIMEOUTS",
            3,
            "LLM_BATCHES_TIMEOUTS is no setting of flask-llm-batches; did you mean LLM_BATCHES_TIMEOUT?",
        ),
        ("XYZ", 3, "known are LLM_BATCHES_BIND_KEY"),
        ("TIMEOUT", 0, "LLM_BATCHES_TIMEOUT must be a number of seconds above 0, not 0"),
        ("TIMEOUT", "60", "not '60'"),
        ("TIMEOUT", float("inf"), "not inf"),
        ("TRANSFER_TIMEOUT", True, "not True"),
        ("MAX_REQUESTS", 0, "a whole number from 1 up, not 0"),
        ("MAX_CONTENT_LENGTH", 1.5, "not 1.5"),
        ("URL_PREFIX", "v1/batches", "begins with a slash"),
        ("URL_PREFIX", "/v1/", "does not end with one"),
        ("URL_PREFIX", None, "not None"),
        ("MASTER_KEY", "", "not an empty string"),
        ("MASTER_KEY", "with space", "visible ASCII"),
        ("BIND_KEY", "", "SQLALCHEMY_BINDS"),
        ("UNTRACKED", "maybe", '"deny" or "allow", not \'maybe\''),
        ("SPOOL_DIR", "/nowhere", "an existing folder"),
        ("SPOOL_DIR", "", "an existing folder"),
        ("FILES_URL_PREFIX", "/v1/batches", "another path than those of LLM_BATCHES_URL_PREFIX"),
        ("STORAGE", None, '"database", the URL of a folder such as "file:///srv/batches"'),
        ("STORAGE", "/srv/batches", "the URL of a folder"),
        ("STORAGE", "file:///nowhere", "the URL of an existing folder, not 'file:///nowhere'"),
        ("STORAGE", "file://server/folder", "the URL of a folder"),
        ("STORAGE", "s3://[", "LLM_BATCHES_STORAGE cannot be 's3://[': "),
        ("STORAGE", "http://bucket", '"s3://bucket/path"'),
        ("STORAGE", "s3://key:sk-secret@bucket", "whose keys are in the environment, not str"),
        ("STORAGE", "az://container", "LLM_BATCHES_STORAGE cannot be 'az://container': "),
        ("RETENTION", -1, "LLM_BATCHES_RETENTION must be a whole number of days, from 0 up, not -1"),
        ("RETENTION", 1.5, "not 1.5"),
        ("PROVIDERS", {}, "a dict such as"),
        ("PROVIDERS", ["openai"], "not list"),
        ("PROVIDERS", {"openai": "sk-secret"}, "LLM_BATCHES_PROVIDERS['openai'] must be a dict"),
        ("PROVIDERS", {"openai": {"key": "sk-secret"}}, "unknown option 'key'; known are provider, api_key"),
        ("PROVIDERS", {"openai": {"api_key": 3}}, "['api_key'] must be a string"),
        ("PROVIDERS", {"openai": {"api_key": ""}}, "not an empty string"),
        ("PROVIDERS", {"openai": {"client_args": "sk-secret"}}, "a dict of keyword arguments"),
        ("PROVIDERS", {"openai": {"client_args": {"max_retries": 3}}}, "a repeated create makes two batches"),
        ("PROVIDERS", {"a:b": {}}, "letters, digits"),
        ("PROVIDERS", {"openai": {}, "OpenAI": {}}, "twice"),
        ("PROVIDERS", {"opanai": {}}, "any-llm has no provider 'opanai'"),
    ],
)
def test_wrong_settings_are_named(key: str, value: Any, says: str) -> None:
    """A wrong setting is an error that names the key, what is wrong and the fix, and shows no secret."""
    app = Flask(__name__)
    app.config[f"LLM_BATCHES_{key}"] = value
    with pytest.raises(ConfigurationError) as caught:
        LLMBatches(app)
    assert says in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_right_settings_are_taken(tmp_path: Path) -> None:
    """Every setting is accepted; two entries may be of the same kind."""
    settings = Settings.from_config(
        {
            "LLM_BATCHES_PROVIDERS": {
                "EU": {"provider": "OpenAI", "api_base": "http://eu"},
                "neosantara": {},
            },
            "LLM_BATCHES_URL_PREFIX": "/api/v1/batches",
            "LLM_BATCHES_SPOOL_DIR": tmp_path,
            "LLM_BATCHES_STORAGE": tmp_path.as_uri(),
            "LLM_BATCHES_RETENTION": 0,
            "LLM_BATCHES_TIMEOUT": 5,
            "SECRET_KEY": "of the host",
        }
    )
    assert settings.providers is not None
    assert settings.providers["eu"].name == "eu"
    assert settings.providers["eu"].kind == "openai"
    assert settings.storage == tmp_path.as_uri()
    assert settings.retention == 0
    assert settings.timeout == 5.0
    assert settings.max_requests == 1_000_000


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store without its package is an error of init_app that says what to install."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    app = Flask(__name__)
    app.config["LLM_BATCHES_STORAGE"] = "s3://bucket"
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-llm-batches\[storage\]'"):
        LLMBatches(app)


def test_settings_show_no_secret() -> None:
    """The repr of the settings, which ends up in logs, has no key."""
    config = {"LLM_BATCHES_MASTER_KEY": "s3cret", "LLM_BATCHES_PROVIDERS": {"openai": {"api_key": "s3cret"}}}
    settings = Settings.from_config(config)
    assert settings.providers is not None
    assert "s3cret" not in repr(settings) + repr(dict(settings.providers))


@pytest.mark.parametrize("owner", ["", "x" * 256, 3, None])
def test_an_owner_is_a_string(owner: Any) -> None:
    """A Principal with an owner that cannot be kept is refused, with the fix."""
    with pytest.raises(ValueError, match="string of 1 to 255"):
        Principal(owner=owner)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            {"openai": {"api_key": None}},
            "has no key: its api_key is None, and the environment has no OPENAI_API_",
        ),
        ({"gemini": {}}, "the environment has no GEMINI_API_KEY/GOOGLE_API_KEY"),
        ({"neosantara": {}}, "the environment has no NEOSANTARA_API_KEY"),
        (
            {"eu": {"provider": "openai", "api_key": "k", "api_base": "http://eu"}},
            "['eu']['api_base'] has no /v1",
        ),
        ({"anthropic": {"api_key": "k", "api_base": "http://eu/v1/"}}, "['api_base'] ends with /v1"),
        ({"mistral": {"api_key": "k", "api_base": "http://eu/v1"}}, "['api_base'] ends with /v1"),
        ({"openai": {"api_key": "k", "api_base": "http://eu/openai/v1/"}}, None),
        ({"anthropic": {"api_key": "k", "api_base": "http://eu/anthropic"}}, None),
        ({"openai": {"api_key": "k"}}, None),
        ({"vertexai": {}}, None),
        pytest.param(
            {"voyage": {"api_key": "k"}},
            "['voyage'] cannot be called: its package is not installed; pip install 'any-llm-sdk[voyage]'",
            marks=pytest.mark.skipif(find_spec("voyageai") is not None, reason="the package is there"),
        ),
    ],
)
def test_what_cannot_work_is_said_at_the_start(
    entry: dict[str, Any], says: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A provider without its package or key, or with an odd address, is a warning of ``init_app``."""
    app = Flask(__name__)
    app.config["LLM_BATCHES_PROVIDERS"] = entry
    LLMBatches(app)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if says is None:
        assert not warned
    else:
        (message,) = warned
        assert says in message
        assert "http://" not in message


def test_a_bind_key_of_no_bind(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """It is an error of ``init_app``, or a warning if the bind may still be added; then calls are a 503."""
    app = Flask(__name__, instance_path=str(tmp_path))
    app.config["LLM_BATCHES_BIND_KEY"] = "batches"
    with pytest.raises(ConfigurationError, match="'batches', but this app has no Flask-SQLAlchemy"):
        LLMBatches(app)

    db = SQLAlchemy()
    app.config["SQLALCHEMY_BINDS"] = {"other": "sqlite://"}
    extension = LLMBatches(db=db)
    extension.init_app(app)
    assert "must be a key of SQLALCHEMY_BINDS, which has ['other'], not 'batches'" in caplog.text
    db.init_app(app)
    with app.app_context():
        with pytest.raises(RecordUnavailable):
            current_llm_batches.list(owner="ada")
        assert "LLM_BATCHES_BIND_KEY 'batches' is no key of SQLALCHEMY_BINDS" in caplog.text
        db.engines["other"].dispose()

    late = Flask(__name__, instance_path=str(tmp_path))
    late.config.update(app.config)
    db.init_app(late)
    with pytest.raises(ConfigurationError, match="not 'batches'"):
        extension.init_app(late)


class OtherSQLAlchemy:
    """Another extension in the place of Flask-SQLAlchemy, as Flask-SQLAlchemy-Lite is."""

    def init_app(self, app: Flask) -> None:
        app.extensions["sqlalchemy"] = self


def test_a_database_that_is_not_flask_sqlalchemys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Regression: Flask-SQLAlchemy-Lite was an AttributeError. It is a TypeError, or a warning."""
    db = OtherSQLAlchemy()
    with pytest.raises(
        TypeError,
        match=r"Flask-SQLAlchemy's SQLAlchemy\(\), not tests\.test_config's; without db, the record",
    ):
        LLMBatches(db=db)  # type: ignore[arg-type]  # that is the point
    app = Flask(__name__, instance_path=str(tmp_path))
    db.init_app(app)
    LLMBatches(app)
    assert f"the record of batches is in {tmp_path / 'llm_batches.sqlite3'}" in caplog.text
    with app.app_context():
        assert current_llm_batches.list(owner="ada").batches == []
