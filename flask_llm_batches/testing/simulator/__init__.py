"""A provider on loopback that speaks OpenAI's files and batches.

Real SDKs talk to it over real sockets. It has a clock to wind, a way to break, a way to answer, and it
remembers every call it got.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from flask import Flask
from werkzeug.wrappers import Request, Response

from flask_llm_batches.testing.simulator.batches import Respond, SimulatedBatch, echo
from flask_llm_batches.testing.simulator.openai import create_blueprint, error_response
from flask_llm_batches.testing.simulator.server import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Call", "SimulatedBatch", "Simulator"]


@dataclass(frozen=True, slots=True)
class Call:
    """A request that the simulator got.

    Attributes:
        method: Its method.
        path: Its path below the base URL: ``/batches/batch_1``.
        headers: Its headers.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)


@dataclass(slots=True)
class _Fault:
    """What goes wrong with the next call whose method and path begin with ``on``."""

    on: str
    act: Callable[[WSGIEnvironment], Response | None]


class Simulator:
    """A provider. Use it as a context manager, or call ``start`` and ``stop``.

    Args:
        respond: Answers a request: gets the line of the input file, gives the body of the response, or a
            status and a body. Echoes the last message unless given.
        seconds: A batch is finished so many seconds after it was first asked after; None leaves the clock to
            you: ``simulator.batches[0].finish()``.
        port: Where to listen on 127.0.0.1; 0 takes a free one.

    Attributes:
        api_key: The one key it accepts.
        calls: Every call it got, oldest first.
        respond: As above; may be replaced at any time.
        next_batch_id: The id of the next batch, for ids of another shape than OpenAI's.
    """

    api_key = "sk-simulated-4f1d2c3b5a69788"

    def __init__(self, *, respond: Respond = echo, seconds: float | None = None, port: int = 0) -> None:
        self.respond = respond
        self.seconds = seconds
        self.calls: list[Call] = []
        self.next_batch_id: str | None = None
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self._batches: dict[str, SimulatedBatch] = {}
        self._faults: list[_Fault] = []
        self._stopping = threading.Event()
        app = Flask(__name__)
        app.register_blueprint(create_blueprint(self), url_prefix="/v1")
        self._app = app.wsgi_app
        self._server = Server(port, self._serve)

    @property
    def base_url(self) -> str:
        """Where an SDK finds it: ``http://127.0.0.1:PORT/v1``."""
        return f"http://127.0.0.1:{self._server.port}/v1"

    @property
    def settings(self) -> dict[str, str]:
        """Its entry for ``LLM_BATCHES_PROVIDERS``: ``{"openai": simulator.settings}``."""
        return {"api_key": self.api_key, "api_base": self.base_url}

    @property
    def batches(self) -> list[SimulatedBatch]:
        """Every batch, oldest first."""
        return list(self._batches.values())

    def start(self) -> Self:
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop listening, and end every connection."""
        self._stopping.set()
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def calls_to(self, method_and_path: str) -> list[Call]:
        """Give the calls to exactly this method and path: ``"POST /batches"``."""
        return [call for call in self.calls if f"{call.method} {call.path}" == method_and_path]

    def fail_next(
        self,
        status: int = 500,
        *,
        on: str = "",
        message: str = "The server had an error while processing your request",
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
    ) -> None:
        """Have the next call answered with an error.

        Args:
            status: Its status.
            on: Only a call whose method and path begin so: ``"POST /batches"``.
            message: What the provider says.
            headers: Further headers, such as ``Retry-After``.
            body: The whole body, instead of OpenAI's JSON with the message.
        """

        def act(_environ: WSGIEnvironment) -> Response:
            response = error_response(status, message, code=None) if body is None else Response(body, status)
            response.headers.update(headers or {})
            return response

        self._faults.append(_Fault(on, act))

    def drop_next(self, *, on: str = "") -> None:
        """Have the connection of the next call dropped without an answer."""

        def act(environ: WSGIEnvironment) -> Response:
            self._server.drop(environ)
            raise ConnectionAbortedError

        self._faults.append(_Fault(on, act))

    def delay_next(self, seconds: float, *, on: str = "") -> None:
        """Have the next call answered so much later."""

        def act(_environ: WSGIEnvironment) -> None:
            self._stopping.wait(seconds)

        self._faults.append(_Fault(on, act))

    def add(self, batch: SimulatedBatch) -> None:
        """Take a batch in; its output files can be downloaded from then on."""
        with self.lock:
            self._batches[batch.id] = batch

    def find(self, batch_id: str) -> SimulatedBatch | None:
        """Give a batch as it is now."""
        with self.lock:
            batch = self._batches.get(batch_id)
            if batch is not None:
                batch.look()
            return batch

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        path = request.path.removeprefix("/v1")
        self.calls.append(Call(request.method, path, dict(request.headers)))
        with self.lock:
            found = next((f for f in self._faults if f"{request.method} {path}".startswith(f.on)), None)
            if found is not None:
                self._faults.remove(found)
        response = found.act(environ) if found is not None else None
        return self._app(environ, start_response) if response is None else response(environ, start_response)
