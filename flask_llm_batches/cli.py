"""``flask llm-batches``: built-in keys, the usage, what a crash left, and the OpenAPI document."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
from flask.cli import AppGroup

from flask_llm_batches.core.service import current_llm_batches
from flask_llm_batches.core.usage import usage_csv
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.web.openapi import document
from flask_llm_batches.web.schemas import UsageQuerySchema, load


class _Group(AppGroup):
    """Says our errors as the command line does."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, LLMBatchesError) as error:
            raise click.ClickException(str(error)) from None


cli = _Group("llm-batches", help="Batches for large language models.")
keys = _Group("keys", help="Built-in API keys.")
cli.add_command(keys)


@keys.command()
@click.option("--owner", required=True, help="Whose key it is: batches and usage are kept under this name.")
@click.option("--admin", is_flag=True, help="Its bearer sees and touches the batches of all.")
def create(owner: str, admin: bool) -> None:
    """Make a key; it stands on the last line, for the only time."""
    key = current_llm_batches.keys.create(owner=owner, admin=admin)
    click.echo(f"A key for {owner}. It is not shown again:", err=True)
    click.echo(key)


@keys.command("list")
def list_keys() -> None:
    """List the keys, oldest first."""
    click.echo(f"{'id':>4}  {'key':14}  {'created':10}  {'state':8}  owner")
    for key in current_llm_batches.keys.list():
        created = datetime.fromtimestamp(key.created_at, UTC).date()
        state = "revoked" if key.revoked_at is not None else "admin" if key.admin else "valid"
        click.echo(f"{key.id:>4}  {key.prefix + '...':14}  {created}  {state:8}  {key.owner}")


@keys.command()
@click.argument("key_id", type=int, metavar="ID")
def revoke(key_id: int) -> None:
    """Take the key with this id (see: keys list) no longer."""
    if not current_llm_batches.keys.revoke(key_id):
        raise click.ClickException(
            f"There is no valid key with the id {key_id}; see: flask llm-batches keys list"
        )
    click.echo(f"Key {key_id} is revoked.")


@cli.command()
@click.option("--since", help="Of this day (2026-11-01) or time on, in UTC.")
@click.option("--until", help="Before this day or time.")
@click.option("--group-by", type=click.Choice(["owner", "model", "provider", "day"]))
def usage(since: str | None, until: str | None, group_by: str | None) -> None:
    """Print the usage of all as CSV: requests, tokens, and the cost in US dollars."""
    given = {"since": since, "until": until, "group_by": group_by}
    query = load(UsageQuerySchema(), {name: value for name, value in given.items() if value is not None})
    click.echo(usage_csv(current_llm_batches.usage(owner=None, **query), group_by), nl=False)


@cli.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up creates that are older; longer than one may take unless given. "
    "With a shorter time, first stop the servers that may be in the middle of one.",
)
def reconcile(older_than: float | None) -> None:
    """Find the batches of which nobody knows whether their provider has them; run it after a crash."""
    states = []
    for settled in current_llm_batches.reconcile(older_than=older_than):
        click.echo(f"{settled.uid}  {settled.state:10}  {settled.provider}  {settled.owner}")
        states.append(settled.state)
    found, failed = states.count("accepted"), states.count("failed")
    click.echo(f"{found} found, {failed} not there, {len(states) - found - failed} still unknown")


@cli.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    click.echo(json.dumps(document(current_llm_batches.settings.url_prefix[0]), indent=2))
