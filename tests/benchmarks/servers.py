"""The two contenders, each one gthread worker of gunicorn."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from flask_llm_batches.testing import Simulator
from tests.benchmarks.measure import Memory
from tests.benchmarks.wire import CONNECTIONS, call, check_created, json_body
from tests.servers import Running, gunicorn


class Contender:
    """A server under test.

    Attributes:
        url: Where its batches are.
        query: What must stand behind the id of a batch.
        memory: Its worker's.
    """

    def __init__(self, server: Running, query: str) -> None:
        self.url = f"{server.url}/v1/batches"
        self.query = query
        warm = self.create(3)
        call(self.at(warm))
        call(self.at(warm, "/results"))
        (worker,) = server.workers()
        self.memory = Memory(worker)

    def at(self, batch_id: str, what: str = "") -> str:
        return f"{self.url}/{batch_id}{what}?{self.query}"

    def create(self, count: int, state: str = "completed") -> str:
        """Make a batch that is finished at the first look, or in another state for ever."""
        body = json_body(count) if state == "completed" else json_body(count, metadata={"state": state})
        return check_created(call(self.url, method="POST", body=body), count)


@contextmanager
def ours(simulator: Simulator, folder: Path, arguments: str = "") -> Iterator[Contender]:
    with _server(simulator, folder, "ours", arguments) as server:
        yield Contender(server, "")


@contextmanager
def both(simulator: Simulator, folder: Path) -> Iterator[tuple[Contender, Contender]]:
    """Run ours, with its record in the folder, and the naive one."""
    os.environ.update(NAIVE_API_KEY=simulator.api_key, NAIVE_API_BASE=simulator.base_url)
    with ExitStack() as stack:
        elsewhere = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        naive = stack.enter_context(_server(simulator, elsewhere, "naive"))
        yield stack.enter_context(ours(simulator, folder)), Contender(naive, "provider=openai")


def _server(
    simulator: Simulator, folder: Path, name: str, arguments: str = ""
) -> AbstractContextManager[Running]:
    options = ("--workers=1", f"--threads={CONNECTIONS}", "--timeout=600")
    return gunicorn(simulator, folder, *options, app=f"tests.benchmarks.{name}:create_app({arguments})")
