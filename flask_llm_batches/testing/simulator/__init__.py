"""A simulated provider on loopback, with the batch APIs of OpenAI, Anthropic and Mistral.

Real SDKs talk to it over real sockets. Tests control the progress of its batches, its failures and its
answers, and see every call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO, TYPE_CHECKING, Self

from flask import Flask
from flask import Request as FlaskRequest
from werkzeug.wrappers import Request, Response

from flask_llm_batches.testing.simulator import anthropic, mistral, openai
from flask_llm_batches.testing.simulator.batches import FINAL, Respond, SimulatedBatch, echo
from flask_llm_batches.testing.simulator.protocol import Refused, WireProtocol, no_such
from flask_llm_batches.testing.simulator.server import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Call", "SimulatedBatch", "Simulator", "echo"]

PROTOCOLS = (openai.PROTOCOL, anthropic.PROTOCOL, mistral.PROTOCOL)


@dataclass(frozen=True, slots=True)
class Call:
    """A call to the simulator.

    Attributes:
        method: Its method.
        path: Its path, without the provider's base URL and version: ``/batches/batch_1``, ``/batch/jobs/ID``.
        headers: Its headers.
        provider: The protocol: ``openai``, ``anthropic`` or ``mistral``.
        target: Its whole path and query as sent, with percent-encoding.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    provider: str = "openai"
    target: str = ""


class _Upload(FlaskRequest):
    def _get_file_stream(self, *_: object, **__: object) -> IO[bytes]:
        return BytesIO()  # in memory: werkzeug's temporary files stay open if the caller hangs up


@dataclass(slots=True)
class _Fault:
    """A fault of the next call whose method and path begin with ``on``."""

    on: str
    act: Callable[[WireProtocol, WSGIEnvironment, StartResponse], Iterable[bytes]]


class Simulator:
    """Simulates three providers. Use it as a context manager, or call ``start`` and ``stop``.

    Args:
        respond: Answers a request. It takes its ``custom_id``, ``method``, ``url`` and ``body``, and returns
            the body of the response, or a status and a body. By default it echoes the last message.
        seconds: A batch ends so many seconds after it was first retrieved. None leaves that to you:
            ``simulator.batches[0].finish()``.
        port: The port on 127.0.0.1; 0 takes a free one.

    Attributes:
        api_key: The one key it accepts.
        calls: Every call, oldest first.
        hang_ups: The calls whose caller hung up before the end of the response.
        respond: The argument; may be replaced at any time.
        token_limit: How many tokens the batches of a model may have that run at the same time; None for no
            limit. Above it, OpenAI accepts a batch and fails it later, and the others answer a 429.
        next_batch_id: The id of the next batch, for ids of another shape than the provider's.
        rewrite: Called with every call and its response; returns the response to send, for tests of wrong
            answers. None changes nothing.
    """

    api_key = "sk-simulated-4f1d2c3b5a69788"

    def __init__(self, *, respond: Respond = echo, seconds: float | None = None, port: int = 0) -> None:
        self.respond = respond
        self.seconds = seconds
        self.calls: list[Call] = []
        self.hang_ups: list[Call] = []
        self.token_limit: int | None = None
        self.next_batch_id: str | None = None
        self.rewrite: Callable[[Call, Response], Response] | None = None
        self.lock = threading.RLock()
        self._batches: dict[tuple[str, str], SimulatedBatch] = {}
        self._faults: list[_Fault] = []
        self._stopping = threading.Event()
        app = Flask(__name__)
        app.request_class = _Upload
        for protocol in PROTOCOLS:
            app.register_blueprint(protocol.create_blueprint(self), url_prefix=protocol.prefix)
        self._app = app.wsgi_app
        self._server = Server(port, self._serve)

    @property
    def base_url(self) -> str:
        """The base URL for OpenAI's SDK, ``http://127.0.0.1:PORT/v1``."""
        return self.settings["api_base"]

    @property
    def settings(self) -> dict[str, str]:
        """OpenAI's entry for ``LLM_BATCHES_PROVIDERS``, as in ``{"openai": simulator.settings}``."""
        return self.providers["openai"]

    @property
    def providers(self) -> dict[str, dict[str, str]]:
        """``LLM_BATCHES_PROVIDERS`` with all three, ``{"openai": {"api_key", "api_base"}, ...}``."""
        root = f"http://127.0.0.1:{self._server.port}"
        return {
            protocol.name: {"api_key": self.api_key, "api_base": root + protocol.base}
            for protocol in PROTOCOLS
        }

    @property
    def batches(self) -> list[SimulatedBatch]:
        """Every batch of every protocol, oldest first."""
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
        """Return the calls to exactly this method and path: ``"POST /batches"``."""
        return [call for call in self.calls if f"{call.method} {call.path}" == method_and_path]

    def fail_next(
        self,
        status: int = 500,
        *,
        on: str = "",
        message: str = "The server had an error while processing your request",
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        done: bool = False,
    ) -> None:
        """Answer the next call with an error.

        Args:
            status: The status of the error.
            on: The start of the method and path of the call: ``"POST /batches"``. By default, any call fails.
            message: The message of the error.
            headers: Further headers, such as ``Retry-After``.
            body: The whole body, instead of the provider's JSON.
            done: The call takes effect nevertheless.
        """

        def act(protocol: WireProtocol, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            error = protocol.error_response(status, message) if body is None else Response(body, status)
            error.headers.update(headers or {})
            if done:
                Response.from_app(self._app, environ)
            return error(environ, start)

        self._faults.append(_Fault(on, act))

    def drop_next(self, *, on: str = "", after: int | None = None) -> None:
        """Drop the connection of the next call.

        Args:
            on: As in ``fail_next``.
            after: The call takes effect, and so many bytes of the answer's body are sent. By default, nothing
                happens and nothing is sent.
        """

        def act(_protocol: WireProtocol, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            def drop() -> None:
                self._server.drop(environ)
                raise ConnectionAbortedError

            if after is None:
                drop()
            return _interrupted(self._app(environ, start), after or 0, drop)

        self._faults.append(_Fault(on, act))

    def delay_next(self, seconds: float, *, on: str = "", after: int | None = None) -> None:
        """Delay the answer to the next call.

        Args:
            seconds: The length of the pause.
            on: As in ``fail_next``.
            after: The call takes effect, and so many bytes of the answer's body are sent before the pause: a
                download that stalls. By default, the pause comes first.
        """

        def act(_protocol: WireProtocol, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            if after is None:
                self._stopping.wait(seconds)
                return self._app(environ, start)
            return _interrupted(
                self._app(environ, start), after, lambda: self._server.pause(environ, seconds)
            )

        self._faults.append(_Fault(on, act))

    def add(self, batch: SimulatedBatch) -> None:
        """Add a batch.

        Raises:
            Refused: There is no room for it. OpenAI's batches fail later instead.
        """
        with self.lock:
            if batch.protocol != openai.NAME and not self._has_room(batch):
                raise Refused("This request would exceed your account's rate limit", status=429)
            self._batches[batch.protocol, batch.id] = batch

    def new_id(self, id_: str) -> str:
        """Return ``next_batch_id`` for a new batch, if it is set, otherwise ``id_``."""
        with self.lock:
            id_, self.next_batch_id = self.next_batch_id or id_, None
            return id_

    def find(self, protocol: str, batch_id: str) -> SimulatedBatch:
        """Return a batch of a protocol, after an update of its progress."""
        with self.lock:
            batch = self._batches.get((protocol, batch_id))
            if batch is None:
                raise no_such("Batch", batch_id)
            is_new = batch.protocol == openai.NAME and batch.status == "validating" and not batch.errors
            if is_new and not self._has_room(batch):
                batch.errors.append(openai.no_room(str(batch.model), self.token_limit or 0))
            batch.look()
            return batch

    def newest_first(self, protocol: str) -> list[str]:
        """Return the ids of a protocol's batches, newest first."""
        return [batch.id for batch in reversed(self.batches) if batch.protocol == protocol]

    def _has_room(self, batch: SimulatedBatch) -> bool:
        if self.token_limit is None:
            return True
        tokens = batch.tokens
        for other in self.batches:
            if other.protocol == batch.protocol and other.model == batch.model and other is not batch:
                if other.status == "validating" and other.protocol == openai.NAME:
                    continue
                other.look()
                if other.status not in FINAL:
                    tokens += other.tokens
        return tokens <= self.token_limit

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        protocol = next((p for p in PROTOCOLS if request.path.startswith(f"{p.prefix}/")), openai.PROTOCOL)
        path = request.path.removeprefix(protocol.prefix)
        call = Call(request.method, path, dict(request.headers), protocol.name, environ["REQUEST_URI"])
        self.calls.append(call)
        with self.lock:
            found = next((f for f in self._faults if f"{call.method} {call.path}".startswith(f.on)), None)
            if found is not None:
                self._faults.remove(found)
        if found is None and self.rewrite is not None:
            body = self.rewrite(call, Response.from_app(self._app, environ))(environ, start_response)
        elif found is None:
            body = self._app(environ, start_response)
        else:
            body = found.act(protocol, environ, start_response)
        return self._watched(call, body)

    def _watched(self, call: Call, body: Iterable[bytes]) -> Iterator[bytes]:
        try:
            yield from body
        except (GeneratorExit, ConnectionResetError):
            if not self._stopping.is_set():
                self.hang_ups.append(call)
            raise


def _interrupted(body: Iterable[bytes], after: int, interrupt: Callable[[], None]) -> Iterator[bytes]:
    yield b""  # this sends the headers
    data = b"".join(body)
    yield data[:after]
    interrupt()
    yield data[after:]
