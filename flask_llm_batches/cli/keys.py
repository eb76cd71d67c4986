"""``flask llm-batches keys``: built-in API keys."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from flask_llm_batches.cli.group import Group
from flask_llm_batches.current import current_llm_batches

keys = Group("keys", help="Built-in API keys.")


@keys.command()
@click.option("--owner", required=True, help="Whose key it is: batches and usage are kept under this name.")
@click.option("--admin", is_flag=True, help="Its bearer sees and touches the batches of all.")
def create(owner: str, admin: bool) -> None:
    """Create a key, and print it on the last line. It is not shown again."""
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
    """Revoke the key with this id, which "keys list" shows."""
    if not current_llm_batches.keys.revoke(key_id):
        raise click.ClickException(
            f"There is no valid key with the id {key_id}; see: flask llm-batches keys list"
        )
    click.echo(f"Key {key_id} is revoked.")
