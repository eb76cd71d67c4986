"""The requests of parts, as lines of their provider. They are kept until their batch has ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Set
from contextlib import closing, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO

import msgspec

from flask_llm_batches.config import Settings
from flask_llm_batches.core.requests import LONGEST_REQUEST
from flask_llm_batches.core.spool import Spool, tokens_of
from flask_llm_batches.core.temporary import temporary_file, write_error
from flask_llm_batches.errors import LLMBatchesError, NotStored, ProviderFailed, RequestsGone
from flask_llm_batches.jsonl import split_lines
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.storage.storage import Storage
from flask_llm_batches.store.files import Files
from flask_llm_batches.store.intents import NewPart
from flask_llm_batches.store.manifests import pack
from flask_llm_batches.store.models import Record

_PIECE = 1 << 20
_MOST_BYTES = 512 * 1024 * 1024  # that are fetched from a provider that names no limit


class _Line(msgspec.Struct, gc=False):
    custom_id: str


_decode = msgspec.json.Decoder(_Line).decode


class Sources:
    """The kept requests of one app's parts."""

    def __init__(self, settings: Settings, storage: Storage, files: Files, providers: Providers) -> None:
        self._settings = settings
        self._storage = storage
        self._files = files
        self._providers = providers

    def keep(self, file: IO[bytes], *, owner: str) -> str:
        """Keep the requests in a file, and return the uid under which they are kept.

        They are deleted after a day, unless a part that has them is recorded by then.
        """
        with self._new(owner) as (uid, write):
            file.seek(0)
            while piece := file.read(_PIECE):
                write(piece)
        return uid

    def discard(self, parts: Iterable[NewPart]) -> None:
        """Delete the requests of parts that are not recorded."""
        for part in parts:
            if part.source is not None:
                with suppress(LLMBatchesError):  # which is logged; they are deleted after a day
                    self._storage.delete(key_of(part.source))
                    self._files.delete(part.source)

    @contextmanager
    def spool(self, part: Record) -> Iterator[Spool]:
        """Write the requests of a part to a file that is deleted when the block ends.

        Raises:
            RequestsGone: They are not there any more.
            SpoolUnavailable: The disk is full, or the folder is gone.
        """
        with temporary_file(self._settings.spool_dir) as file:
            size = 0
            chunks = self._chunks(part) if part.source is not None else self._checked(part)
            with closing(chunks):
                for chunk in chunks:
                    try:
                        size += file.write(chunk)
                    except OSError as error:
                        raise write_error(error) from None
            try:
                file.flush()
            except OSError as error:
                raise write_error(error) from None
            yield Spool(Path(file.name), size)

    def pieces(
        self, part: Record, *, of: int, wanted: Set[str] | None = None, retries: int = 0
    ) -> list[NewPart]:
        """Keep the requests of a part once more, in smaller parts.

        Args:
            part: The part.
            of: The most requests of each.
            wanted: The ``custom_id``s of those to keep; by default all.
            retries: How often failed requests of these parts are submitted again.

        Raises:
            RequestsGone: They are not there any more.
        """
        found: list[NewPart] = []
        try:
            with closing(self._lines(part, wanted)) as lines:
                while (first := next(lines, None)) is not None:
                    custom_ids: list[str] = []
                    size = 0
                    with self._new(part.owner) as (source, write):
                        for custom_id, line in islice(chain((first,), lines), of):
                            custom_ids.append(custom_id)
                            size += len(line) + 1
                            write(line + b"\n")
                    uid = uuid.uuid4().hex
                    manifest, tokens = pack(uid, custom_ids), tokens_of(size)
                    to = part.provider, part.model
                    found.append(NewPart(uid, *to, len(custom_ids), tokens, source, manifest, retries))
            if part.source is None:
                expected = part.requests if wanted is None else len(wanted)
                _check_number(sum(one.requests for one in found), expected)
        except BaseException:
            self.discard(found)
            raise
        return found

    def find(self, part: Record, custom_id: str, *, until: float) -> bytes | None:
        """Return the request with a ``custom_id``, as a line; None if there is none.

        Args:
            part: Where to look for it: a part, or a batch without parts.
            custom_id: The id.
            until: When to stop, as ``time.monotonic`` counts.

        Raises:
            RequestsGone: The requests are not there any more.
            TimeoutError: It was not found by then.
        """

        def in_time() -> Iterator[bytes]:
            for chunk in chunks:
                if time.monotonic() >= until:
                    raise TimeoutError
                yield chunk

        with closing(self._kept(part)) as chunks:
            for line in split_lines(in_time(), longest=2 * LONGEST_REQUEST):
                with suppress(ValueError, RecursionError):  # a file may have lines that are no requests
                    if line.strip() and _decode(line).custom_id == custom_id:
                        return bytes(line)
        return None

    def _kept(self, part: Record) -> Generator[bytes, None, None]:
        """Yield the requests of a part, or the file that a batch was made from."""
        if part.source is None and part.input_file is not None:
            with suppress(NotStored):
                yield from self._storage.read(key_of(part.input_file))
                return
        yield from self._chunks(part)

    def _checked(self, part: Record) -> Generator[bytes, None, None]:
        """Yield the requests that a provider still has, and check that they are all there."""
        count = 0
        with closing(self._lines(part, None)) as lines:
            for _, line in lines:
                count += 1
                yield line + b"\n"
        _check_number(count, part.requests)

    def _lines(self, part: Record, wanted: Set[str] | None) -> Generator[tuple[str, bytes], None, None]:
        count = 0
        with closing(self._chunks(part)) as chunks:
            for line in split_lines(
                chunks, longest=2 * LONGEST_REQUEST
            ):  # a line may be longer than its request
                if line.strip():
                    custom_id = _custom_id(line)
                    if wanted is None or custom_id in wanted:
                        count += 1
                        if count > part.requests:  # a provider returned more than it got
                            raise ProviderFailed("LLM provider error")
                        yield custom_id, line

    def _chunks(self, part: Record) -> Generator[bytes, None, None]:
        try:
            if part.source is not None:
                yield from self._storage.read(key_of(part.source))
            else:
                yield from self._fetched(part)
        except NotStored:
            raise RequestsGone(part.shown_id) from None

    def _fetched(self, part: Record) -> Generator[bytes, None, None]:
        """Yield what its provider still has of a part."""
        most = self._providers.adapter_of(part.provider).max_bytes or _MOST_BYTES
        room = most + 1  # for a last line feed
        for chunk in self._providers.input(part.last_seen()):
            room -= len(chunk)
            if room < 0:  # a provider returned more than it got
                raise ProviderFailed("LLM provider error")
            yield chunk

    @contextmanager
    def _new(self, owner: str) -> Iterator[tuple[str, Callable[[bytes], None]]]:
        uid = uuid.uuid4().hex
        self._files.begin(uid, owner=owner)
        with self._storage.write(key_of(uid)) as writer:
            yield uid, writer.write


def _custom_id(line: bytes) -> str:
    try:
        return _decode(line).custom_id
    except (ValueError, RecursionError):  # a provider returned something else
        raise ProviderFailed("LLM provider error") from None


def _check_number(count: int, expected: int) -> None:
    """Check that a download did not break off."""
    if count != expected:
        raise ProviderFailed("LLM provider error")


def key_of(uid: str) -> str:
    """Return the key under which the storage has a file."""
    return f"files/{uid}"
