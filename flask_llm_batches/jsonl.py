"""Splits bytes into lines of JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

NDJSON = ("application/x-ndjson", "application/jsonl")
"""The media types of lines of JSON: the one that we answer with, and the one of OpenAI's files."""

# Readers such as Python's splitlines take them for ends of lines. JSON may have them in strings, and the last
# one between its values, too.
_LINE_ENDS = (
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
    (b"\xc2\x85", rb"\u0085"),
    (b"\r", b" "),
)


_encoder = msgspec.json.Encoder()


def encode_lines(values: Sequence[Any]) -> bytes:
    """Return values as lines of JSON, in which only line feeds end a line."""
    lines = _encoder.encode_lines(values)
    for end, escape in _LINE_ENDS:
        lines = lines.replace(end, escape)
    return lines


class Lines:
    """Splits chunks of bytes into lines. Only the unfinished line is kept in memory.

    Args:
        longest: The most bytes of a line. A longer one is cut to ``longest + 1`` bytes.
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
        """The number of bytes by which the unfinished line is too long."""
        return max(-self._room, 0)

    def _keep(self, piece: bytes) -> None:
        if self._room >= 0:
            self._unfinished.append(piece[: self._room + 1])
        self._room -= len(piece)

    def rest(self) -> bytes:
        """Return what came after the last line feed."""
        return b"".join(self._unfinished)


def split_lines(chunks: Iterable[bytes], *, longest: int = sys.maxsize) -> Iterator[bytes]:
    """Yield the lines of chunks without their line feeds, and last what follows the last line feed.

    Args:
        chunks: The bytes.
        longest: The most bytes of a line. A longer one is cut to ``longest + 1`` bytes.
    """
    lines = Lines(longest)
    for chunk in chunks:
        yield from lines.feed(chunk)
    yield lines.rest()
