"""Commands that submit batches, and wait for them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from flask.cli import with_appcontext

from flask_llm_batches.batch import Batch
from flask_llm_batches.cli.group import FAILED, json_option, owner_option, provider_option
from flask_llm_batches.cli.output import plain, print_batches, print_json, print_pairs
from flask_llm_batches.config import MAX_RETRIES
from flask_llm_batches.core.asked import DEFAULT_ENDPOINT, Checked
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.principal import Owner
from flask_llm_batches.web.schemas.batches import CheckedSchema

OPERATOR = "operator"
"""The owner of batches that are submitted on the command line without ``--owner``."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0  # seconds between two polls
_PATIENCE = 10  # polls in a row that may fail
_INTERRUPTED = 130  # 128 + SIGINT, as in shells


def pairs(
    _context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> Sequence[tuple[str, str]]:
    """Split the values of an option at their first "="."""
    found = [one.partition("=") for one in given]
    if not all(key and equals and value for key, equals, value in found):
        raise click.BadParameter(f"not {parameter.metavar}")
    return [(key, value) for key, _, value in found]


@click.command(epilog="Example: flask llm-batches submit requests.jsonl --model openai:gpt-4o-mini --wait")
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@click.option(
    "--model", help="provider:model, or a name in LLM_BATCHES_MODELS; by default that of the requests."
)
@click.option("--owner", default=OPERATOR, show_default=True, help="Whose the batches will be.")
@click.option(
    "--endpoint", default=DEFAULT_ENDPOINT, show_default=True, help="The endpoint of every request."
)
@click.option(
    "--metadata", multiple=True, callback=pairs, metavar="KEY=VALUE", help="May be given several times."
)
@click.option("--on-results", metavar="NAME", help="The handler that a worker calls with the rows.")
@click.option("--webhook", metavar="NAME", help="The webhook that a worker sends when it has ended.")
@click.option(
    "--retries", type=click.IntRange(0, MAX_RETRIES), help="How often failed requests are repeated."
)
@click.option("--key", help="An Idempotency-Key: the same FILE with the same key makes one batch.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the batches have ended.")
@click.option(
    "--dry-run", is_flag=True, help="Check the files, and print what they would cost. Submit nothing."
)
@json_option
@click.pass_context
@with_appcontext
def submit(
    context: click.Context,
    /,
    files: Sequence[str],
    metadata: Sequence[tuple[str, str]],
    key: str | None,
    *,
    waits: bool,
    dry_run: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Submit a batch of each FILE, and print their ids.

    A FILE has a request on each line, as JSON: {"custom_id": "r1", "body": {...}}. "-" is standard input.
    """
    if key is not None and len(files) > 1:
        raise click.UsageError("--key is for one FILE: another one is another batch")
    asked |= {"metadata": dict(metadata) or None, "idempotency_key": key}
    made = []
    for file in files:
        requests = sys.stdin.buffer if file == "-" else Path(file)
        try:
            if dry_run:
                _print_checked(file, current_llm_batches.check(requests=requests, **asked), as_json=as_json)
                continue
            batch = current_llm_batches.create(requests=requests, **asked)
        except LLMBatchesError:
            click.echo(f"{plain(file)}: not {'accepted' if dry_run else 'submitted'}", err=True)
            raise
        made.append(batch.id)
        if waits:
            click.echo(f"{plain(file)}: submitted as {batch.id}", err=True)
        elif as_json:
            print_batches([batch], as_json=True)
        else:
            click.echo(batch.id)
    if made and waits:
        wait_for(context, made, owner=asked["owner"], as_json=as_json)


def _print_checked(file: str, checked: Checked, *, as_json: bool) -> None:
    found = CheckedSchema().dump(checked)
    if as_json:
        print_json({"file": file, **found})
    else:
        print_pairs({"file": file, **found, "valid": "yes", "warnings": " ".join(found["warnings"]) or None})


@click.command(epilog="Example: flask llm-batches wait batch_0123456789abcdef")
@click.argument("batch_ids", metavar="BATCH_ID...", nargs=-1, required=True)
@owner_option
@provider_option
@json_option
@click.pass_context
@with_appcontext
def wait(
    context: click.Context, batch_ids: Sequence[str], owner: Owner, provider: str | None, *, as_json: bool
) -> None:
    """Wait until batches have ended, and print how.

    Ctrl-C ends the command only: the batches go on. The exit code is 1 if a batch has failed, or a row.
    """
    wait_for(context, batch_ids, owner=owner, provider=provider, as_json=as_json)


def wait_for(
    context: click.Context,
    batch_ids: Sequence[str],
    *,
    owner: Owner,
    as_json: bool,
    provider: str | None = None,
) -> None:
    """Wait until batches have ended, and print how. If a batch or a row has failed, end with 1."""
    try:
        ended = _follow(batch_ids, owner, provider)
    except KeyboardInterrupt:
        click.echo(
            f"\nThe batches go on. To wait again: flask llm-batches wait {' '.join(map(plain, batch_ids))}",
            err=True,
        )
        context.exit(_INTERRUPTED)
    print_batches(ended, as_json=as_json)
    if any(one.status != "completed" or (one.request_counts or {}).get("failed") for one in ended):
        context.exit(FAILED)


def _follow(batch_ids: Sequence[str], owner: Owner, provider: str | None) -> Sequence[Batch]:
    """Poll batches until all have ended, with a bar for each on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    seen: dict[str, Batch] = {}
    first: dict[str, tuple[float, int]] = {}
    columns = (
        TextColumn("{task.fields[id]}", markup=False),
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {
            one: progress.add_task("", total=None, id=plain(one), rate="") for one in dict.fromkeys(batch_ids)
        }
        pause, failures = _FIRST_PAUSE, 0
        while True:
            for batch_id, bar in bars.items():
                if batch_id in seen and seen[batch_id].finished:
                    continue
                try:
                    batch = seen[batch_id] = current_llm_batches.retrieve(
                        batch_id, owner=owner, provider=provider
                    )
                except LLMBatchesError as error:
                    failures += 1
                    if not error.passes or failures > _PATIENCE * len(bars):
                        raise
                    click.echo(f"{plain(batch_id)}: {plain(error)} Trying again.", err=True)
                    continue
                failures = 0
                counts = batch.request_counts or {}
                done = (counts.get("completed") or 0) + (counts.get("failed") or 0)
                began, before = first.setdefault(batch_id, (time.monotonic(), done))
                rate = (done - before) / max(time.monotonic() - began, _FIRST_PAUSE)
                progress.update(
                    bar,
                    description=batch.status,
                    completed=done,
                    total=counts.get("total") or None,
                    rate=f"{rate:,.1f}/s",
                )
            if len(seen) == len(bars) and all(one.finished for one in seen.values()):
                return [seen[one] for one in bars]
            time.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_PAUSE)
