"""``flask llm-batches``: one file per group of commands."""

from __future__ import annotations

from flask_llm_batches.cli.batches import cancel, list_batches, parts, retry, show
from flask_llm_batches.cli.check import check
from flask_llm_batches.cli.group import Group
from flask_llm_batches.cli.keys import keys
from flask_llm_batches.cli.record import openapi, purge, reconcile, usage
from flask_llm_batches.cli.results import results
from flask_llm_batches.cli.submit import submit, wait
from flask_llm_batches.cli.worker import deliveries, tick, webhooks, worker

cli = Group(
    "llm-batches",
    help="""Batches for large language models.

    Without --owner, commands see the batches of all owners. The exit code is 0 if all went well, 1 if rows,
    a batch or a check failed, 2 if the command cannot do what it was told, and 3 if the provider or another
    service failed.""",
)
for command in (
    *(cancel, check, deliveries, keys, list_batches, openapi, parts, purge, reconcile, results),
    *(retry, show, submit, tick, usage, wait, webhooks, worker),
):
    cli.add_command(command)
