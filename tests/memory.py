"""A process with little memory: ``python -m tests.memory`` reads bodies, and writes the results.

A line of the input is ``[type, MiB, head, unit, between, tail]``: the body of that type and size is the head,
as many of the unit as fit, and the tail, with ``between`` after every 60 MiB. Every ``#`` is another number.
A line of the output is ``[status, MiB]``: the status of the answer, and the memory that it took.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from flask import Flask

from tests.hosts import create_host

LIMIT = 256 * 2**20
TIMES = 3
"""What the memory is limited to, as a multiple of the limit of a body."""

_BLOCK = 1 << 16
_REQUEST = 60 * 2**20  # below the limit of one request


class Body(io.RawIOBase):
    """A body that is made while it is read."""

    def __init__(self, size: int, *parts: str) -> None:
        self._pieces = self._made(size, *(part.encode() for part in parts))
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._left = self._left or next(self._pieces, b"")
        piece, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    @staticmethod
    def _made(size: int, head: bytes, unit: bytes, between: bytes, tail: bytes) -> Iterator[bytes]:
        yield head
        count = max(1, _BLOCK // (len(unit) + 4))
        block = b"".join(unit.replace(b"#", b"@%x" % number) for number in range(count))
        room = size - len(head) - len(tail) - 16 * count
        number = written = 0
        while room > 0:
            piece = block.replace(b"@", b"%x_" % number)
            if between and written > _REQUEST:
                piece, written = between.replace(b"#", b"%d" % number) + piece, 0
            yield piece
            room -= len(piece)
            written += len(piece)
            number += 1
        if tail:
            yield tail


def peak() -> int:
    """Return the most memory that this process had since ``forget_peak``, in bytes."""
    found = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(found.split()[1]) * 1024


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def make_app() -> Flask:
    """Make an app whose providers cannot be reached."""
    nowhere = {"api_key": "sk-0123456789", "api_base": "http://127.0.0.1:9/v1"}
    return create_host(
        database=os.environ["HOST_DATABASE"],
        providers={"openai": nowhere, "anthropic": nowhere},
        spool_dir=os.environ["HOST_SPOOL"],
        transfer_timeout=20,
    )


def ask(app: Flask, kind: str, size: int, head: str, *parts: str) -> int:
    provider = "anthropic" if "max_tokens" in head else "openai"
    query = "" if kind == "application/json" else f"?model={provider}:m"
    answer = app.test_client().post(
        f"/v1/batches{query}",
        content_type=kind,
        headers={"X-User": "ada", "Idempotency-Key": os.urandom(8).hex()},
        environ_overrides={
            "wsgi.input": io.BufferedReader(Body(size << 20, head, *parts)),
            "wsgi.input_terminated": True,
        },
    )
    return answer.status_code


if __name__ == "__main__":
    app = make_app()
    for provider in ("openai", "anthropic"):
        first = f'{{"model":"{provider}:m","requests":[{{"custom_id":"a","body":{{"max_tokens":9,"messages":['
        ask(app, "application/json", LIMIT >> 20, first, " ", "", "]}}]}")
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + TIMES * LIMIT, resource.RLIM_INFINITY))
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        before = forget_peak()
        status = ask(app, *json.loads(line))
        print(json.dumps([status, (peak() - before) >> 20]), flush=True)  # noqa: T201
