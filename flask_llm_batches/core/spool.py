"""Writes requests into one JSONL file on disk, in one pass."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from flask_llm_batches.config import Settings
from flask_llm_batches.core.idempotency import Fingerprint
from flask_llm_batches.core.requests import Incoming, Problems, WrongRequest, checked
from flask_llm_batches.errors import SpoolUnavailable, TooLarge, ValidationFailed
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.adapters import Adapter, Unsuitable
from flask_llm_batches.untrusted import size

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be deleted
    fcntl = None  # type: ignore[assignment]

logger = get_logger(__name__)

# Python's threads take turns of 5 ms, and a status call needs many turns: a long loop must pause.
_TURN, _PAUSE = 256, 0.000_05

_PREFIX, _SUFFIX = "llm-batches-", ".jsonl"

_NULL = msgspec.Raw(b"null")
_LONGEST_WORD = 4096


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
    requests: Incoming,
    *,
    model: Model,
    endpoint: str,
    provider: str,
    adapter: type[Adapter],
    settings: Settings,
    fingerprint: Fingerprint | None = None,
) -> Iterator[Spool]:
    """Write requests to a file that is deleted when the block ends.

    Args:
        requests: What to write.
        model: The model of every request.
        endpoint: The endpoint of every request, such as ``/v1/chat/completions``.
        provider: The provider's name, for messages.
        adapter: Knows the provider's lines and limits.
        settings: The limits of this server, and the folder to write to.
        fingerprint: Every line is added to it.

    Raises:
        ValidationFailed: Requests are wrong; the error names them.
        TooLarge: They are more bytes than the provider takes.
        SpoolUnavailable: The disk is full, or the folder is gone.
    """
    with _temporary_file(settings.spool_dir) as file:
        writer = _Writer(
            file,
            model=model,
            endpoint=endpoint,
            provider=provider,
            adapter=adapter,
            fingerprint=fingerprint,
        )
        writer.write(requests, _limit(settings, provider, adapter))
        yield Spool(Path(file.name), writer.size, writer.seen.keys(), writer.renamed)


@contextmanager
def _temporary_file(folder: str | None) -> Iterator[IO[bytes]]:
    try:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115  # closed below, where closing may fail
            prefix=_PREFIX, suffix=_SUFFIX, dir=folder, delete=False
        )
    except OSError as error:
        raise _unavailable(error) from None
    try:
        _lock(file)
        yield file.file
    finally:
        # An error here must not hide the provider's answer.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            Path(file.name).unlink()


def _unavailable(error: OSError) -> SpoolUnavailable:
    logger.error("the requests of a create cannot be spooled: %s", error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = "its disk is full" if full else "the folder for them cannot be written to"
    return SpoolUnavailable(
        f"This server cannot store the requests: {why}. Nothing was submitted. Try again later."
    )


def _lock(file: IO[bytes]) -> bool:
    """Lock a file for as long as it is open; return False if another process has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def sweep(folder: str | None, *, older_than: float) -> None:
    """Delete the files that killed processes left. A file that is in use is locked, and is kept.

    Args:
        folder: The folder of the files; by default the system's for temporary files.
        older_than: Seconds since the last write to a file.
    """
    for path in Path(folder or tempfile.gettempdir()).glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if time.time() - path.stat().st_mtime >= older_than:
                with path.open("rb") as file:
                    if _lock(file):
                        path.unlink()


class Model(NamedTuple):
    """The model of a batch.

    Attributes:
        name: As the provider calls it.
        full: ``provider:model``, as the caller has it.
        is_given: Whether the caller named it for the batch. If not, every request must name it.
    """

    name: str
    full: str
    is_given: bool


class _Limit(NamedTuple):
    requests: int
    whose: str


def _limit(settings: Settings, provider: str, adapter: type[Adapter]) -> _Limit:
    if adapter.max_requests is not None and adapter.max_requests < settings.max_requests:
        return _Limit(adapter.max_requests, f"of provider '{provider}'")
    return _Limit(settings.max_requests, "of this server")


class _Writer:
    """Writes the lines of requests until the first wrong one, and then only checks the others."""

    def __init__(
        self,
        file: IO[bytes],
        *,
        model: Model,
        endpoint: str,
        provider: str,
        adapter: type[Adapter],
        fingerprint: Fingerprint | None,
    ) -> None:
        self.size = 0
        self.seen: dict[str, int] = {}
        self.renamed = 0
        self._file = file
        self._model = model
        self._name = msgspec.Raw(msgspec.json.encode(model.name))
        self._names = (self._name, msgspec.Raw(msgspec.json.encode(model.full)))
        self._endpoint = endpoint
        self._provider = provider
        self._adapter = adapter
        self._fingerprint = fingerprint

    def write(self, requests: Incoming, limit: _Limit) -> None:
        problems = Problems(requests.place)
        for count, (number, content) in enumerate(requests):
            if count == limit.requests:
                raise requests.too_many(*limit)
            if count % _TURN == _TURN - 1:
                time.sleep(_PAUSE)
            try:
                line = self._line(number, content, requests)
            except WrongRequest as problem:
                problems.add(number, problem)
            else:
                if not problems.count:
                    self._keep(line)
        problems.raise_if_any()
        if not self.seen:
            raise ValidationFailed.of("Shorter than minimum length 1.", requests.place)
        try:
            self._file.flush()
        except OSError as error:
            raise _unavailable(error) from None

    def _keep(self, line: Mapping[str, Any]) -> None:
        encoded = msgspec.json.encode(line)
        if b"\n" in encoded or b"\r" in encoded:
            encoded = msgspec.json.format(encoded, indent=-1)
        if self._fingerprint is not None:
            self._fingerprint.add(encoded)
        try:
            self.size += self._file.write(encoded) + self._file.write(b"\n")
        except OSError as error:
            raise _unavailable(error) from None
        if self._adapter.max_bytes is not None and self.size > self._adapter.max_bytes:
            raise TooLarge(
                f"The requests are larger than {self._adapter.max_bytes} bytes, "
                f"the limit of provider '{self._provider}'"
            )

    def _line(self, number: int, content: msgspec.Raw | WrongRequest, source: Incoming) -> Mapping[str, Any]:
        request = checked(content)
        custom_id, body = request.custom_id, request.body
        if (first := self.seen.setdefault(custom_id, number)) != number:
            raise WrongRequest(
                f"Not unique: {source.place.removesuffix('s')} {first} has the same one.", "custom_id"
            )
        # A request for another endpoint must not be sent to this one.
        if not _is_one_of(request.method, "POST"):
            raise WrongRequest("Must be POST.", "method")
        if not _is_one_of(request.url, self._endpoint):
            raise WrongRequest(f"Must be {self._endpoint}, the endpoint of the batch.", "url")
        self._name_model(body, is_json=source.is_json)
        try:
            return self._adapter.line(custom_id, body, self._endpoint)
        except Unsuitable as reason:
            raise WrongRequest(str(reason), *reason.path, unsupported=reason.parameter) from None

    def _name_model(self, body: dict[str, msgspec.Raw], *, is_json: bool) -> None:
        named = body.get("model", _NULL)
        if self._model.is_given:
            if named not in (_NULL, *self._names):
                if not is_json:
                    raise WrongRequest(
                        f"Must be {self._model.name!r}, the model of the batch, or left out.", "body", "model"
                    )
                self.renamed += 1
        elif named != self._names[1]:
            raise WrongRequest(
                f"Must be {self._model.full!r}, as in the first request: the batch itself names no model.",
                "body",
                "model",
            )
        body["model"] = self._name


def _is_one_of(value: msgspec.Raw, expected: str) -> bool:
    """Return whether a value is null or an expected string."""
    return value == _NULL or (size(value) <= _LONGEST_WORD and msgspec.json.decode(value) == expected)
