"""Sends result rows as they come, as JSON or as NDJSON.

White space is sent while no row comes, because a server notices that a caller has hung up only when it sends.
A failure never looks like a normal end: it is raised in the server, which breaks the connection.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from flask_llm_batches.batch import Row
from flask_llm_batches.core.files import FileContent
from flask_llm_batches.core.results import BEAT, Results
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.jsonl import encode_lines
from flask_llm_batches.web.errors import dump_error

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_encoder = msgspec.json.Encoder()

# Many proxies close a connection after 60 seconds without data, some after 30.
_PATIENCE = 15


class ResultsInterrupted(Exception):
    """Rows could not be sent to the end. The cause is already in the log."""


def caller_waits(environ: WSGIEnvironment) -> Callable[[], bool]:
    """Return a function that returns whether to keep waiting for the first row.

    While it returns True, an error of the provider can still get its own HTTP status. Most servers expose
    their socket. A caller who waits sends nothing, so if there is something to read, the caller has hung up.
    Without the socket, or after some seconds, only sending data shows whether the caller is still there.
    """
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    deadline = time.monotonic() + _PATIENCE

    def waits() -> bool:
        if connection is None or time.monotonic() > deadline:
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            return not selector.select(0)

    return waits


def json_stream(results: Results) -> Iterator[bytes]:
    """Yield ``{"results": [row, ...]}``. If it is interrupted, its end is missing."""
    head, comma = b'{"results": [', b""
    for rows in _rows(results):
        if isinstance(rows, LLMBatchesError):
            raise ResultsInterrupted(str(rows))
        if rows:
            yield head + comma + _encoder.encode(rows)[1:-1]
            comma = b","
        else:
            yield head + b" "
        head = b""
    yield head + b"]}"


def ndjson_stream(results: Results) -> Iterator[bytes]:
    """Yield a line for each row, and blank lines. If it is interrupted, the last line is an error."""
    for rows in _rows(results):
        if isinstance(rows, LLMBatchesError):
            yield _encoder.encode(dump_error(rows, "query")) + b"\n"
            raise ResultsInterrupted(str(rows))
        yield encode_lines(rows) or b"\n"


def file_stream(content: FileContent) -> Iterator[bytes]:
    """Yield the bytes of a file. White space may not be sent, so a caller who hangs up is noticed late."""
    try:
        yield from content
    except LLMBatchesError as error:
        raise ResultsInterrupted(str(error)) from None


def _rows(results: Results) -> Iterator[Sequence[Row] | LLMBatchesError]:
    """Yield rows, an empty group when white space is due, and last an error if there was one."""
    sent = -BEAT  # before the first row, white space is due at once
    try:
        for rows in results.groups():
            if rows or time.monotonic() - sent >= BEAT:
                yield rows or ()
                sent = time.monotonic()
    except LLMBatchesError as error:
        yield error
