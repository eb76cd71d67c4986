"""How the pages show times, figures and rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from typing import NamedTuple

import msgspec

from flask_llm_batches.batch import Batch, Row
from flask_llm_batches.core.detail import Part

_LONGEST_TEXT = 64 * 1024  # bytes of a request or a response on a page
_DEEPEST = 50
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')

NONE = "\N{EN DASH}"
"""The text for a figure that is not known."""

_SMALLEST = Decimal("0.0001")
_EVENTS = {
    "created_at": "Created",
    "in_progress_at": "In progress",
    "finalizing_at": "Finalizing",
    "cancelling_at": "Cancelling",
    "completed_at": "Completed",
    "failed_at": "Failed",
    "expired_at": "Expired",
    "cancelled_at": "Cancelled",
}


def moment(seconds: int) -> str:
    """Return a time as 2026-11-28 22:47:05."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def duration(seconds: int) -> str:
    """Return a number of seconds in its two largest units."""
    units = [("d", seconds // 86_400), ("h", seconds // 3600 % 24), ("min", seconds // 60 % 60)]
    units.append(("s", seconds % 60))
    first = next((place for place, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[first : first + 2] if count) or "0 s"


def number(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def counts(of: Batch | Part) -> Mapping[str, int | None]:
    """Return how many requests there are, None for each number if the provider does not count them."""
    return of.request_counts or dict.fromkeys(("total", "completed", "failed"))


def dollars(value: Decimal | None) -> str:
    """Return a price with two decimals, and one below a dollar with four."""
    if value is None:
        return NONE
    if value >= 1 or not value:
        return f"${value:,.2f}"
    return f"${value:.4f}" if value >= _SMALLEST else f"<${_SMALLEST}"


class Event(NamedTuple):
    """Something that happened to a batch, and how long after the event before it."""

    name: str
    at: int
    after: str | None


def timeline(batch: Batch) -> Sequence[Event]:
    """Return what happened to a batch, in order."""
    times = [(getattr(batch, field), name) for field, name in _EVENTS.items()]
    happened = sorted(((at, name) for at, name in times if at is not None), key=lambda event: event[0])
    befores = [None, *(at for at, _ in happened)]
    return [
        Event(name, at, None if before in (None, at) else duration(at - int(before or 0)))
        for before, (at, name) in zip(befores, happened, strict=False)
    ]


class Bar(NamedTuple):
    """A bar of a plot, in its coordinates: ten units wide with its gap, and up to a hundred high."""

    label: str
    value: Decimal
    x: int
    height: float


def spend_by_day(spent: Mapping[int, Decimal], *, first: date, last: date) -> Sequence[Bar]:
    """Return a bar for each day, also for those without a cost."""
    costs = {datetime.fromtimestamp(at, UTC).date(): cost for at, cost in spent.items()}
    dates = [first + timedelta(days=count) for count in range((last - first).days + 1)]
    most = max((costs.get(day, Decimal(0)) for day in dates), default=Decimal(0)) or Decimal(1)
    bars = []
    for place, day in enumerate(dates):
        cost = costs.get(day, Decimal(0))
        # A day with any cost is seen.
        height = max(1.0, float(cost / most) * 100) if cost else 0.0
        bars.append(Bar(day.isoformat(), cost, place * 10, round(height, 2)))
    return bars


def request_text(line: bytes | None) -> str | None:
    return None if line is None else _text(line)


def row_text(row: Row | None) -> str | None:
    """Return the result or the error of a row as indented JSON."""
    if row is None:
        return None
    return _text(msgspec.json.encode(row.error) if row.result is None else row.result)


def _text(content: bytes | msgspec.Raw) -> str:
    whole = memoryview(content)  # it may be large, and is not copied
    shown = bytes(whole[:_LONGEST_TEXT])
    if len(shown) < whole.nbytes:
        return f"{shown.decode('utf-8', 'ignore')}\n\n(These are the first 64 KiB.)"
    if _depth(shown) <= _DEEPEST:
        with suppress(ValueError, RecursionError):  # what providers return may be anything
            shown = msgspec.json.format(shown, indent=2)
    return shown.decode("utf-8", "replace")


def _depth(content: bytes) -> int:
    """Return how deep JSON nests: deep JSON is mostly spaces if it is indented."""
    steps = (1 if byte in b"[{" else -1 if byte in b"]}" else 0 for byte in _STRING.sub(b"", content))
    return max(accumulate(steps), default=0)
