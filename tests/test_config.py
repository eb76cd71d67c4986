"""Settings are read once, and what is wrong with them is said at ``init_app``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_llm_batches import ConfigurationError, LLMBatches, Principal
from flask_llm_batches.config import Settings


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
    """Every setting has its place; a provider's entry may stand for another of the same kind."""
    settings = Settings.from_config(
        {
            "LLM_BATCHES_PROVIDERS": {
                "EU": {"provider": "OpenAI", "api_base": "http://eu"},
                "neosantara": {},
            },
            "LLM_BATCHES_URL_PREFIX": "/api/v1/batches",
            "LLM_BATCHES_SPOOL_DIR": tmp_path,
            "LLM_BATCHES_TIMEOUT": 5,
            "SECRET_KEY": "of the host",
        }
    )
    assert settings.providers is not None
    assert settings.providers["eu"].name == "EU"
    assert settings.providers["eu"].kind == "openai"
    assert settings.timeout == 5.0
    assert settings.max_requests == 100_000


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
