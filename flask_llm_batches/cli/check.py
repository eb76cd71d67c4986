"""The command that looks at everything that batches need."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from flask_llm_batches.cli.group import FAILED, json_option
from flask_llm_batches.cli.output import for_people, plain, print_json
from flask_llm_batches.current import current_llm_batches


@click.command(epilog="Example: flask llm-batches check --live")
@click.option("--live", is_flag=True, help="Call every provider, too. That costs nothing.")
@json_option
@click.pass_context
@with_appcontext
def check(context: click.Context, *, live: bool, as_json: bool) -> None:
    """Look at providers, database, storage and workers, and say what to do about every problem.

    The exit code is 1 if there is a problem.
    """
    problems = 0
    for found in current_llm_batches.checkup(live=live):
        problems += found.problem is not None
        if as_json:
            print_json(found._asdict())
            continue
        state, colour = ("ok", "green") if found.problem is None else ("problem", "red")
        subject, told = plain(found.subject), plain(found.problem or found.fact)
        advice = "" if found.advice is None else plain(found.advice)
        if not for_people():
            click.echo("\t".join((state, subject, told, advice)).rstrip("\t"))
            continue
        click.echo(f"{click.style(f'{state:<8}', fg=colour)} {subject:<22} {told}")
        if advice:
            click.echo(f"{'':<32}{advice}")
    if problems:
        context.exit(FAILED)
