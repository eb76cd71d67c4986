"""Incoming requests, checked one by one on their way into the spool.

Their JSON is not changed, except for line feeds between its values. A parse and a dump would cost twelve
times as much, and turn ``123456789012345678901234567890`` into ``1.2345678901234568e+29``.
"""

from __future__ import annotations

import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import msgspec

from flask_llm_batches.errors import REQUIRED, Problem, UnsupportedParameters, ValidationFailed
from flask_llm_batches.jsonl import split_lines
from flask_llm_batches.untrusted import SMALL, TooMany, check_text, is_longer, read_object, size

MAX_ERRORS = 50
"""The most wrong requests that are named. The others are only counted."""

LONGEST_REQUEST = 64 * 1024 * 1024
"""The most bytes of a request: OpenAI takes 50 MB of pictures, Anthropic 32 MB in all."""

MAX_CUSTOM_ID_LENGTH = 512

INVALID_LINE, MISSING = "invalid_json_line", "missing_required_parameter"
"""Codes of OpenAI for a line of an input file."""

_LONGEST_NAME = 100  # of a parameter, in an answer
_CHUNK = 1 << 16
_GZIP = b"\x1f\x8b"
_MAX_BLANK = 100_000  # 200 MB of them would keep a thread busy for half a minute

Requests = msgspec.Raw | bytes | Path | IO[bytes] | Iterable[Mapping[str, Any] | bytes]
"""What a batch is made of: dicts ``{"custom_id": ..., "body": {...}}``; or JSONL, as a path, a file that is
open for reading bytes, or lines of bytes; or the bytes of a JSON array."""


class WrongRequest(Exception):
    """A request that cannot be submitted. ``code`` is OpenAI's code of the error."""

    def __init__(
        self, message: str, *path: str | int, code: str = "invalid_request", unsupported: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.code = code
        self.unsupported = unsupported


class Request(msgspec.Struct, gc=False):
    """One request. ``method`` and ``url`` are in the lines of OpenAI's own files."""

    custom_id: str
    body: dict[str, msgspec.Raw]
    method: msgspec.Raw = msgspec.Raw(b"null")
    url: msgspec.Raw = msgspec.Raw(b"null")


class _Large(msgspec.Struct, gc=False):
    """A request whose body must be measured before it is decoded."""

    custom_id: str
    body: msgspec.Raw
    method: msgspec.Raw = msgspec.Raw(b"null")
    url: msgspec.Raw = msgspec.Raw(b"null")


class _Fields(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(Request).decode
_decode_large = msgspec.json.Decoder(_Large).decode
_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_string = msgspec.json.Decoder(str).decode


class Incoming:
    """The requests of a batch, one by one, with the place of each.

    Args:
        requests: What the caller passed.
        limit: The most requests that this server takes.

    Attributes:
        place: ``requests``, which count from 0, or ``lines``, which count from 1 as editors do.
        is_json: Whether they are the array in the body of an HTTP request.
        limit: The argument.

    Raises:
        ValidationFailed: They have another type, or their array is too long.
    """

    def __init__(self, requests: Requests, *, limit: int) -> None:
        self.place = "requests"
        self.is_json = isinstance(requests, msgspec.Raw)
        self.limit = limit
        self._items = self._numbered(requests)

    def __iter__(self) -> Iterator[tuple[int, msgspec.Raw | WrongRequest]]:
        """Yield the number and the bytes of each request, or the error in it."""
        return self._items

    def first_model(self, *, of_first: int = 1) -> tuple[int, str] | None:
        """Return the first model that one of the first requests names, with the number of the request.

        Args:
            of_first: The most requests to look at. After 1 MiB of them, the search stops.
        """
        seen: list[tuple[int, msgspec.Raw | WrongRequest]] = []
        room = SMALL
        found = None
        while found is None and len(seen) < of_first and room > 0:
            item = next(self._items, None)
            if item is None:
                break
            seen.append(item)
            number, content = item
            try:
                found = number, _decode_string(checked(content).body["model"])
            except (WrongRequest, KeyError, msgspec.DecodeError):
                room -= 0 if isinstance(content, WrongRequest) else size(content)
        self._items = chain(seen, self._items)
        return found

    def too_many(self) -> ValidationFailed:
        """Return the error for more requests than this server takes."""
        message = f"Longer than maximum length {self.limit}, the limit of this server."
        return ValidationFailed([Problem((self.place,), message, "too_many_tasks")])

    def _numbered(self, requests: Any) -> Iterator[tuple[int, msgspec.Raw | WrongRequest]]:
        if isinstance(requests, (bytes, bytearray)) and requests.lstrip()[:1] == b"[":
            requests = msgspec.Raw(bytes(requests))
        if isinstance(requests, msgspec.Raw):
            return enumerate(self._array(requests))
        if isinstance(requests, Path):
            return self._lines(split_lines(_read(requests), longest=LONGEST_REQUEST))
        if isinstance(requests, (bytes, bytearray)):
            return self._lines(split_lines([bytes(requests)], longest=LONGEST_REQUEST))
        if isinstance(requests, io.TextIOBase):
            raise _no_requests("a file that is open as text: open it with mode 'rb'")
        if hasattr(requests, "read"):
            chunks = iter(lambda: requests.read(_CHUNK), b"")
            return self._lines(split_lines(chunks, longest=LONGEST_REQUEST))
        if isinstance(requests, (str, Mapping)) or not isinstance(requests, Iterable):
            raise _no_requests(f"{type(requests).__name__}")
        items = iter(requests)
        first = list(islice(items, 1))
        every = chain(first, items)
        return (
            self._lines(every) if first and isinstance(first[0], bytes) else enumerate(map(_encoded, every))
        )

    def _array(self, array: msgspec.Raw) -> list[msgspec.Raw]:
        if is_longer(array, self.limit):
            raise self.too_many()
        try:
            return msgspec.json.decode(array, type=list[msgspec.Raw])
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValidationFailed.of(f"Not valid JSON: {error}.", "requests") from None

    def _lines(self, lines: Iterable[bytes]) -> Iterator[tuple[int, msgspec.Raw]]:
        self.place = "lines"
        return self._not_blank(lines)

    def _not_blank(self, lines: Iterable[bytes]) -> Iterator[tuple[int, msgspec.Raw]]:
        blank = 0
        for number, line in enumerate(lines, 1):
            # Some editors and shells begin files with a byte order mark.
            content = line.removeprefix(BOM_UTF8) if number == 1 else line
            if number == 1 and line.startswith(_GZIP):
                packed = "Packed with gzip: unpack it, or send it with Content-Encoding: gzip."
                raise ValidationFailed([Problem(("lines", 1), packed, INVALID_LINE)])
            if content and not content.isspace():
                yield number, msgspec.Raw(content)
                continue
            blank += 1
            if blank > _MAX_BLANK:
                raise ValidationFailed.of(f"More than {_MAX_BLANK} lines are blank.", "lines")


def _no_requests(what: str) -> ValidationFailed:
    return ValidationFailed.of(
        "Not requests: they are dicts, JSONL as a pathlib.Path or a file that is open for reading bytes, "
        f"or the bytes of a JSON array, not {what}.",
        "requests",
    )


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise ValidationFailed.of(f"The file cannot be read: {error.strerror}.", "requests") from None


def _encoded(request: object) -> msgspec.Raw | WrongRequest:
    try:
        # The standard library's encoder keeps integers of any size, and can refuse NaN.
        return msgspec.Raw(json.dumps(request, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        return WrongRequest(f"Not JSON: {error}")


def checked(content: msgspec.Raw | WrongRequest) -> Request:
    """Return the parts of a request.

    Raises:
        WrongRequest: It cannot be submitted.
    """
    if isinstance(content, WrongRequest):
        raise content
    length = size(content)
    if length > LONGEST_REQUEST:
        raise WrongRequest(f"Longer than {LONGEST_REQUEST} bytes.")
    try:
        check_text(content)
        request: Request = _decode(content) if length <= SMALL else _read_large(content)
    except UnicodeDecodeError as error:
        reason = f"Not valid UTF-8: {error.reason} at byte {error.start}."
        raise WrongRequest(reason, code=INVALID_LINE) from None
    except msgspec.ValidationError:
        raise _what_is_wrong(content) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise broken(error) from None
    if not request.custom_id:
        raise WrongRequest("Shorter than minimum length 1.", "custom_id", code=MISSING)
    if len(request.custom_id) > MAX_CUSTOM_ID_LENGTH:
        raise WrongRequest(f"Longer than maximum length {MAX_CUSTOM_ID_LENGTH}.", "custom_id")
    return request


def _read_large(content: msgspec.Raw) -> Request:
    large: _Large = _decode_large(content)
    try:
        body = read_object(large.body)
    except TooMany as error:
        raise WrongRequest(str(error), "body") from None
    return Request(large.custom_id, body, large.method, large.url)


def broken(error: Exception) -> WrongRequest:
    """Return the error of a request that is not JSON, or nests too deep."""
    return WrongRequest(f"Not valid JSON: {error}.", code=INVALID_LINE)


def _what_is_wrong(content: msgspec.Raw) -> WrongRequest:
    """Return the error of a field in marshmallow's words."""
    try:
        fields: _Fields = _decode_fields(content)
    except msgspec.ValidationError:
        return WrongRequest("Not a valid mapping type.", code=INVALID_LINE)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return broken(error)
    if fields.custom_id is msgspec.UNSET:
        return WrongRequest(REQUIRED, "custom_id", code=MISSING)
    if bytes(memoryview(fields.custom_id)[:1]) != b'"':
        return WrongRequest("Not a valid string.", "custom_id")
    if fields.body is msgspec.UNSET:
        return WrongRequest(REQUIRED, "body", code=MISSING)
    return WrongRequest("Not a valid mapping type.", "body")


class Problems:
    """The errors in the requests of a batch. The first 50 are kept, and the others are only counted."""

    def __init__(self, place: str) -> None:
        self.count = 0
        self._place = place
        self._named: list[Problem] = []
        self._all_unsupported = True

    def add(self, number: int, problem: WrongRequest) -> None:
        """Add the error of a request."""
        self.count += 1
        self._all_unsupported &= problem.unsupported
        if self.count <= MAX_ERRORS:
            path = (step if isinstance(step, int) else step[:_LONGEST_NAME] for step in problem.path)
            self._named.append(Problem((self._place, number, *path), problem.message, problem.code))

    def raise_if_any(self) -> None:
        """Raise an error if there are any.

        Raises:
            UnsupportedParameters: There are parameters that the provider does not take, and no other error.
            ValidationFailed: There are other errors.
        """
        if self.count > MAX_ERRORS:
            self._named.append(Problem((self._place,), f"{self.count - MAX_ERRORS} more requests are wrong."))
        if self.count:
            raise (UnsupportedParameters if self._all_unsupported else ValidationFailed)(self._named)
