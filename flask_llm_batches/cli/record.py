"""Commands about the record: usage, reconcile, purge, and the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from flask import current_app
from flask.cli import with_appcontext

from flask_llm_batches.cli.group import MISUSED, Failure, json_option, owner_option
from flask_llm_batches.cli.output import for_people, plain, print_rows
from flask_llm_batches.cli.submit import pairs
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.principal import Owner
from flask_llm_batches.store.usage import GROUPS, UsageSum
from flask_llm_batches.web.files import files_beside
from flask_llm_batches.web.openapi import document, mounted_at
from flask_llm_batches.web.schemas import RequestSchema, load
from flask_llm_batches.web.schemas.usage import Moment, UsageQuerySchema
from flask_llm_batches.web.usage import group_name, usage_csv


@click.command(epilog="Example: flask llm-batches usage --group-by owner --since 2026-11-01")
@owner_option
@click.option("--since", help="From this day (2026-11-01) or time on, in UTC.")
@click.option("--until", help="Before this day or time.")
@click.option("--group-by", type=click.Choice(GROUPS))
@json_option
@with_appcontext
def usage(owner: Owner, since: str | None, until: str | None, group_by: str | None, *, as_json: bool) -> None:
    """Print the usage: requests, tokens, and the cost in US dollars. Except on a terminal, it is CSV."""
    given = {"since": since, "until": until, "group_by": group_by}
    query = load(UsageQuerySchema(), {name: value for name, value in given.items() if value is not None})
    sums = current_llm_batches.usage(owner=owner, **query)
    if not as_json and not for_people():
        click.echo(usage_csv(sums, group_by), nl=False)
        return
    rows = [(group_name(one, group_by), *one[1:]) for one in sums]
    print_rows((group_by or "group", *UsageSum._fields[1:]), rows, as_json=as_json)


@click.command(epilog="Example: flask llm-batches reconcile --give-up 0123456789abcdef0123456789abcdef")
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
    callback=pairs,
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
    """Look at the providers for batches whose create got no answer. Run it after a crash.

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
        click.echo(f"{settled.uid}  {settled.state:10}  {settled.provider}  {plain(settled.owner)}")
        for batch_id in settled.candidates:
            click.echo(f"    may be {plain(batch_id)}")
        states.append(settled.state)
    found, failed = states.count("accepted"), states.count("failed")
    unknown = len(states) - found - failed
    click.echo(f"{found} found, {failed} not there, {unknown} still unknown")
    if unknown:
        click.echo(
            "They are looked for again automatically. Those that no provider lists count as failed "
            f"{current_llm_batches.settings.search_window:,.0f} seconds after their create.",
            err=True,
        )


class _PurgeSchema(RequestSchema):
    before = Moment()


@click.command(epilog="Example: flask llm-batches purge --before 2026-01-01 --dry-run")
@click.option("--before", required=True, metavar="TIME", help="A day (2026-11-01) or time, in UTC.")
@click.option("--usage", is_flag=True, help="Delete the usage of these batches, too. Sums will lack it.")
@click.option("--dry-run", is_flag=True, help="Count the batches only.")
@with_appcontext
def purge(*, before: str, usage: bool, dry_run: bool) -> None:
    """Delete the record of batches that have ended and were created before a time, with their results.

    Their Idempotency-Keys can be used again, and their owners can no longer see them. Batches that still run,
    or that are being looked for, are kept. Input files of that time that no batch waits for are deleted, too.
    """
    query = load(_PurgeSchema(), {"before": before})
    count = current_llm_batches.purge(before=query["before"], usage=usage, dry_run=dry_run)
    click.echo(f"{count} batches {'would be' if dry_run else 'are'} deleted")


@click.command(epilog="Example: flask llm-batches openapi > openapi.json")
@with_appcontext
def openapi() -> None:
    """Print the OpenAPI document, as it is under the first URL prefix."""
    prefix = next(mounted_at(current_app), None)
    if prefix is None:
        raise Failure(
            "The endpoints are not registered: app.register_blueprint(llm_batches.blueprint, url_prefix=...)",
            MISUSED,
        )
    files = files_beside(current_llm_batches.settings.files_url_prefix, prefix)
    click.echo(json.dumps(document(prefix, files), indent=2))
