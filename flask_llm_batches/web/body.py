"""Reads the body of a create: decompressed, and up to the limit."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from flask import request
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge

from flask_llm_batches.errors import UnsupportedMediaType, ValidationFailed

_CHUNK = 1 << 16
_MAX_MEMBERS = 20_000  # an empty one has 20 bytes; bgzip makes one for each 64 KiB


def read_body() -> Iterator[bytes]:
    """Return the body in chunks, read from the socket one by one.

    Raises:
        ClientDisconnected: It breaks off.
        RequestEntityTooLarge: It has more bytes than ``request.max_content_length``, packed or unpacked.
        UnsupportedMediaType: Its Content-Encoding is not gzip.
        ValidationFailed: It is not what its Content-Encoding says.
    """
    chunks = _received()
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return chunks
    if encoding not in ("gzip", "x-gzip"):
        raise UnsupportedMediaType("The Content-Encoding of a create must be gzip, or none")
    return _within_limit(_gunzipped(chunks), request.max_content_length)


def _received() -> Iterator[bytes]:
    size = 0
    while chunk := _receive():
        size += len(chunk)
        yield chunk
    # With ``wsgi.input_terminated``, werkzeug does not compare the length.
    if size < (request.content_length or 0):
        raise ClientDisconnected


def _receive() -> bytes:
    try:
        return request.stream.read(_CHUNK)
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001  # every server has its own error for a body that breaks off
        raise ClientDisconnected from None


def _gunzipped(chunks: Iterator[bytes]) -> Iterator[bytes]:
    unpack = zlib.decompressobj(wbits=31)
    begun = False
    members = 1
    try:
        for chunk in chunks:
            packed = chunk
            while packed:
                if unpack.eof:  # another member follows
                    unpack = zlib.decompressobj(wbits=31)
                    members += 1
                    if members > _MAX_MEMBERS:
                        raise ValidationFailed.of(f"The body has more than {_MAX_MEMBERS} gzip members.")
                # In small pieces: a few bytes may unpack to gigabytes.
                yield unpack.decompress(packed, _CHUNK)
                packed = unpack.unconsumed_tail or unpack.unused_data
                begun = True
    except zlib.error:
        raise ValidationFailed.of("The body is not gzip, as its Content-Encoding says.") from None
    if begun and not unpack.eof:
        raise ValidationFailed.of("The body ends before its gzip does.")


def _within_limit(chunks: Iterator[bytes], limit: int | None) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if limit is not None and size > limit:
            raise RequestEntityTooLarge
        yield chunk
