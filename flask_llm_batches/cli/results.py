"""The command that writes the results of a batch."""

from __future__ import annotations

import csv
import io
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shutil import copymode
from typing import IO

import click
from flask.cli import with_appcontext

from flask_llm_batches.batch import Row, parsed
from flask_llm_batches.cli.group import FAILED, MISUSED, Failure, owner_option, provider_option
from flask_llm_batches.cli.output import for_people, lines, plain
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.delivery import DeliveredRow
from flask_llm_batches.jsonl import encode_lines
from flask_llm_batches.principal import Owner
from flask_llm_batches.web.usage import cell

Shown = Callable[[str], str]
"""Returns text as it is written: on a terminal, without what could control it."""

_C1 = re.compile(rb"\x7f|\xc2[\x80-\x9f]")


def _jsonl(rows: Sequence[Row], shown: Shown) -> bytes:
    text = encode_lines(rows)
    # JSON has escapes for other control characters already.
    return text if shown is str else _C1.sub(lambda sign: b"\\u00%02x" % sign[0][-1], text)


def _csv(rows: Sequence[Row], shown: Shown) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for row in rows:
        error = (None, None) if row.error is None else (row.error.code, row.error.message)
        writer.writerow([shown(cell(value) or "") for value in (row.custom_id, _text_of(row), *error)])
    return text.getvalue().encode()


def _text(rows: Sequence[Row], shown: Shown) -> bytes:
    return "".join(_paragraph(row, shown) for row in rows).encode("utf-8", "replace")


def _paragraph(row: Row, shown: Shown) -> str:
    text = _text_of(row) if row.error is None else f"{row.error.code}: {row.error.message}"
    head = f"== {plain(row.custom_id)}{'' if row.error is None else ' failed'}"
    return "\n".join([head, shown(text or ""), "", ""])


def _text_of(row: Row) -> str | None:
    # msgspec refuses numbers that fit into no float, such as 1e400.
    result = None if row.result is None else parsed(row.result)
    return DeliveredRow(row.custom_id, result, row.error, "").text


_HEAD = b'"custom_id","text","error_code","error_message"\r\n'
_FORMATS: dict[str, tuple[bytes, Callable[[Sequence[Row], Shown], bytes]]] = {
    "jsonl": (b"", _jsonl),
    "csv": (_HEAD, _csv),
    "text": (b"", _text),
}


@click.command(epilog="Example: flask llm-batches results batch_0123456789abcdef --format csv -o labels.csv")
@click.argument("batch_id")
@owner_option
@provider_option
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(dir_okay=False), help="By default standard output."
)
@click.option("--failed", is_flag=True, help="Only the rows that have an error.")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_FORMATS)),
    default="jsonl",
    show_default=True,
    help="jsonl: the whole rows. csv: custom_id, text and error. text: what the models wrote.",
)
@click.pass_context
@with_appcontext
def results(
    context: click.Context,
    batch_id: str,
    owner: Owner,
    provider: str | None,
    output: str | None,
    form: str,
    *,
    failed: bool,
) -> None:
    """Write the results of a batch that has ended.

    FILE is written when all rows are there, and not before. The exit code is 1 if a row has failed.
    """
    head, write = _FORMATS[form]
    shown = lines if output is None and for_people() else str
    found = current_llm_batches.results(
        batch_id, owner=owner, provider=provider, status="failed" if failed else None
    )
    failures = rows = 0
    with closing(found), _written(output) as file:
        file.write(head)
        for group in found.groups():
            rows += len(group or ())
            failures += sum(row.error is not None for row in group or ())
            file.write(write(group or (), shown))
        file.flush()
    if output is not None:
        click.echo(f"{rows:,} rows, of which {failures:,} failed, are in {output}", err=True)
    if failures:
        context.exit(FAILED)


@contextmanager
def _written(output: str | None) -> Iterator[IO[bytes]]:
    """Open the output. A file has its name only when the block has ended without an error."""
    if output is None:
        yield sys.stdout.buffer
        return
    path = Path(output)
    try:
        if path.exists() and not path.is_file():  # such as /dev/stdout or a pipe: nothing may replace it
            with path.open("wb") as file:
                yield file
            return
        path = path.resolve()  # a link stays a link
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # another command may write it, too
        try:
            with part.open("wb") as file:
                if path.exists():
                    copymode(path, part)  # who could not read it still cannot
                yield file
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink()
    except OSError as error:
        raise Failure(f"{output} cannot be written: {error.strerror}", MISUSED) from None
