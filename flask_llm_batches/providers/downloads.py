"""Streams the bytes of a download, and unpacks them once, in small pieces."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
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
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in response.aiter_raw():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError(f"the encoding of a download is {encoding[:64]!r}, not gzip")
    unpack = zlib.decompressobj(wbits=31)
    async for chunk in response.aiter_raw():
        for start in range(0, len(chunk), _SLICE):
            packed = chunk[start : start + _SLICE]
            while packed:
                if unpack.eof:  # another member follows
                    unpack = zlib.decompressobj(wbits=31)
                if piece := unpack.decompress(packed, _CHUNK):
                    yield piece
                packed = unpack.unconsumed_tail or unpack.unused_data
    if not unpack.eof:
        raise ValueError("the gzip data of a download end too early")
