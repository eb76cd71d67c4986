"""Writes requests into one JSONL file on disk, in one pass."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from flask_llm_batches.config import Settings
from flask_llm_batches.core.idempotency import Fingerprint
from flask_llm_batches.core.numbers import Numbers
from flask_llm_batches.core.requests import MISSING, Incoming, Problems, WrongRequest, broken, checked
from flask_llm_batches.core.temporary import temporary_file, write_error
from flask_llm_batches.errors import (
    REQUIRED,
    LLMBatchesError,
    Problem,
    TooLarge,
    ValidationFailed,
)
from flask_llm_batches.providers.adapters import Adapter, Unsuitable
from flask_llm_batches.store.intents import NewPart
from flask_llm_batches.store.manifests import pack
from flask_llm_batches.untrusted import size

# Python's threads take turns of 5 ms, and a status call needs many turns: a long loop must pause.
_TURN, _PAUSE = 256, 0.000_05

_OTHER_MODEL = "mismatched_model"  # OpenAI's code
_NULL = msgspec.Raw(b"null")
_LONGEST_WORD = 4096


@dataclass(frozen=True, slots=True)
class Spool:
    """Requests on disk, or kept elsewhere if they are several parts.

    Attributes:
        path: A file that only this user may read; one line is one request, as the provider takes it.
        size: The bytes of all requests.
        custom_ids: The ``custom_id``s of all requests in the file, in order.
        renamed: How many requests named another model.
        parts: The parts that have the requests; empty if the file has all of them.
    """

    path: Path
    size: int
    custom_ids: Collection[str] = ()
    renamed: int = 0
    parts: Sequence[NewPart] = ()


class Route(NamedTuple):
    """Where a request goes.

    Attributes:
        provider: The provider's name.
        model: The model, as the provider calls it.
        adapter: The provider's adapter.
    """

    provider: str
    model: str
    adapter: type[Adapter]


class Splitting(NamedTuple):
    """How requests become parts.

    Attributes:
        keep: Keeps the requests in a file, and returns the uid under which they are kept; None keeps nothing.
        discard: Deletes the kept requests of parts.
        route: Returns the route of a request that names this model.
        retries: How often failed requests are submitted again. If that is not 0, even one part is kept.
    """

    keep: Callable[[IO[bytes]], str] | None
    discard: Callable[[Sequence[NewPart]], None]
    route: Callable[[str], Route]
    retries: int = 0


@contextmanager
def spooled(
    requests: Incoming,
    *,
    model: Model,
    endpoint: str,
    provider: str,
    adapter: type[Adapter],
    settings: Settings,
    splitting: Splitting,
    fingerprint: Fingerprint | None = None,
) -> Iterator[Spool]:
    """Write requests to a file that is deleted when the block ends.

    If they are more than the provider takes at once, or name several models, they are kept as parts.

    Args:
        requests: What to write.
        model: The model of every request.
        endpoint: The endpoint of every request, such as ``/v1/chat/completions``.
        provider: The provider's name, for messages.
        adapter: The provider's adapter.
        settings: They name the folder to write to.
        splitting: How they become parts.
        fingerprint: Every line is added to it.

    Raises:
        ValidationFailed: Requests are wrong; the error names them.
        TooLarge: One of them has more bytes than the provider takes.
        SpoolUnavailable: The disk is full, or the folder is gone.
    """
    with ExitStack() as files:
        writer = _Writer(
            lambda: files.enter_context(temporary_file(settings.spool_dir)),
            model=model,
            route=Route(provider, model.name, adapter),
            endpoint=endpoint,
            splitting=splitting,
            fingerprint=fingerprint,
        )
        try:
            writer.write(requests)
        except BaseException:
            splitting.discard(writer.parts)
            raise
        first = writer.first
        yield Spool(Path(first.file.name), writer.size, first.custom_ids, writer.renamed, writer.parts)


class Model(NamedTuple):
    """The model of a batch.

    Attributes:
        name: As the provider calls it.
        full: The name that the caller used, such as ``provider:model``.
        is_given: Whether the caller named it for the batch. If not, every request must name it.
    """

    name: str
    full: str
    is_given: bool


_MOST_MODELS = 20  # of one create: each has a file that is open
_MOST_REQUESTS = 100_000  # of one part, at a provider that names no limit
_BYTES_PER_TOKEN = 4


def tokens_of(size: int) -> int:
    """Return about how many tokens the prompts in requests of so many bytes have: a fourth of the bytes.

    For English text that is close, https://help.openai.com/en/articles/4936856, and the JSON around it makes
    it a little too high.
    """
    return size // _BYTES_PER_TOKEN


class _Open:
    """A part that is being written."""

    def __init__(self, file: IO[bytes], route: Route) -> None:
        self.file = file
        self.route = route
        self.name = msgspec.Raw(msgspec.json.encode(route.model))
        self.most = route.adapter.max_requests or _MOST_REQUESTS
        self.size = 0
        self.custom_ids: list[str] = []

    def empty(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size, self.custom_ids = 0, []


class _Writer:
    """Writes the lines of requests until the first wrong one, and then only checks the others."""

    def __init__(
        self,
        new_file: Callable[[], IO[bytes]],
        *,
        model: Model,
        route: Route,
        endpoint: str,
        splitting: Splitting,
        fingerprint: Fingerprint | None,
    ) -> None:
        self.size = 0
        self.renamed = 0
        self.parts: list[NewPart] = []
        self.first = _Open(new_file(), route)
        self._new_file = new_file
        self._numbers = Numbers()
        self._model = model
        self._names = (self.first.name, msgspec.Raw(msgspec.json.encode(model.full)))
        self._named = {bytes(self._names[1]): self.first}
        self._open = {(route.provider, route.model): self.first}
        self._endpoint = endpoint
        self._splitting = splitting
        self._fingerprint = fingerprint

    def write(self, requests: Incoming) -> None:
        problems = Problems(requests.place)
        for count, (number, content) in enumerate(requests):
            if count == requests.limit:
                raise requests.too_many()
            if count % _TURN == _TURN - 1:
                time.sleep(_PAUSE)
            try:
                part, custom_id, line = self._line(number, content, requests)
            except WrongRequest as problem:
                problems.add(number, problem)
            except RecursionError as error:  # an adapter reads it from a deeper stack than ``checked``
                problems.add(number, broken(error))
            else:
                if not problems.count:
                    self._keep(part, custom_id, line)
        problems.raise_if_any()
        self._finish(requests.place)

    def _finish(self, place: str) -> None:
        if not self.size:
            empty = Problem((place,), "Shorter than minimum length 1.", "empty_file")
            raise ValidationFailed([empty])
        try:
            self.first.file.flush()
        except OSError as error:
            raise write_error(error) from None
        open_parts = [part for part in self._open.values() if part.custom_ids]
        if self.parts or len(open_parts) > 1 or self._splitting.retries:
            for part in open_parts:
                self._close(part)

    def _keep(self, part: _Open, custom_id: str, line: Mapping[str, Any]) -> None:
        encoded = msgspec.json.encode(line)
        if b"\n" in encoded or b"\r" in encoded:
            encoded = msgspec.json.format(encoded, indent=-1)
        if self._fingerprint is not None:
            if part.route.provider != self.first.route.provider:  # the line does not name it
                self._fingerprint.add(msgspec.json.encode(part.route.provider))
            self._fingerprint.add(encoded)
        length, most = len(encoded) + 1, part.route.adapter.max_bytes
        if most is not None and part.size + length > most:
            if length > most:
                raise TooLarge(
                    f"A request is larger than {most} bytes, the limit of provider '{part.route.provider}'"
                )
            self._close(part)
        elif len(part.custom_ids) == part.most:
            self._close(part)
        try:
            part.file.write(encoded)
            part.file.write(b"\n")
        except OSError as error:
            raise write_error(error) from None
        part.size += length
        self.size += length
        part.custom_ids.append(custom_id)

    def _close(self, part: _Open) -> None:
        """Keep the requests of a part that is complete."""
        uid = uuid.uuid4().hex
        try:
            source = None if self._splitting.keep is None else self._splitting.keep(part.file)
            self.parts.append(
                NewPart(
                    uid,
                    part.route.provider,
                    part.route.model,
                    len(part.custom_ids),
                    tokens_of(part.size),
                    source,
                    () if source is None else pack(uid, part.custom_ids),
                    self._splitting.retries,
                )
            )
            part.empty()
        except OSError as error:
            raise write_error(error) from None

    def _line(
        self, number: int, content: msgspec.Raw | WrongRequest, source: Incoming
    ) -> tuple[_Open, str, Mapping[str, Any]]:
        request = checked(content)
        custom_id, body = request.custom_id, request.body
        if (first := self._numbers.first(custom_id, number)) != number:
            raise WrongRequest(
                f"Not unique: {source.place.removesuffix('s')} {first} has the same one.",
                "custom_id",
                code="duplicate_custom_id",
            )
        # A request for another endpoint must not be sent to this one.
        if not _is_one_of(request.method, "POST"):
            raise WrongRequest("Must be POST.", "method", code="invalid_method")
        if not _is_one_of(request.url, self._endpoint):
            reason = f"Must be {self._endpoint}, the endpoint of the batch."
            raise WrongRequest(reason, "url", code="invalid_url")
        part = self._part_of(body.get("model", _NULL), is_json=source.is_json)
        body["model"] = part.name
        try:
            return part, custom_id, part.route.adapter.line(custom_id, body, self._endpoint)
        except Unsuitable as reason:
            raise WrongRequest(str(reason), *reason.path, unsupported=reason.parameter) from None

    def _part_of(self, named: msgspec.Raw, *, is_json: bool) -> _Open:
        """Return the part that a request goes to, by the model that it names."""
        if not self._model.is_given:
            found = self._named.get(bytes(named)) if size(named) <= _LONGEST_WORD else None
            return found or self._part_of_other(named)
        if named not in (_NULL, *self._names):
            if not is_json:
                raise WrongRequest(
                    f"Must be {self._model.name!r}, the model of the batch, or left out.",
                    "body",
                    "model",
                    code=_OTHER_MODEL,
                )
            self.renamed += 1
        return self.first

    def _part_of_other(self, named: msgspec.Raw) -> _Open:
        if named == _NULL:
            raise WrongRequest(REQUIRED, "body", "model", code=MISSING)
        if len(self._named) == _MOST_MODELS:
            raise WrongRequest(f"More than {_MOST_MODELS} models.", "body", "model", code=_OTHER_MODEL)
        try:
            route = self._splitting.route(msgspec.json.decode(named) if size(named) <= _LONGEST_WORD else "")
        except LLMBatchesError as error:
            raise WrongRequest(str(error), "body", "model", code="model_not_found") from None
        key = route.provider, route.model
        part = self._open.get(key) or _Open(self._new_file(), route)
        self._open[key] = self._named[bytes(named)] = part
        return part


def _is_one_of(value: msgspec.Raw, expected: str) -> bool:
    """Return whether a value is null or an expected string."""
    return value == _NULL or (size(value) <= _LONGEST_WORD and msgspec.json.decode(value) == expected)
