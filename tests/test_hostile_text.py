"""Text of providers meets no slow pattern, forges no log line, and leaves no part of a key."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import re
import subprocess
import sys

import pytest
from flask.testing import FlaskClient

from flask_llm_batches import fields, providers
from flask_llm_batches.config import Settings
from flask_llm_batches.providers.failures import REDACTED, Redactor
from flask_llm_batches.testing import Simulator
from tests.conftest import create_batch
from tests.hosts import requests

LENGTH = 2_000_000

# For each pattern that sees what a provider wrote: how it is used, and what it is slowest with when repeated.
WORST = {
    "flask_llm_batches.fields._HALF": ("search", ["a"]),
    "flask_llm_batches.fields._ID": ("fullmatch", ["a", "/", "a/", "./", "a.a.a/"]),
    "flask_llm_batches.providers.adapters.anthropic._CUSTOM_ID": ("fullmatch", ["a"]),
    "flask_llm_batches.providers.adapters.pictures._BASE64": (
        "fullmatch",
        ["a", "data:a/", "data:a/a;", "data:a/a;base64,"],
    ),
    "flask_llm_batches.providers.failures._KEY_SHAPED": (
        "finditer",
        ["a-", "1", "eyJ-", "eyJa.-", "123456-"],
    ),
    "flask_llm_batches.providers.failures._RETRY_AFTER": ("fullmatch", ["1", "Mon, ", "1."]),
    "flask_llm_batches.providers.rows._CUSTOM_ID": (
        "search",
        ['"custom_id"', '"custom_id": ', '"custom_id":"', '"custom_id":"\\', '"custom_id"' + " " * 99],
    ),
    "flask_llm_batches.providers.rows._ESCAPE": ("finditer", ["\\", "\\u", "\\ud83d\\u"]),
}


def patterns() -> set[str]:
    """Return the names of all patterns that are there."""
    modules = [fields]
    modules += [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(providers.__path__, f"{providers.__name__}.")
    ]
    return {
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    }


def test_every_pattern_is_tested() -> None:
    """Whoever adds a pattern that sees foreign text adds its worst input to ``WORST``."""
    assert patterns() == set(WORST)


@pytest.mark.parametrize("name", WORST)
def test_patterns_are_linear(name: str) -> None:
    """2 MB of a pattern's worst input are searched within seconds, which would be hours."""
    module, _, pattern = name.rpartition(".")
    method, worst = WORST[name]
    script = f"""
from {module} import {pattern} as pattern
for worst in {worst!r}:
    text = worst * ({LENGTH} // len(worst))
    found = pattern.{method}(text.encode() if isinstance(pattern.pattern, bytes) else text)
    if {method!r} == "finditer":
        for _ in found:
            pass
print("done")
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert run.stdout == "done\n", run.stderr


def test_long_text_is_redacted_at_once(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Regression: a row error that echoed 100 KB of ``a-a-`` took half a minute; its beginning is kept."""
    llm_provider.respond = lambda _: (400, {"error": {"code": "c-" * 50_000, "message": "a-" * 400_000}})
    batch_id = create_batch(ada)
    llm_provider.batches[0].finish()
    rows = ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]
    assert [row["error"]["message"] for row in rows] == ["a-" * 1000] * 3
    assert [row["error"]["code"] for row in rows] == ["c-" * 50] * 3


@pytest.mark.parametrize("secret", ["some words of ours", "sk-planted-8c1f0e7d6b5a49382716", "long " * 1000])
def test_no_half_key_is_left_at_the_end(secret: str) -> None:
    """Wherever a long text is cut, and however much shorter it has become before, a key is whole or gone."""
    redact = Redactor(Settings.from_config({"LLM_BATCHES_PROVIDERS": {"openai": {"api_key": secret}}}))
    for before in (*range(1980, 2020), *range(5980, 6020)):
        for text in ("." * before + secret * 3, "." * (before % 40) + (secret + ".") * 400):
            left = redact(text).replace(REDACTED, "").strip(".")
            assert left == "", (before, left)


def test_a_provider_forges_no_line_of_a_log(
    admin: FlaskClient, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """What a provider says, or echoes of what a caller chose, stands in one line of the log."""
    forged = "24h\nCRITICAL root: all is lost\r\n\x1b[31m"
    llm_provider.fail_next(500, message=forged)
    batch = {"model": "openai:m", "requests": requests(1), "completion_window": "24h"}
    assert admin.post("/v1/batches", json=batch).status_code == 502
    ours = [record for record in caplog.records if record.name.startswith("flask_llm_batches")]
    assert ours
    for record in ours:
        assert record.levelno >= logging.INFO
        assert not set(record.getMessage()) & {"\n", "\r", "\x1b"}


@pytest.mark.parametrize("value", ["\u0663", "\u00b2", "\uff11\uff17", "1" * 40, "Mon", "-1", "soon"])
def test_a_retry_after_that_is_none_is_not_passed_on(
    ada: FlaskClient, llm_provider: Simulator, value: str
) -> None:
    """Regression: digits of other alphabets were a 500; nothing but a number or a date goes on."""
    batch_id = create_batch(ada)
    headers = {"Retry-After": value.encode().decode("latin-1")}
    llm_provider.fail_next(429, headers=headers)
    answer = ada.get(f"/v1/batches/{batch_id}")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (429, "rate_limited")
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize("value", ["17", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_is_passed_on(ada: FlaskClient, llm_provider: Simulator, value: str) -> None:
    """Seconds and dates are the caller's to know."""
    batch_id = create_batch(ada)
    llm_provider.fail_next(429, headers={"Retry-After": value})
    assert ada.get(f"/v1/batches/{batch_id}").headers["Retry-After"] == value
