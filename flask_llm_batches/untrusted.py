"""Reads JSON from callers and providers in memory that is a bounded multiple of its bytes.

A few bytes of JSON may become a hundred bytes in Python: ``{},`` is a dict, ``1,`` a number. So small values
are decoded at once, and the parts of large values are counted first, in constant memory.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import Any

import msgspec

MAX_KEYS = 1000
"""The most keys of a large object."""

SMALL = 1 << 20
"""The bytes up to which any JSON may be decoded: it takes some tens of MiB at most."""

_PIECE = 1 << 20


class TooMany(ValueError):
    """A value has too many parts, or may have too many."""


class _Key:
    """Stands for every key of an object that is counted, so that the dict has one entry."""


_KEY = _Key()


def size(value: msgspec.Raw | bytes | memoryview) -> int:
    """Return the number of bytes."""
    return memoryview(value).nbytes


def read_object(value: msgspec.Raw | bytes | memoryview) -> dict[str, msgspec.Raw]:
    """Return the values of an object, as bytes.

    Raises:
        TooMany: It is large, and has more than ``MAX_KEYS`` keys.
        msgspec.DecodeError: It is no object.
        RecursionError: It nests too deep.
        UnicodeDecodeError: A key is not UTF-8.
    """
    if size(value) > SMALL:
        left = MAX_KEYS

        def count(_type: type, _key: Any) -> _Key:
            nonlocal left
            left -= 1
            if left < 0:
                raise TooMany(f"Has more than {MAX_KEYS} keys.")
            return _KEY

        msgspec.json.decode(value, type=dict[_Key, msgspec.Raw], dec_hook=count)
    return msgspec.json.decode(value, type=dict[str, msgspec.Raw])


def is_longer(array: msgspec.Raw | bytes | memoryview, limit: int) -> bool:
    """Return whether an array has more items than a limit; False if it is not an array.

    msgspec refuses a tuple at the first item too many, and reads no further. The last byte is left out, so
    that a shorter array is refused as incomplete.
    """
    content = memoryview(array)
    if not _has_commas(content, limit):
        return False
    try:
        msgspec.json.decode(content[:-1], type=tuple[(msgspec.Raw,) * (limit + 1)])  # type: ignore[misc]
    except msgspec.ValidationError:
        return bytes(content[:1]) == b"["
    except (msgspec.DecodeError, RecursionError):
        pass
    return False


def _has_commas(content: memoryview, count: int) -> bool:
    """Return whether there are at least ``count`` commas, in constant memory."""
    for start in range(0, content.nbytes, _PIECE):
        count -= bytes(content[start : start + _PIECE]).count(b",")
        if count <= 0:
            return True
    return False


def read_array(value: msgspec.Raw | bytes | memoryview, limit: int) -> list[msgspec.Raw]:
    """Return the items of an array, as bytes.

    Raises:
        TooMany: It has more than ``limit`` items.
        msgspec.DecodeError: It is no array.
        RecursionError: It nests too deep.
    """
    if is_longer(value, limit):
        raise TooMany(f"Has more than {limit} items.")
    return msgspec.json.decode(value, type=list[msgspec.Raw])


def small(value: msgspec.Raw) -> msgspec.Raw:
    """Return the value, if it is small enough to be decoded as anything.

    Raises:
        TooMany: It is large.
    """
    if size(value) > SMALL:
        raise TooMany(f"Longer than {SMALL} bytes.")
    return value


def check_text(value: msgspec.Raw | bytes | memoryview) -> None:
    """Check that bytes are UTF-8, which msgspec does not check in a ``Raw`` value.

    Raises:
        UnicodeDecodeError: They are not.
    """
    content = memoryview(value)
    if content.nbytes <= _PIECE:
        str(content, "utf-8")
        return
    decoder = getincrementaldecoder("utf-8")()
    for start in range(0, content.nbytes, _PIECE):
        decoder.decode(content[start : start + _PIECE])
    decoder.decode(b"", final=True)
