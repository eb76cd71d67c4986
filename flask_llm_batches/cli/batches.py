"""Commands about existing batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from flask.cli import with_appcontext

from flask_llm_batches.batch import STATUSES
from flask_llm_batches.cli.group import json_option, owner_option, provider_option
from flask_llm_batches.cli.output import (
    day_and_time,
    for_people,
    plain,
    print_batches,
    print_json,
    print_pairs,
    print_rows,
)
from flask_llm_batches.cli.submit import wait_for
from flask_llm_batches.core.detail import Part
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.errors import BatchNotFound
from flask_llm_batches.principal import Owner
from flask_llm_batches.web.schemas.detail import DetailSchema

_PART = ("provider", "id", "model", "status", "total", "completed", "failed")


@click.command("list", epilog="Example: flask llm-batches list --status failed --limit 5")
@owner_option
@click.option("--status", type=click.Choice(sorted(STATUSES)), help="Only batches with this status.")
@click.option("--provider", help="Only batches at this provider.")
@click.option("--search", metavar="TEXT", help="An id, an owner, or KEY=VALUE of metadata.")
@click.option(
    "--after", metavar="BATCH_ID", help="Begin after this batch, the last one of the previous page."
)
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@json_option
@with_appcontext
def list_batches(*, as_json: bool, **query: Any) -> None:
    """List the batches of the record, newest first, as they were last seen."""
    page = current_llm_batches.browse(**query)
    print_batches(page.batches, as_json=as_json)
    if page.has_more and for_people():
        click.echo(f"More: --after {page.batches[-1].id}", err=True)


@click.command(epilog="Example: flask llm-batches show batch_0123456789abcdef")
@click.argument("batch_id")
@owner_option
@provider_option
@json_option
@with_appcontext
def show(batch_id: str, owner: Owner, provider: str | None, *, as_json: bool) -> None:
    """Show a batch as it is now, with its parts, and the batches that it was retried by."""
    detail = stale = None
    try:
        seen = current_llm_batches.inspect(batch_id, owner=owner, provider=provider)
        batch, detail, stale = seen.batch, seen.detail, seen.stale
        if seen.sought:
            stale = "its create got no answer, so it is looked for at the provider."
    except BatchNotFound:  # the provider may have it, although it was not made here
        batch = current_llm_batches.retrieve(batch_id, owner=owner, provider=provider)
    if stale is not None:
        click.echo(f"As last seen: {plain(stale)}", err=True)
    shown = batch.to_dict() | {"owner": batch.owner}
    if as_json:
        print_json(DetailSchema().dump(shown | ({} if detail is None else detail._asdict())))
        return
    times = {name: day_and_time(value) for name, value in shown.items() if name.endswith("_at")}
    counts = batch.request_counts or {}
    inner = {
        "request_counts": ", ".join(f"{value:,} {name}" for name, value in counts.items()) or None,
        "metadata": ", ".join(f"{key}={value}" for key, value in (batch.metadata or {}).items()) or None,
        "errors": None,
        "usage": None,
        "object": None,
    }
    print_pairs(shown | times | inner)
    for error in (batch.errors or {}).get("data", ()):
        print_pairs(
            {"error": " ".join(str(error.get(name)) for name in ("code", "message") if error.get(name))}
        )
    if detail is not None:
        linked = {"retry_of": detail.retry_of, "retried_by": " ".join(detail.retried_by) or None}
        print_pairs(linked)
        if len(detail.parts) > 1:
            print_rows(_PART, map(_part, detail.parts))


@click.command(epilog="Example: flask llm-batches parts batch_0123456789abcdef")
@click.argument("batch_id")
@owner_option
@provider_option
@json_option
@with_appcontext
def parts(batch_id: str, owner: Owner, provider: str | None, *, as_json: bool) -> None:
    """Show the parts of a batch, with the provider, the provider's id and the requests of each."""
    detail = current_llm_batches.detail(batch_id, owner=owner, provider=provider)
    print_rows(_PART, map(_part, detail.parts), as_json=as_json)


@click.command(epilog="Example: flask llm-batches cancel batch_0123456789abcdef")
@click.argument("batch_ids", metavar="BATCH_ID...", nargs=-1, required=True)
@owner_option
@provider_option
@json_option
@with_appcontext
def cancel(batch_ids: Sequence[str], owner: Owner, provider: str | None, *, as_json: bool) -> None:
    """Cancel batches. Requests that the provider has finished by then are billed."""
    for batch_id in batch_ids:
        print_batches([current_llm_batches.cancel(batch_id, owner=owner, provider=provider)], as_json=as_json)


@click.command(epilog="Example: flask llm-batches retry batch_0123456789abcdef --wait")
@click.argument("batch_id")
@owner_option
@provider_option
@click.option("--key", help="An Idempotency-Key: the same retry with the same key makes one batch.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the new batch has ended.")
@json_option
@click.pass_context
@with_appcontext
def retry(
    context: click.Context,
    batch_id: str,
    owner: Owner,
    provider: str | None,
    key: str | None,
    *,
    waits: bool,
    as_json: bool,
) -> None:
    """Submit the failed requests of a batch again, as a new batch of its owner, and print its id.

    The new batch has the handler and the webhook of the old one.
    """
    batch = current_llm_batches.retry(batch_id, owner=owner, provider=provider, idempotency_key=key)
    if waits:
        wait_for(context, [batch.id], owner=owner, as_json=as_json)
    elif as_json:
        print_batches([batch], as_json=True)
    else:
        click.echo(batch.id)


def _part(part: Part) -> Sequence[object]:
    counts = part.request_counts or {}
    numbers = (counts.get(name) or 0 for name in ("total", "completed", "failed"))
    return part.provider, part.provider_batch_id, part.model, part.status, *numbers
