"""What operators see: lines of the log that name the request behind them, and OpenTelemetry's spans."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from flask_llm_batches.testing import Simulator
from tests.conftest import create_batch
from tests.faults import create
from tests.hosts import requests
from tests.test_worker import tick


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Collect the spans of a test."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def test_lines_name_the_request_that_caused_them(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The create's line has the caller's X-Request-ID, and so have the lines of every step of its batch."""
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    caplog.set_level(logging.INFO, logger="flask_llm_batches")
    body = {"model": "openai:gpt-4o-mini", "requests": requests(1)}
    made = ada.post("/v1/batches", json=body, headers={"X-Request-ID": "req-1/a"}).get_json()
    assert f"batch {made['id']!r} at 'openai' has 1 requests (request req-1/a)" in caplog.text
    llm_provider.batches[0].finish()
    caplog.clear()
    tick(app, database)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("flask_llm_batches")]
    assert [line.split()[0] for line in lines] == ["refresh", "archive"]
    assert all(line.endswith(" (request req-1/a)") for line in lines)


@pytest.mark.parametrize("wrong", ["a\tb", "%s", "x" * 129, "\u00e9", ""])
def test_ids_that_could_forge_a_line_are_not_logged(
    ada: FlaskClient, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """Such an id is left out, and nothing else changes."""
    caplog.set_level(logging.INFO, logger="flask_llm_batches")
    body = {"model": "openai:gpt-4o-mini", "requests": requests(1)}
    answer = ada.post("/v1/batches", json=body, environ_overrides={"HTTP_X_REQUEST_ID": wrong})
    assert answer.status_code == 200
    assert "has 1 requests" in caplog.text
    assert "(request" not in caplog.text


def test_provider_calls_ticks_and_steps_are_spans(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    """A provider call is a child of its step, a step of its tick."""
    batch_id = create_batch(ada)
    ada.get(f"/v1/batches/{batch_id}")
    llm_provider.batches[0].finish()
    tick(app, f"sqlite:///{tmp_path / 'host.sqlite3'}")
    found = spans.get_finished_spans()
    names = {one.context.span_id: one.name for one in found if one.context}
    parents = [
        (one.name.removeprefix("llm_batches."), names.get(one.parent.span_id) if one.parent else None)
        for one in found
    ]
    assert parents == [
        ("provider.create", None),
        ("provider.retrieve", None),
        ("provider.retrieve", "llm_batches.refresh"),
        ("refresh", "llm_batches.tick"),
        ("provider.results", "llm_batches.archive"),
        ("archive", "llm_batches.tick"),
        ("tick", None),
    ]
    assert {(one.attributes or {})["llm_batches.provider"] for one in found[:-1]} == {"openai"}


def test_a_failure_is_named_and_says_nothing_else(
    ada: FlaskClient, llm_provider: Simulator, spans: InMemorySpanExporter
) -> None:
    """The text of a provider's error may hold a key, so a span has the class only."""
    llm_provider.fail_next(500, on="POST /batches", body="the key is sk-0123456789abcdef0123")
    create(ada, "openai")
    (found,) = spans.get_finished_spans()
    assert (found.status.is_ok, found.status.description, found.events) == (False, None, ())
    assert (found.attributes or {})["error.type"] == "InternalServerError"
    assert "sk-" not in found.to_json()


def test_nothing_is_needed_for_no_spans() -> None:
    """Without ``opentelemetry-api``, the package works as before."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import flask_llm_batches; from flask_llm_batches.tracing import span\n"
        "with span('a', provider='b'): print('works')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "works\n"
