"""Callers that use little CPU time, as they share two cores with the measured process."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

MODEL = "openai:gpt-4o-mini"
HEADERS = {"X-User": "ada"}
CONNECTIONS = 8


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: Its status.
        body: All of it.
        seconds: Until its end, from before the connection was made.
        first_byte: Seconds until the first byte of the body.
        first_row: Seconds until the first result; None if there is none.
    """

    status: int
    body: bytes
    seconds: float
    first_byte: float
    first_row: float | None

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class _Row(msgspec.Struct):
    custom_id: str
    result: msgspec.Raw
    error: None


class _Results(msgspec.Struct):
    results: list[_Row]


def call(
    url: str,
    *,
    method: str = "GET",
    kind: str = "application/json",
    body: bytes | Iterable[bytes] = b"",
    accept: str = "*/*",
    keep: bool = True,
) -> Answer:
    """Make a call on a connection of its own; pieces of a body are sent as chunks.

    Without ``keep`` the answer is read and thrown away, but for its first piece: to hold 42 MB takes the
    machine from everybody for a moment.

    Raises:
        ValueError: The answer is an error, or is not all there.
    """
    parts = urlsplit(url)
    size = f"Content-Length: {len(body)}" if isinstance(body, bytes) else "Transfer-Encoding: chunked"
    lines = [
        f"{method} {parts.path}?{parts.query} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Connection: close",
        f"Content-Type: {kind}",
        f"Accept: {accept}",
        size,
        *(f"{name}: {value}" for name, value in HEADERS.items()),
    ]
    started = time.perf_counter()
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        if isinstance(body, bytes):
            connection.sendall(body)
        else:
            for piece in body:
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.sendall(b"0\r\n\r\n")
        answer = _received(connection, started) if keep else _thrown_away(connection, started)
    if answer.status != 200:
        raise ValueError(f"{method} {url}: {answer.status} {answer.body[:300]!r}")
    return answer


def _received(connection: socket.socket, started: float) -> Answer:
    pieces: list[bytes] = []
    begun, first_byte, first_row = b"", None, None
    while piece := connection.recv(1 << 20):
        pieces.append(piece)
        if first_row is None:
            now = time.perf_counter() - started
            begun += piece
            if first_byte is None and begun.partition(b"\r\n\r\n")[2]:
                first_byte = now
            if b'"custom_id"' in begun:
                first_row = now
    seconds = time.perf_counter() - started
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = _joined(body)
    elif len(body) != int(head.lower().partition(b"content-length:")[2].split()[0]):
        raise ValueError("the answer is not all there")
    return Answer(int(head.split()[1]), body, seconds, first_byte or seconds, first_row)


def _thrown_away(connection: socket.socket, started: float) -> Answer:
    first = connection.recv(1 << 16)
    first_byte = time.perf_counter() - started
    buffer = bytearray(1 << 16)
    while connection.recv_into(buffer):
        pass
    return Answer(int(first.split()[1]), first, time.perf_counter() - started, first_byte, None)


def _joined(chunks: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while True:
        end = chunks.index(b"\r\n", at)
        size = int(chunks[at:end], 16)
        if not size:
            return b"".join(pieces)
        pieces.append(chunks[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def check_results(answer: Answer, count: int) -> None:
    """Check results: every request has one row, and none has failed."""
    rows = msgspec.json.decode(answer.body, type=_Results).results
    if len(rows) != count or {row.custom_id for row in rows} != {f"r{number}" for number in range(count)}:
        raise ValueError(f"{len(rows)} results instead of {count}")


def check_created(answer: Answer, count: int) -> str:
    """Check that the provider counted every submitted request, and return the batch's id."""
    batch_id: str = answer.json()["id"]
    if not batch_id.startswith(f"batch_{count}_"):
        raise ValueError(f"{batch_id} instead of {count} requests")
    return batch_id


def lines(count: int, size: int = 0) -> Iterator[bytes]:
    """Make requests of so many bytes each, or as few as can be, without their newlines."""
    system = {"role": "system", "content": 'At the caf\u00e9: one word, "good", "bad" or "neither".'}
    messages = [system, {"role": "user", "content": "<text>"}]
    body = {"max_tokens": 100, "temperature": 0.2, "messages": messages}
    head, _, tail = msgspec.json.encode({"custom_id": "<id>", "body": body}).partition(b"<text>")
    text = b"It was fine, and so was the tea. Would I come again? Perhaps. " * (size // 60 + 1)
    for number in range(count):
        begun = head.replace(b"<id>", b"r%d" % number)
        yield begun + text[: max(size - len(begun) - len(tail), 0)] + tail


def json_body(count: int, size: int = 0, **fields: Any) -> bytes:
    """Make the JSON body of a create."""
    head = msgspec.json.encode({"model": MODEL, **fields})[:-1]
    return head + b', "requests": [' + b", ".join(lines(count, size)) + b"]}"


def on_connections(urls: list[str], ask: Callable[[str], int]) -> int:
    """Call URLs on 8 threads, one each or all the same one, and return the sum."""
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        return sum(threads.map(ask, (urls * CONNECTIONS)[:CONNECTIONS]))


def timings(url: str, seconds: float, headers: dict[str, str], pause: float = 0) -> list[float]:
    """Call a URL again and again on one connection, and return the seconds of each call."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc)
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise ValueError(f"GET {url}: {answer.status}")
        taken.append(time.perf_counter() - started)
        time.sleep(pause)
    connection.close()
    return taken
