"""Rows out of a provider's download: one of a line, whatever the line is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import msgspec

from flask_llm_batches.batch import Batch, Row, RowError
from flask_llm_batches.jsonl import Lines
from flask_llm_batches.providers.adapters import Adapter

_UNREADABLE = RowError("unreadable", "The provider's row for this request is damaged")

# The escapes of JSON strings; the group is half a character, which a model's answer may end with.
_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)

# The first one that is not inside of a string: there its quotes would be escaped.
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.)*+")')


def read_rows(
    download: Iterable[bytes | None], adapter: Adapter, batch: Batch
) -> Iterator[Sequence[Row] | None]:
    """Give the rows of a download as its lines come, and None where it does.

    Raises:
        ValueError: No line is about a request.
    """
    lines = Lines()
    nameless: list[Row] | None = []  # until there is a row of a request
    for chunk in chain(download, (b"\n",)):
        if chunk is None:
            yield None
            continue
        rows = [_row(line, adapter, batch) for line in lines.feed(chunk) if line.strip()]
        if nameless is not None:
            nameless += rows
            if not any(row.custom_id for row in rows):
                continue
            rows, nameless = nameless, None
        if rows:
            yield rows
    if nameless:  # a page of a proxy's, say: then nothing is known of any request
        raise ValueError("the answer has no rows")


def _row(line: bytes, adapter: Adapter, batch: Batch) -> Row:
    try:
        str(line, "utf-8")  # what is handed on as it came is not decoded, and so not checked
        try:
            return adapter.row(line, batch)
        except ValueError:  # msgspec's errors are ValueErrors
            return adapter.row(_ESCAPE.sub(_mended, line), batch)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # a row of another shape, too
        found = _CUSTOM_ID.search(line)
        try:
            custom_id = msgspec.json.decode(found[1], type=str) if found else ""
        except ValueError:
            custom_id = ""
        return Row(custom_id, error=_UNREADABLE)


def _mended(escape: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if escape[1] else escape[0]
