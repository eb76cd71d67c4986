"""The bytes of a download as they come, unpacked once and a little at a time."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from typing import Any

ACCEPTED = {"Accept-Encoding": "gzip"}
"""The headers of a call for a download."""

_CHUNK = 1 << 16
_SLICE = 1 << 14  # what follows a member of gzip is copied, and there may be hundreds of members in a chunk


async def unpacked(response: Any) -> AsyncGenerator[bytes, None]:
    """Yield the body of a response of httpx's, at most 64 KiB at a time when it is packed.

    httpx would unpack gzip within gzip, and all that a chunk stands for at once: a few KiB become gigabytes.

    Raises:
        ValueError: It is packed otherwise than by gzip, or ends before its gzip does.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in response.aiter_raw():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip"):
        raise ValueError(f"a download packed by {encoding[:64]!r}, and not by gzip")
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
        raise ValueError("a download that ends before its gzip does")
