"""Incoming requests into one JSONL file on disk, each checked on the way.

JSON is passed on as it came, but for line feeds between its values: a parse and a dump would cost twelve
times the time, and turn ``123456789012345678901234567890`` into ``1.2345678901234568e+29``.
"""

from __future__ import annotations

import json
import tempfile
import time
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from flask_llm_batches.config import Settings
from flask_llm_batches.core.idempotency import Fingerprint
from flask_llm_batches.errors import TooLarge, UnsupportedParameters, ValidationFailed
from flask_llm_batches.providers.adapters import Adapter, Unsuitable

MAX_ERRORS = 50
"""So many wrong requests are named; of the rest, how many there are."""

_LONGEST_NAME = 100  # of a parameter, in an answer

# Python's threads take turns of 5 ms, and a status call needs many: whoever is busy for long gives way.
_TURN, _PAUSE = 256, 0.000_05

_PREFIX, _SUFFIX = "llm-batches-", ".jsonl"

REQUIRED = "Missing data for required field."  # as marshmallow says it

Requests = msgspec.Raw | Iterable[Mapping[str, Any] | bytes]
"""The bytes of a JSON array; or ``{"custom_id", "body"}`` each; or lines of JSONL as bytes, as files give."""


@dataclass(frozen=True, slots=True)
class Spool:
    """Requests on disk.

    Attributes:
        path: A file that only this user may read; one line is one request, as the provider takes it.
        size: Its bytes.
        custom_ids: Of every request, in order.
        renamed: How many requests named another model.
    """

    path: Path
    size: int
    custom_ids: Collection[str]
    renamed: int


@contextmanager
def spooled(
    requests: Requests,
    *,
    model: str,
    endpoint: str,
    provider: str,
    adapter: type[Adapter],
    settings: Settings,
    fingerprint: Fingerprint | None = None,
) -> Iterator[Spool]:
    """Write requests to a file that is gone when the block ends, however it ends.

    Args:
        requests: What to write.
        model: Goes into every body, over a model that stands there.
        endpoint: What every request is for, such as ``/v1/chat/completions``.
        provider: The provider's name, for messages.
        adapter: Knows the provider's lines and limits.
        settings: Have this server's limits, and the folder to write to.
        fingerprint: Takes every line in.

    Raises:
        ValidationFailed: Requests are wrong; says which, and why.
        TooLarge: They are more bytes than the provider takes.
    """
    with tempfile.NamedTemporaryFile(prefix=_PREFIX, suffix=_SUFFIX, dir=settings.spool_dir) as file:
        writer = _Writer(
            file.file,
            model=model,
            endpoint=endpoint,
            provider=provider,
            adapter=adapter,
            fingerprint=fingerprint,
        )
        writer.write(requests, _limit(settings, provider, adapter))
        file.flush()
        yield Spool(Path(file.name), writer.size, writer.seen.keys(), writer.renamed)


def sweep(folder: str | None, *, older_than: float) -> None:
    """Delete the files that killed processes left.

    Args:
        folder: Where; the system's for temporary files unless given.
        older_than: Seconds since which nobody wrote to them.
    """
    for path in Path(folder or tempfile.gettempdir()).glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


class _Limit(NamedTuple):
    requests: int
    whose: str


def _limit(settings: Settings, provider: str, adapter: type[Adapter]) -> _Limit:
    if adapter.max_requests is not None and adapter.max_requests < settings.max_requests:
        return _Limit(adapter.max_requests, f"of provider '{provider}'")
    return _Limit(settings.max_requests, "of this server")


class _Wrong(Exception):
    """A request that cannot be sent."""

    def __init__(self, message: str, *path: str | int, unsupported: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.unsupported = unsupported


class _Request(msgspec.Struct, gc=False):
    custom_id: str
    body: dict[str, msgspec.Raw]
    # OpenAI's own lines say where they go.
    method: Any = None
    url: Any = None


_decode = msgspec.json.Decoder(_Request).decode


def _is_longer(array: msgspec.Raw, limit: int) -> bool:
    """Find an array that is far too long before its items take many times its size.

    A list of another length than that is refused at the first item too many. Without its end, any other one
    is refused for that.
    """
    content = memoryview(array)
    try:
        msgspec.json.decode(content[:-1], type=tuple[(msgspec.Raw,) * (limit + 1)])  # type: ignore[misc]
    except msgspec.ValidationError:
        return bytes(content[:1]) == b"["
    except (msgspec.DecodeError, RecursionError):
        pass
    return False


def _numbered(requests: Requests) -> tuple[str, Iterable[tuple[int, msgspec.Raw | _Wrong]]]:
    """Give requests, and where they are: ``requests`` count from 0, ``lines`` as editors do."""
    if isinstance(requests, msgspec.Raw):
        try:
            return "requests", enumerate(msgspec.json.decode(requests, type=list[msgspec.Raw]))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValidationFailed({"requests": [f"Not valid JSON: {error}."]}) from None
    items = iter(requests)
    first = list(islice(items, 1))
    every = chain(first, items)
    if first and isinstance(first[0], bytes):
        every = chain([first[0].removeprefix(BOM_UTF8)], items)  # some editors and shells begin files so
        lines = enumerate(cast("Iterator[bytes]", every), 1)
        return "lines", ((number, msgspec.Raw(line)) for number, line in lines if line and not line.isspace())
    return "requests", enumerate(map(_encoded, every))


def _encoded(request: object) -> msgspec.Raw | _Wrong:
    try:
        # The standard library's encoder keeps integers of any size, and can refuse NaN.
        return msgspec.Raw(json.dumps(request, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        return _Wrong(f"Not JSON: {error}")


class _Writer:
    """Writes the lines of good requests, until the first bad one; finds all the others."""

    def __init__(
        self,
        file: IO[bytes],
        *,
        model: str,
        endpoint: str,
        provider: str,
        adapter: type[Adapter],
        fingerprint: Fingerprint | None,
    ) -> None:
        self.size = 0
        self.seen: dict[str, int] = {}
        self.renamed = 0
        self._place = "requests"
        self._write = file.write
        self._model = msgspec.Raw(msgspec.json.encode(model))
        self._endpoint = endpoint
        self._provider = provider
        self._adapter = adapter
        self._fingerprint = fingerprint

    def write(self, requests: Requests, limit: _Limit) -> None:
        too_long = f"Longer than maximum length {limit.requests}, the limit {limit.whose}."
        if isinstance(requests, msgspec.Raw) and _is_longer(requests, limit.requests):
            raise ValidationFailed({self._place: [too_long]})
        self._place, numbered = _numbered(requests)
        problems = _Problems(self._place)
        for count, (number, content) in enumerate(numbered):
            if count == limit.requests:
                raise ValidationFailed({self._place: [too_long]})
            if count % _TURN == _TURN - 1:
                time.sleep(_PAUSE)
            try:
                line = self._line(number, content)
            except _Wrong as problem:
                problems.add(number, problem)
            else:
                if not problems.count:
                    self._keep(line)
        problems.raise_if_any()
        if not self.seen:
            raise ValidationFailed({self._place: ["Shorter than minimum length 1."]})

    def _keep(self, line: Mapping[str, Any]) -> None:
        encoded = msgspec.json.encode(line)
        if b"\n" in encoded or b"\r" in encoded:
            encoded = msgspec.json.format(encoded, indent=-1)
        if self._fingerprint is not None:
            self._fingerprint.add(encoded)
        self.size += self._write(encoded) + self._write(b"\n")
        if self._adapter.max_bytes is not None and self.size > self._adapter.max_bytes:
            raise TooLarge(
                f"The requests are larger than {self._adapter.max_bytes} bytes, "
                f"the limit of provider '{self._provider}'"
            )

    def _line(self, number: int, content: msgspec.Raw | _Wrong) -> Mapping[str, Any]:
        request = _checked(content)
        custom_id, body = request.custom_id, request.body
        if not custom_id:
            raise _Wrong("Shorter than minimum length 1.", "custom_id")
        if (first := self.seen.setdefault(custom_id, number)) != number:
            raise _Wrong(
                f"Not unique: {self._place.removesuffix('s')} {first} has the same one.", "custom_id"
            )
        # Nobody's request for another endpoint goes to this one.
        if request.method not in (None, "POST"):
            raise _Wrong("Must be POST.", "method")
        if request.url not in (None, self._endpoint):
            raise _Wrong(f"Must be {self._endpoint}, the endpoint of the batch.", "url")
        if body.setdefault("model", self._model) != self._model:
            self.renamed += 1
            body["model"] = self._model
        try:
            return self._adapter.line(custom_id, body, self._endpoint)
        except Unsuitable as reason:
            raise _Wrong(str(reason), *reason.path, unsupported=reason.parameter) from None


def _checked(content: msgspec.Raw | _Wrong) -> _Request:
    if isinstance(content, _Wrong):
        raise content
    try:
        request: _Request = _decode(content)
        str(memoryview(content), "utf-8")  # Raw values are not decoded, and so not checked
    except UnicodeDecodeError as error:
        raise _Wrong(f"Not valid UTF-8: {error.reason} at byte {error.start}.") from None
    except msgspec.ValidationError:
        raise _what_is_wrong(content) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _broken(error) from None
    return request


def _broken(error: Exception) -> _Wrong:
    return _Wrong(f"Not valid JSON: {error}.")


def _what_is_wrong(content: msgspec.Raw) -> _Wrong:
    """Say in marshmallow's words which field does not fit."""
    try:
        fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return _Wrong("Not a valid mapping type.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _broken(error)
    for name, kind, message in (
        ("custom_id", str, "Not a valid string."),
        ("body", dict[str, msgspec.Raw], "Not a valid mapping type."),
    ):
        if name not in fields:
            return _Wrong(REQUIRED, name)
        try:
            msgspec.json.decode(fields[name], type=kind)
        except msgspec.ValidationError:
            return _Wrong(message, name)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _broken(error)
    return _Wrong("Not a request.")


class _Problems:
    """The wrong requests: the first ones by number, the rest as how many."""

    def __init__(self, place: str) -> None:
        self.count = 0
        self._place = place
        self._messages: dict[int | str, Any] = {}
        self._all_unsupported = True

    def add(self, number: int, problem: _Wrong) -> None:
        self.count += 1
        self._all_unsupported &= problem.unsupported
        if self.count <= MAX_ERRORS:
            message: Any = [problem.message]
            for step in reversed(problem.path):
                message = {step if isinstance(step, int) else step[:_LONGEST_NAME]: message}
            self._messages[number] = message

    def raise_if_any(self) -> None:
        if self.count > MAX_ERRORS:
            self._messages["_schema"] = [f"{self.count - MAX_ERRORS} more requests are wrong."]
        if self.count:
            kind = UnsupportedParameters if self._all_unsupported else ValidationFailed
            raise kind({self._place: self._messages})
