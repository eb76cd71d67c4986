"""The base of all command groups."""

from __future__ import annotations

from typing import Any

import click
from flask.cli import AppGroup

from flask_llm_batches.errors import LLMBatchesError


class Group(AppGroup):
    """Prints our errors as click prints its own."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, LLMBatchesError) as error:
            raise click.ClickException(str(error)) from None
