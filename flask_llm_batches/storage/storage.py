"""Compressed objects of any length, written and read piece by piece. They exist once they are complete."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Protocol

from flask_llm_batches.errors import StorageUnavailable
from flask_llm_batches.log import get_logger

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

logger = get_logger(__name__)

CHUNK = 256 * 1024
"""The most bytes of a chunk: a statement must fit into a packet of MariaDB, which may be
as small as 1 MiB, and its driver may make two bytes of one."""

_PIECE = 1024 * 1024  # a chunk may unpack to a hundred times as much
_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
}

_KEY = re.compile(r"(?=.{1,128}\Z)[a-z0-9_-]+(/[a-z0-9_-]+)*")


class Backend(Protocol):
    """Keeps compressed bytes; its errors are ``LLMBatchesError``s, or ``NotStored``."""

    def write(self, key: str, /) -> AbstractContextManager[Callable[[bytes], object]]:
        """Yield a function that stores the next chunk. If the block raises, the object does not exist."""

    def read(self, key: str, /) -> Generator[bytes, None, None]:
        """Yield the bytes, in chunks that end anywhere, or raise ``NotStored``."""

    def delete(self, key: str, /) -> None:
        """Delete an object, if it is there."""

    def sweep(self, older_than: float, /) -> None:
        """Delete chunks of unfinished objects to which nothing was written for so many seconds."""


class Writer:
    """Writes the bytes of one object."""

    def __init__(self, keep: Callable[[bytes], object]) -> None:
        self._keep = keep
        self._compressor = zstd.ZstdCompressor(options=_OPTIONS)
        self._packed = bytearray()

    def write(self, data: bytes) -> None:
        """Add bytes to the object."""
        self._packed += self._compressor.compress(data)
        while len(self._packed) >= CHUNK:
            self._keep(bytes(self._packed[:CHUNK]))
            del self._packed[:CHUNK]

    def finish(self) -> None:
        """Write the rest to the backend."""
        self._packed += self._compressor.flush()
        for start in range(0, len(self._packed), CHUNK):
            self._keep(bytes(self._packed[start : start + CHUNK]))


class Storage:
    """The objects of one app.

    A key is lower-case letters, digits, dashes and underscores, and slashes between them; any other key is a
    ``ValueError``. Every method raises ``StorageUnavailable`` if the folder or the object store does not
    answer, and ``RecordUnavailable`` if the database does not. With the database, an app context is needed.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @contextmanager
    def write(self, key: str) -> Iterator[Writer]:
        """Write an object. It replaces an older one when the block has ended without an error.

        If the block raises, nothing is stored. If several write the same key, the last one counts.
        """
        with self._backend.write(_checked(key)) as keep:
            writer = Writer(keep)
            yield writer
            writer.finish()

    def read(self, key: str) -> Generator[bytes, None, None]:
        """Return the bytes of an object, at most 1 MiB at a time. To stop earlier, close it.

        Raises:
            NotStored: There is no such object, or it was deleted or replaced while it was read.
        """
        pieces = self._pieces(_checked(key))
        next(pieces)
        return pieces

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        self._backend.delete(_checked(key))

    def sweep(self, *, older_than: float) -> None:
        """Delete unfinished objects of killed processes, and objects that were replaced.

        Args:
            older_than: Seconds since the last write. A writer that pauses for longer fails, and so does a
                reader of an object that was replaced so long ago.
        """
        self._backend.sweep(older_than)

    def _pieces(self, key: str) -> Generator[bytes, None, None]:
        decompressor = zstd.ZstdDecompressor()
        with closing(self._backend.read(key)) as chunks:
            chunk = next(chunks, b"")
            yield b""  # for ``read``: by now it is known whether the object is there
            try:
                while True:
                    if piece := decompressor.decompress(chunk, _PIECE):
                        yield piece
                    if decompressor.eof:
                        return
                    chunk = next(chunks) if decompressor.needs_input else b""
            except (zstd.ZstdError, StopIteration) as error:
                raise _damaged(key, str(error) or "its end is missing") from None


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of the storage")
    return key


def _damaged(key: str, why: str) -> StorageUnavailable:
    logger.error("%s in the storage is damaged: %s", key, why)
    return StorageUnavailable("What is stored is damaged.")
