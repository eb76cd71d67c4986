"""``flask llm-batches``: one file per group of commands."""

from __future__ import annotations

from flask_llm_batches.cli.group import Group
from flask_llm_batches.cli.keys import keys
from flask_llm_batches.cli.record import openapi, purge, reconcile, usage
from flask_llm_batches.cli.worker import deliveries, tick, webhooks, worker

cli = Group("llm-batches", help="Batches for large language models.")
for command in (deliveries, keys, openapi, purge, reconcile, tick, usage, webhooks, worker):
    cli.add_command(command)
