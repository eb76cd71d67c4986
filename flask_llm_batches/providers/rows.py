"""Reads the rows of a provider's download: one row for each line, even if the line is damaged."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import msgspec

from flask_llm_batches.batch import LONGEST_ROW, TOO_LARGE, UNREADABLE, Batch, Row
from flask_llm_batches.jsonl import Lines
from flask_llm_batches.providers.adapters import Adapter
from flask_llm_batches.untrusted import check_text

# The most bytes and lines that belong to no request: blank lines, unknown ids, the excess of long lines.
_JUNK_BYTES, _JUNK_LINES = 64 * 1024 * 1024, 10_000

# The escapes of JSON strings; the group is half a character, which a model's answer may end with.
_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)

# The first one that is not inside of a string: there its quotes would be escaped.
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.)*+")')


def read_rows(
    download: Iterable[bytes | None], adapter: Adapter, batch: Batch, *, beat: float
) -> Iterator[Sequence[Row] | None]:
    """Yield the rows of a download in groups as they come, and None after ``beat`` seconds without one.

    Raises:
        ValueError: No line belongs to a request, or too many do not.
    """
    lines = Lines(LONGEST_ROW)
    nameless: list[Row] | None = []  # until there is a row of a request
    junk_bytes = junk_lines = 0
    heard = time.monotonic()
    for chunk in chain(download, (b"\n",)):
        rows = []
        for line in lines.feed(chunk or b""):
            if line.strip():
                row = _row(line, adapter, batch)
                rows.append(row)
                if row.custom_id:
                    continue
                junk_lines += 1
            junk_bytes += len(line) + 1
        if junk_bytes + lines.cut > _JUNK_BYTES or junk_lines > _JUNK_LINES:
            raise ValueError("the answer has too much that is no row of a request")
        if nameless is not None:
            nameless += rows
            named = any(row.custom_id for row in rows)
            rows, nameless = (nameless, None) if named else ([], nameless)
        if rows or chunk is None or time.monotonic() - heard >= beat:
            yield rows or None
            heard = time.monotonic()
    if nameless:  # a page of a proxy's, say: then nothing is known of any request
        raise ValueError("the answer has no rows")


def _row(line: bytes, adapter: Adapter, batch: Batch) -> Row:
    try:
        if len(line) > LONGEST_ROW:
            return Row(_custom_id(line), error=TOO_LARGE)
        check_text(line)  # what is passed on as it came is not decoded, and so not checked
        try:
            return adapter.row(line, batch)
        except ValueError:  # msgspec's errors are ValueErrors
            return adapter.row(_ESCAPE.sub(_mended, line), batch)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # a row of another shape, too
        return Row(_custom_id(line), error=UNREADABLE)


def _custom_id(line: bytes) -> str:
    found = _CUSTOM_ID.search(line)
    try:
        return msgspec.json.decode(found[1], type=str) if found else ""
    except ValueError:
        return ""


def _mended(escape: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if escape[1] else escape[0]
