"""The base of all command groups, and the options that several commands have."""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import Any

import click
from flask.cli import AppGroup

from flask_llm_batches.cli.output import plain
from flask_llm_batches.core.idempotency import HEADER as IDEMPOTENCY_KEY
from flask_llm_batches.errors import (
    REQUIRED,
    BatchFailed,
    LLMBatchesError,
    ProviderRejected,
    RateLimited,
    ValidationFailed,
)
from flask_llm_batches.principal import EVERYONE, Owner

FAILED, MISUSED, OUTSIDE = 1, 2, 3
"""Exit codes: rows, a batch or a check failed; the command cannot do what it was told; the provider or
another service failed."""

_OPTIONS = {IDEMPOTENCY_KEY: "key"}  # those that have other names elsewhere
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Failure(click.ClickException):
    """An error that ends a command with an exit code of ours."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click has it as an attribute of the class


class Group(AppGroup):
    """Prints our errors as click prints its own, and ends with our exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, LLMBatchesError) as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            options = {option for one in getattr(command, "params", ()) for option in one.opts}
            told = _told(error, options)
            raise Failure(plain(told), _exit_code(error)) from None  # it may be a provider's text
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise Failure(f"The output cannot be written: {error.strerror}", MISUSED) from None


def _told(error: Exception, options: Collection[str]) -> str:
    """Return the message of an error in the words of the command line, whose ``options`` are known."""
    if isinstance(error, ValidationFailed) and all(len(one.path) == 1 for one in error.problems):
        fields = {str(one.path[0]): one.message for one in error.problems}
        if fields.keys() == {"provider"} and REQUIRED in fields["provider"]:
            return "No batch here has this id. If it was not made here, name its provider with --provider."
        named = {name: f"--{_OPTIONS.get(name, name).replace('_', '-')}" for name in fields}
        return " ".join(
            f"{named[name] if named[name] in options else name}: {text}" for name, text in fields.items()
        )
    if _exit_code(error) == OUTSIDE:
        return f"{str(error).rstrip('.')}. To find out why: flask llm-batches check --live"
    return str(error)


def _exit_code(error: Exception) -> int:
    match error:
        case BatchFailed():
            return FAILED
        case ProviderRejected() | RateLimited():
            return OUTSIDE
        case LLMBatchesError() if error.status >= 500:
            return OUTSIDE
    return MISUSED


def _owner(_context: click.Context, _parameter: click.Parameter, given: str | None) -> Owner:
    return EVERYONE if given is None else given


owner_option = click.option(
    "--owner",
    callback=_owner,
    help="Act for this owner, who has no access to the batches of others; by default for all.",
)
provider_option = click.option("--provider", help="The provider of a batch that was not made here.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
