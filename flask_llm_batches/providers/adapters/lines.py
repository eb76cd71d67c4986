"""Reads the lines of output and error files, in OpenAI's form, and why requests failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from flask_llm_batches.untrusted import SMALL, size

NULL = msgspec.Raw(b"null")


class Response(msgspec.Struct, gc=False):
    status_code: int | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class Line(msgspec.Struct, gc=False):
    """A line of an output or error file."""

    custom_id: str
    response: Response | None = None
    error: msgspec.Raw = NULL


def read_reason(error: msgspec.Raw) -> Any:
    """Return the provider's reason for a failed request, unless it is very long."""
    return msgspec.json.decode(error) if size(error) <= SMALL else "The provider's reason is too long"


def error_of(body: object) -> Mapping[str, Any]:
    """Return the error in the body of an answer: its ``error``, the whole body (as at Mistral), or a text."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        return inner
    return {"message": inner if isinstance(inner, str) else None}


decode_line = msgspec.json.Decoder(Line).decode
NO_RESPONSE = Response()
