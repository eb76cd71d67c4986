"""Streams the bytes of a response, and unpacks them once, in small pieces."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

ACCEPTED = {"Accept-Encoding": "gzip"}
"""The request headers of a download."""

_CHUNK = 1 << 16
_SLICE = 1 << 14  # zlib copies the rest after each gzip member, and a chunk may have hundreds


async def unpacked(response: Any) -> AsyncGenerator[bytes, None]:
    """Yield the body of an httpx response; if it is gzipped, at most 64 KiB at a time.

    httpx would unpack nested gzip, and each chunk as a whole: a few KiB may become gigabytes.

    Raises:
        ValueError: The encoding is not gzip, or the gzip data end too early.
    """
    async for piece in unpack(response.headers.get("Content-Encoding", ""), response.aiter_raw()):
        yield piece


async def unpack(encoding: str, chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield a body in pieces as ``unpacked`` does."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        async for chunk in chunks:
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError(f"the encoding of a response is {encoding[:64]!r}, not gzip")
    member = zlib.decompressobj(wbits=31)
    async for chunk in chunks:
        for start in range(0, len(chunk), _SLICE):
            packed = chunk[start : start + _SLICE]
            while packed:
                if member.eof:  # another member follows
                    member = zlib.decompressobj(wbits=31)
                if piece := member.decompress(packed, _CHUNK):
                    yield piece
                packed = member.unconsumed_tail or member.unused_data
    if not member.eof:
        raise ValueError("the gzip data of a response end too early")
