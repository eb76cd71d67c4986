"""The lines of OpenAI's output and error files, made of rows while they are read.

https://developers.openai.com/api/docs/guides/batch has their form. The ids in them are ours.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from hashlib import blake2b
from typing import Any

import msgspec

from flask_llm_batches.batch import Row
from flask_llm_batches.core.results import Results
from flask_llm_batches.jsonl import encode_lines


class _Response(msgspec.Struct, gc=False):
    status_code: int
    request_id: str
    body: msgspec.Raw | dict[str, Any]


class _Line(msgspec.Struct, gc=False):
    id: str
    custom_id: str
    response: _Response | None
    error: dict[str, str] | None = None


def output_lines(results: Results, batch_uid: str) -> Generator[bytes, None, None]:
    """Yield the lines of rows, some at a time; empty bytes whenever no row came for a while."""
    key = batch_uid.encode()
    with closing(results):
        for rows in results.groups():
            yield encode_lines(_lines(rows, key)) if rows else b""


def _lines(rows: Sequence[Row], key: bytes) -> list[_Line]:
    lines = []
    for row in rows:
        digest = blake2b(row.custom_id.encode(), key=key, digest_size=12).hexdigest()
        error = row.error
        if error is None:
            response = _Response(200, digest, row.result or msgspec.Raw(b"null"))
            lines.append(_Line(f"batch_req_{digest}", row.custom_id, response))
        elif error.status is None:
            never_run = {"code": error.code, "message": error.message}
            lines.append(_Line(f"batch_req_{digest}", row.custom_id, None, never_run))
        else:
            kind = "server_error" if error.status >= 500 else "invalid_request_error"
            described = {"message": error.message, "type": kind, "param": None, "code": error.code}
            response = _Response(error.status, digest, {"error": described})
            lines.append(_Line(f"batch_req_{digest}", row.custom_id, response))
    return lines
