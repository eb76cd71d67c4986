"""Creates that go wrong, and what comes after."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import msgspec
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse
from werkzeug.wrappers import Response

from flask_llm_batches.testing import Simulator
from flask_llm_batches.testing.simulator import Call
from tests.databases import query
from tests.hosts import requests

CREATES = {
    "openai": "POST /batches",
    "mistral": "POST /batch/jobs",
    "anthropic": "POST /messages/batches",
}
LISTS = {name: create.replace("POST", "GET") for name, create in CREATES.items()}

WINDOW = 3600
"""The default of ``LLM_BATCHES_SEARCH_WINDOW``."""

FOUND = "1 found, 0 not there, 0 still unknown"
NOT_THERE = "0 found, 1 not there, 0 still unknown"
STILL_UNKNOWN = "0 found, 0 not there, 1 still unknown"
NOTHING = "0 found, 0 not there, 0 still unknown"


def create(
    client: FlaskClient, provider: str, count: int = 2, *, key: str | None = None, **fields: Any
) -> TestResponse:
    """Ask for a batch."""
    body = {"model": f"{provider}:m", "requests": requests(count, max_tokens=9), **fields}
    return client.post("/v1/batches", json=body, headers={"Idempotency-Key": key} if key else {})


def go_wrong(simulator: Simulator, provider: str, fault: str = "drop", *, done: bool) -> None:
    """Make the next create end without a usable answer, before or after the provider made the batch."""
    on = CREATES[provider]
    if fault == "drop":
        simulator.drop_next(on=on, after=0 if done else None)
    elif fault == "hang":
        simulator.delay_next(30, on=on, after=0 if done else None)
    else:
        simulator.fail_next(500, on=on, done=done)


def reconcile(app: Flask, *options: str) -> str:
    """Run the command and return its last line."""
    result = app.test_cli_runner().invoke(args=["llm-batches", "reconcile", *options])
    assert result.exit_code == 0, result.output
    return str(result.stdout).splitlines()[-1]


def ids(client: FlaskClient) -> list[str]:
    """Return the ids of a caller's list."""
    return [batch["id"] for batch in client.get("/v1/batches").get_json()["data"]]


def own_ids(database: str) -> list[str]:
    """Return our own ids of all batches, oldest first."""
    return [f"batch_{uid}" for (uid,) in query(database, "SELECT uid FROM llm_batches_batch ORDER BY id")]


def rewrite_lists(simulator: Simulator, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the provider's lists of batches before they are sent."""

    def rewrite(call: Call, response: Response) -> Response:
        if f"{call.method} {call.path}" in LISTS.values() and response.status_code == 200:
            page = response.get_json()
            change(page)
            response.data = msgspec.json.encode(page)
        return response

    simulator.rewrite = rewrite


def show_nothing(page: dict[str, Any]) -> None:
    """Show no batches, as a list that lags behind."""
    page["data"] = []
    page["has_more"] = False


def states(database: str) -> list[str]:
    return [row[0] for row in query(database, "SELECT state FROM llm_batches_batch ORDER BY id")]


def time_passes(database: str, seconds: int) -> None:
    """Make everything in the record older, as if time had passed without a call."""
    query(
        database,
        f"UPDATE llm_batches_batch SET created_at = created_at - {seconds}, "
        f"lease_until = lease_until - {seconds}",
    )
    query(database, f"UPDATE llm_batches_provider SET searched_at = searched_at - {seconds}")


def process_dies(database: str) -> None:
    """Change creates without an answer as if their process had died while it waited."""
    query(
        database,
        "UPDATE llm_batches_batch SET state = 'submitting', lease_token = 'dead' WHERE state = 'unknown'",
    )
    query(database, "DELETE FROM llm_batches_usage")


def left_in_cycles(fail: Callable[[], None], *kinds: type) -> list[object]:
    """Return the frames, tracebacks and objects of some kinds that a call leaves in reference cycles."""
    fail()  # the first one imports and caches
    gc.collect()
    gc.disable()
    try:
        fail()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [one for one in gc.garbage if isinstance(one, (FrameType, TracebackType, *kinds))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
