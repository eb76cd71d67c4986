"""``flask llm-batches keys``: built-in API keys."""

from __future__ import annotations

import click

from flask_llm_batches.cli.group import MISUSED, Failure, Group, json_option
from flask_llm_batches.cli.output import day_and_time, print_rows
from flask_llm_batches.current import current_llm_batches

keys = Group("keys", help="Built-in API keys.")


@keys.command(epilog="Example: flask llm-batches keys create --owner 42")
@click.option("--owner", required=True, help="Whose key it is: batches and usage are kept under this name.")
@click.option("--admin", is_flag=True, help="Its bearer may see and change the batches of all owners.")
def create(owner: str, admin: bool) -> None:
    """Create a key, and print it on the last line. It is not shown again."""
    key = current_llm_batches.keys.create(owner=owner, admin=admin)
    click.echo(f"A key for {owner}. It is not shown again:", err=True)
    click.echo(key)


@keys.command("list", epilog="Example: flask llm-batches keys list")
@json_option
def list_keys(*, as_json: bool) -> None:
    """List the keys, oldest first."""
    rows = (
        (key.id, f"{key.prefix}...", day_and_time(key.created_at), key.state, key.owner)
        for key in current_llm_batches.keys.list()
    )
    print_rows(("id", "key", "created", "state", "owner"), rows, as_json=as_json)


@keys.command(epilog="Example: flask llm-batches keys revoke 1")
@click.argument("key_id", type=int, metavar="ID")
def revoke(key_id: int) -> None:
    """Revoke the key with this id, which "keys list" shows."""
    if not current_llm_batches.keys.revoke(key_id):
        message = f"There is no valid key with the id {key_id}; see: flask llm-batches keys list"
        raise Failure(message, MISUSED)
    click.echo(f"Key {key_id} is revoked.", err=True)
