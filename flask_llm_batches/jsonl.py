"""Bytes into lines: requests come in as JSONL, and results go out as it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

NDJSON = ("application/x-ndjson", "application/jsonl")
"""The media types of lines of JSON: the one that we answer with, and the one of OpenAI's files."""


class Lines:
    """Splits bytes at line feeds, however they are cut into chunks; holds only the unfinished line.

    Args:
        longest: The most bytes of a line. Of a longer one there are ``longest + 1``.
    """

    def __init__(self, longest: int = sys.maxsize) -> None:
        self._unfinished: list[bytes] = []
        self._room = self._longest = longest

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in this chunk."""
        first, *others = chunk.split(b"\n")
        self._keep(first)
        if not others:
            return []
        lines = [b"".join(self._unfinished), *others]
        self._unfinished, self._room = [], self._longest
        self._keep(lines.pop())
        return lines

    @property
    def cut(self) -> int:
        """How many bytes of the unfinished line are too many."""
        return max(-self._room, 0)

    def _keep(self, piece: bytes) -> None:
        if self._room >= 0:
            self._unfinished.append(piece[: self._room + 1])
        self._room -= len(piece)

    def rest(self) -> bytes:
        """Return what came after the last line feed."""
        return b"".join(self._unfinished)


def split_lines(chunks: Iterable[bytes], *, longest: int = sys.maxsize) -> Iterator[bytes]:
    """Yield the lines of chunks, without their ends, and what comes after the last end, if only nothing.

    Args:
        chunks: The bytes.
        longest: The most bytes of a line. Of a longer one there are ``longest + 1``.
    """
    lines = Lines(longest)
    for chunk in chunks:
        yield from lines.feed(chunk)
    yield lines.rest()
