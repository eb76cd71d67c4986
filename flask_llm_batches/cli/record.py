"""Commands about the record: usage, reconcile, purge, and the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from flask import current_app
from flask.cli import with_appcontext

from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.principal import EVERYONE
from flask_llm_batches.store.usage import GROUPS
from flask_llm_batches.web.openapi import document, mounted_at
from flask_llm_batches.web.schemas import load
from flask_llm_batches.web.schemas.usage import UsageQuerySchema
from flask_llm_batches.web.usage import usage_csv


@click.command()
@click.option("--since", help="From this day (2026-11-01) or time on, in UTC.")
@click.option("--until", help="Before this day or time.")
@click.option("--group-by", type=click.Choice(GROUPS))
@with_appcontext
def usage(since: str | None, until: str | None, group_by: str | None) -> None:
    """Print the usage of all owners as CSV: requests, tokens, and the cost in US dollars."""
    given = {"since": since, "until": until, "group_by": group_by}
    query = load(UsageQuerySchema(), {name: value for name, value in given.items() if value is not None})
    click.echo(usage_csv(current_llm_batches.usage(owner=EVERYONE, **query), group_by), nl=False)


def _pairs(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> list[list[str]]:
    pairs = [one.split("=", 1) for one in given]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise click.BadParameter("not UID=BATCH_ID")
    return pairs


@click.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="A batch fails if its create ended without an answer so long ago and the provider does not list it. "
    "At least 120; by default LLM_BATCHES_SEARCH_WINDOW, an hour.",
)
@click.option(
    "--adopt",
    "adopted",
    multiple=True,
    callback=_pairs,
    metavar="UID=BATCH_ID",
    help="Record that the unsettled batch UID is the provider's batch BATCH_ID.",
)
@click.option(
    "--give-up",
    "given_up",
    multiple=True,
    metavar="UID",
    help="Record that the provider does not have the batch UID.",
)
@with_appcontext
def reconcile(older_than: float | None, adopted: Sequence[tuple[str, str]], given_up: Sequence[str]) -> None:
    """Look for batches whose create got no answer at their providers. Run it after a crash.

    Anthropic and Gemini keep no metadata, so their lists do not show which create made a batch. The
    candidates are printed below the batch: record the right one with --adopt, or record with --give-up that
    it is none of them.
    """
    for uid, batch_id in adopted:
        batch = current_llm_batches.adopt(uid, batch_id)
        click.echo(f"{uid} is {batch.id} at {batch.provider}, {batch.status}")
    for uid in given_up:
        current_llm_batches.give_up(uid)
        click.echo(f"{uid} is given up")
    if adopted or given_up:
        return
    states = []
    for settled in current_llm_batches.reconcile(older_than=older_than):
        click.echo(f"{settled.uid}  {settled.state:10}  {settled.provider}  {settled.owner}")
        for batch_id in settled.candidates:
            click.echo(f"    may be {batch_id}")
        states.append(settled.state)
    found, failed = states.count("accepted"), states.count("failed")
    click.echo(f"{found} found, {failed} not there, {len(states) - found - failed} still unknown")


@click.command()
@click.option("--before", required=True, metavar="TIME", help="A day (2026-11-01) or time, in UTC.")
@click.option("--usage", is_flag=True, help="Delete the usage of these batches, too: sums lose it.")
@click.option("--dry-run", is_flag=True, help="Count the batches only.")
@with_appcontext
def purge(*, before: str, usage: bool, dry_run: bool) -> None:
    """Delete the record of batches that have ended and were created before a time.

    Their Idempotency-Keys can be used again, and their owners can no longer see them. Batches that still run,
    or that are being looked for, are kept.
    """
    query = load(UsageQuerySchema(), {"until": before})
    count = current_llm_batches.purge(before=query["until"], usage=usage, dry_run=dry_run)
    click.echo(f"{count} batches {'would be' if dry_run else 'are'} deleted")


@click.command()
@with_appcontext
def openapi() -> None:
    """Print the OpenAPI document, as it is under the first URL prefix."""
    prefix = next(mounted_at(current_app), None)
    if prefix is None:
        raise click.ClickException(
            "The endpoints are not registered: app.register_blueprint(llm_batches.blueprint, url_prefix=...)"
        )
    click.echo(json.dumps(document(prefix), indent=2))
