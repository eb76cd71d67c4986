"""``flask llm-batches``: built-in keys, and the OpenAPI document."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
from flask.cli import AppGroup

from flask_llm_batches.core.service import current_llm_batches
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.web.openapi import document


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
def openapi() -> None:
    """Print the OpenAPI document."""
    click.echo(json.dumps(document(current_llm_batches.settings.url_prefix[0]), indent=2))
