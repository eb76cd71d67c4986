"""Bytes into lines: requests come in as JSONL, and results go out as it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Lines:
    """Splits bytes at line feeds, however they are cut into chunks; holds only the unfinished line."""

    def __init__(self) -> None:
        self._unfinished: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Give the lines that end in this chunk."""
        first, *others = chunk.split(b"\n")
        self._unfinished.append(first)
        if not others:
            return []
        lines = [b"".join(self._unfinished), *others]
        self._unfinished = [lines.pop()]
        return lines

    def rest(self) -> bytes:
        """Give what came after the last line feed."""
        return b"".join(self._unfinished)


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the lines of chunks, without their ends, and what comes after the last end, if only nothing."""
    lines = Lines()
    for chunk in chunks:
        yield from lines.feed(chunk)
    yield lines.rest()
