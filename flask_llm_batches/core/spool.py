"""Incoming requests into one JSONL file on disk, each checked on the way.

JSON is passed on as it came but for its white space: a parse and a dump would cost twelve times the time, and
turn ``123456789012345678901234567890`` into ``1.2345678901234568e+29``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from flask_llm_batches.errors import ValidationFailed

MAX_ERRORS = 50
"""So many wrong requests are named; of the rest, how many there are."""

REQUIRED = "Missing data for required field."  # as marshmallow says it


@dataclass(frozen=True, slots=True)
class Spool:
    """Requests on disk.

    Attributes:
        path: A file that only this user may read; one line is one request, as in OpenAI's batch files.
        requests: How many there are.
    """

    path: Path
    requests: int


@contextmanager
def spooled(
    requests: msgspec.Raw | Iterable[Mapping[str, Any]],
    *,
    model: str,
    endpoint: str,
    max_requests: int,
    folder: str | None = None,
) -> Iterator[Spool]:
    """Write requests to a file that is gone when the block ends, however it ends.

    Args:
        requests: The bytes of a JSON array, or the requests themselves: ``{"custom_id", "body"}`` each.
        model: Goes into every body, over a model that stands there.
        endpoint: What every request is for, such as ``/v1/chat/completions``.
        max_requests: More are an error.
        folder: Where to; None for the system's folder for temporary files.

    Raises:
        ValidationFailed: Requests are wrong; says which, and why.
    """
    with tempfile.NamedTemporaryFile(prefix="llm-batches-", suffix=".jsonl", dir=folder) as file:
        count = _write(
            _raw_requests(requests), file, model=model, endpoint=endpoint, max_requests=max_requests
        )
        file.flush()
        yield Spool(Path(file.name), count)


def _raw_requests(requests: msgspec.Raw | Iterable[Mapping[str, Any]]) -> Iterable[msgspec.Raw | str]:
    if isinstance(requests, msgspec.Raw):
        return msgspec.json.decode(requests, type=list[msgspec.Raw])
    return (_encoded(request) for request in requests)


def _encoded(request: object) -> msgspec.Raw | str:
    """Encode a request of the host's own; what is wrong with it comes back as a string."""
    try:
        # The standard library's encoder keeps integers of any size, and can refuse NaN.
        return msgspec.Raw(json.dumps(request, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        return f"Not JSON: {error}"


def _write(
    requests: Iterable[msgspec.Raw | str], file: IO[bytes], *, model: str, endpoint: str, max_requests: int
) -> int:
    problems = _Problems()
    seen: dict[str, int] = {}
    head = {"method": "POST", "url": endpoint}
    model_json = msgspec.Raw(msgspec.json.encode(model))
    decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    for index, request in enumerate(requests):
        if index == max_requests:
            raise ValidationFailed({"requests": [f"Longer than maximum length {max_requests}."]})
        try:
            custom_id, body = _checked(request, decode)
            if (first := seen.setdefault(custom_id, index)) != index:
                raise _Wrong("custom_id", f"Not unique: request {first} has the same one.")
        except _Wrong as problem:
            problems.add(index, problem)
            continue
        if not problems.count:
            line = {"custom_id": custom_id, **head, "body": {**body, "model": model_json}}
            file.write(msgspec.json.format(msgspec.json.encode(line), indent=-1))
            file.write(b"\n")
    problems.raise_if_any()
    if not seen:
        raise ValidationFailed({"requests": ["Shorter than minimum length 1."]})
    return len(seen)


class _Wrong(Exception):
    """A request that cannot be sent."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class _Problems:
    """The wrong requests: the first ones by index, the rest as a number."""

    def __init__(self) -> None:
        self.count = 0
        self._messages: dict[int | str, Any] = {}

    def add(self, index: int, problem: _Wrong) -> None:
        self.count += 1
        if self.count <= MAX_ERRORS:
            self._messages[index] = {problem.field: [problem.message]} if problem.field else [problem.message]

    def raise_if_any(self) -> None:
        if self.count > MAX_ERRORS:
            self._messages["_schema"] = [f"{self.count - MAX_ERRORS} more requests are wrong."]
        if self.count:
            raise ValidationFailed({"requests": self._messages})


def _checked(request: msgspec.Raw | str, decode: Any) -> tuple[str, dict[str, msgspec.Raw]]:
    if isinstance(request, str):
        raise _Wrong(None, request)
    try:
        fields: dict[str, msgspec.Raw] = decode(request)
        str(memoryview(request), "utf-8")  # Raw values are not decoded, and so not checked
    except msgspec.ValidationError:
        raise _Wrong(None, "Not a valid mapping type.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Wrong(None, f"Not valid JSON: {error}.") from None
    except UnicodeDecodeError as error:
        raise _Wrong(None, f"Not valid UTF-8: {error.reason} at byte {error.start}.") from None
    custom_id = _field(fields, "custom_id", str, "Not a valid string.")
    if not custom_id:
        raise _Wrong("custom_id", "Shorter than minimum length 1.")
    return custom_id, _field(fields, "body", dict[str, msgspec.Raw], "Not a valid mapping type.")


def _field(fields: dict[str, msgspec.Raw], name: str, kind: Any, otherwise: str) -> Any:
    if name not in fields:
        raise _Wrong(name, REQUIRED)
    try:
        return msgspec.json.decode(fields[name], type=kind)
    except msgspec.ValidationError:
        raise _Wrong(name, otherwise) from None
