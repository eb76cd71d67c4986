"""The view of the usage, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal

from flask import Response, request

from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.store.usage import UsageSum
from flask_llm_batches.web.auth import caller
from flask_llm_batches.web.responses import answer
from flask_llm_batches.web.schemas import load_query
from flask_llm_batches.web.schemas.usage import UsageQuerySchema, UsageSchema

USAGE, USAGE_QUERY = UsageSchema(), UsageQuerySchema()
USAGE_TYPES = ("application/json", "text/csv")

_BEGIN_FORMULAS = "=+-@\t\r\uff1d\uff0b\uff0d\uff20"  # the last four are full-width


def usage() -> Response:
    query = load_query(USAGE_QUERY)
    sums = current_llm_batches.usage(owner=caller(), **query)
    group_by = query.get("group_by")
    if request.accept_mimetypes.best_match(USAGE_TYPES, "application/json") == "text/csv":
        return Response(usage_csv(sums, group_by), mimetype="text/csv")
    rows = [row._asdict() | {"group": group_name(row, group_by)} for row in sums]
    return answer(USAGE, {"group_by": group_by, "data": rows})


def group_name(row: UsageSum, group_by: str | None) -> str | None:
    """Return the name of a sum's group, a day as 2026-11-23; None if there is one sum of all."""
    if group_by == "day":
        return datetime.fromtimestamp(int(row.group), UTC).date().isoformat()
    return None if group_by is None else str(row.group)


def cell(name: str | None) -> str:
    """Return a name in a form that no spreadsheet takes for a formula: callers can choose names."""
    return f"'{name}" if name and name[0] in _BEGIN_FORMULAS else name or ""


def usage_csv(sums: Iterable[UsageSum], group_by: str | None) -> str:
    """Write sums as CSV, with a line of names first."""
    text = io.StringIO()
    # All cells are quoted: a spreadsheet whose separator is ";" would split a name at it.
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    names = UsageSum._fields[1:]
    writer.writerow(names if group_by is None else (group_by, *names))
    for row in sums:
        figures = [format(value, "f") if isinstance(value, Decimal) else value for value in row[1:]]
        writer.writerow(figures if group_by is None else [cell(group_name(row, group_by)), *figures])
    return text.getvalue()
