"""Processes to kill: ``python -m tests.killed POINT MODEL`` kills itself at a point of a create."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from flask import Flask

from flask_llm_batches.providers.adapters.anthropic import AnthropicAdapter
from flask_llm_batches.providers.adapters.openai import OpenAIAdapter
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.store import batches, idempotency, manifests
from flask_llm_batches.web import batches as views
from tests.hosts import dispose, from_environment, requests

ADAPTERS = {"openai": OpenAIAdapter, "anthropic": AnthropicAdapter}


def body(model: str) -> dict[str, Any]:
    """Return the body of a create whose upload takes several writes."""
    return {"model": model, "requests": requests(2000, max_tokens=9)}


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def before(place: Any, name: str) -> None:
    setattr(place, name, die)


def after(place: Any, name: str) -> None:
    work = getattr(place, name)

    def last(*arguments: Any, **named: Any) -> None:
        work(*arguments, **named)
        die()

    async def last_awaited(*arguments: Any, **named: Any) -> None:
        await work(*arguments, **named)
        die()

    setattr(place, name, last_awaited if place in ADAPTERS.values() else last)


def half_read(_provider: str) -> None:
    class Half(FileIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            return die() if self.reads == 3 else super().read(-1 if size is None else min(size, 1 << 14))

    usual = Path.open

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:
        return Half(path) if path.suffix == ".jsonl" else usual(path, *arguments, **named)

    Path.open = opened  # type: ignore[method-assign,assignment]


POINTS: dict[str, Callable[[str], None]] = {
    "before the intent": lambda _: before(batches.Batches, "begin"),
    "in the intent": lambda _: before(manifests, "_packed"),
    "after the intent": lambda _: after(batches.Batches, "begin"),
    "before the submit": lambda _: before(Providers, "submit"),
    "before the upload": lambda provider: before(ADAPTERS[provider], "upload"),
    "during the upload": half_read,
    "after the upload": lambda provider: after(ADAPTERS[provider], "upload"),
    "after the create": lambda provider: after(ADAPTERS[provider], "create"),
    "after the submit": lambda _: after(Providers, "submit"),
    "before the record": lambda _: before(batches.Batches, "accepted"),
    "in the record": lambda _: after(idempotency, "record_answer"),
    "after the record": lambda _: after(batches.Batches, "accepted"),
    "before the answer": lambda _: before(views, "answer"),
    "never": lambda _: None,
}


def ready() -> Flask:
    """Make the app of a server that has imported everything before it forks its workers."""
    import any_llm.providers.openai  # noqa: F401

    app = from_environment()
    dispose(app)  # a connection that is forked is two workers' at once
    return app


def impatient() -> Flask:
    """Make that app with short timeouts, for a provider that hangs."""
    import any_llm.providers.openai  # noqa: F401

    app = from_environment(timeout=1.5, transfer_timeout=4)
    dispose(app)
    return app


SMALL = 20
"""The requests of a part, where parts are small."""


def parted() -> Flask:
    """Make that app with small parts."""
    OpenAIAdapter.max_requests = SMALL
    return ready()


if __name__ == "__main__":
    point, model = sys.argv[1:]
    app = from_environment()
    POINTS[point](model.partition(":")[0])
    headers = {"X-User": "ada", "Idempotency-Key": "k"}
    print(app.test_client().post("/v1/batches", json=body(model), headers=headers).text)  # noqa: T201
