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

# The escapes of JSON strings. The group is half a surrogate pair; a model's answer may end with one.
_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)

# This does not match inside a string, in which quotes are escaped.
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.)*+")')


def read_rows(
    download: Iterable[bytes | None], adapter: Adapter, batch: Batch, *, beat: float
) -> Iterator[Sequence[Row] | None]:
    """Yield the rows of a download in groups as they come, and None after ``beat`` seconds without one.

    Raises:
        ValueError: No line belongs to a request, or too many do not.
    """
    lines = Lines(LONGEST_ROW)
    rows_without_id: list[Row] | None = []  # None after the first row with a ``custom_id``
    junk_bytes = junk_lines = 0
    yielded_at = time.monotonic()
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
        if rows_without_id is not None:
            rows_without_id += rows
            named = any(row.custom_id for row in rows)
            rows, rows_without_id = (rows_without_id, None) if named else ([], rows_without_id)
        if rows or chunk is None or time.monotonic() - yielded_at >= beat:
            yield rows or None
            yielded_at = time.monotonic()
    if rows_without_id:  # such as the error page of a proxy, which tells nothing about the requests
        raise ValueError("the answer has no rows")


def _row(line: bytes, adapter: Adapter, batch: Batch) -> Row:
    try:
        if len(line) > LONGEST_ROW:
            return Row(_custom_id(line), error=TOO_LARGE)
        check_text(line)  # the raw result is not decoded, so its text is not checked otherwise
        try:
            return adapter.row(line, batch)
        except ValueError:  # msgspec's errors are ValueErrors
            return adapter.row(_ESCAPE.sub(_replace_half_character, line), batch)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # or of another shape
        return Row(_custom_id(line), error=UNREADABLE)


def _custom_id(line: bytes) -> str:
    found = _CUSTOM_ID.search(line)
    try:
        return msgspec.json.decode(found[1], type=str) if found else ""
    except ValueError:
        return ""


def _replace_half_character(escape: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if escape[1] else escape[0]
