"""What commands print: tables for people, lines for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from shutil import get_terminal_size
from typing import Any

import click
import msgspec

from flask_llm_batches.batch import Batch
from flask_llm_batches.web.schemas.batches import BatchSchema

BATCH = BatchSchema()

_COUNTS = ("total", "completed", "failed")
_BATCH = ("id", "status", "owner", "provider", "model", *_COUNTS, "created")
_NARROW = ("id", "status", "owner", "finished", "failed", "model", "created")
_COLUMNS = 110  # of a terminal that has room for all of them


def for_people() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()  # it is None if it was closed


def plain(value: object) -> str:
    """Return a value as text that cannot control a terminal, whoever chose it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, Decimal):
        value = format(value, "f")
    return _escaped(str(value))


def lines(text: str) -> str:
    """Return text of several lines that cannot control a terminal."""
    return "\n".join(map(_escaped, text.splitlines()))


def _escaped(text: str) -> str:
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def day_and_time(seconds: int | None) -> str | None:
    """Return Unix seconds as 2026-11-28 14:03:20, in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def print_json(value: Any) -> None:
    """Print a JSON object on a line."""
    click.echo(msgspec.json.encode(value))


def print_rows(names: Sequence[str], rows: Iterable[Sequence[object]], *, as_json: bool = False) -> None:
    """Print rows: a table on a terminal, otherwise lines with tabs, or JSON objects.

    Args:
        names: The names of the columns.
        rows: A value for each column.
        as_json: Whether to print JSON.
    """
    if as_json:
        for row in rows:
            print_json(dict(zip(names, row, strict=True)))
        return
    if not for_people():
        for row in rows:
            click.echo("\t".join(map(plain, row)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, show_header=any(names))
    listed = list(rows)
    for number, name in enumerate(names):
        numeric = any(isinstance(row[number], (int, Decimal)) for row in listed)
        # The first column is an id or a name, which people copy.
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=number == 0)
    for row in listed:
        table.add_row(*(Text(f"{one:,}" if isinstance(one, int) else plain(one)) for one in row))
    Console(highlight=False).print(table)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Print names and values, those without a value left out."""
    if rows := [(name, plain(value)) for name, value in pairs.items() if value not in (None, "")]:
        print_rows(("", ""), rows)


def print_batches(batches: Iterable[Batch], *, as_json: bool) -> None:
    """Print batches, one a line."""
    if as_json:
        for batch in batches:
            print_json(BATCH.dump(batch))
    elif for_people():
        names = _NARROW if get_terminal_size().columns >= _COLUMNS else _NARROW[:5]
        print_rows(names, [_narrow_line(batch)[: len(names)] for batch in batches])
    else:
        print_rows(_BATCH, map(_line, batches))


def _line(batch: Batch) -> Sequence[object]:
    counts = batch.request_counts or {}
    return (
        batch.id,
        batch.status,
        batch.owner,
        batch.provider,
        batch.model,
        *(counts.get(name) for name in _COUNTS),
        day_and_time(batch.created_at),
    )


def _narrow_line(batch: Batch) -> Sequence[object]:
    total, completed, failed = ((batch.request_counts or {}).get(name) or 0 for name in _COUNTS)
    return (
        batch.id,
        batch.status,
        batch.owner,
        f"{completed + failed:,}/{total:,}",
        failed,
        batch.provider if batch.model is None else f"{batch.provider}:{batch.model}",
        (day_and_time(batch.created_at) or "")[:16],
    )
