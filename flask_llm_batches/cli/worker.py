"""Commands for the work that needs no caller."""

from __future__ import annotations

import signal
import threading

import click
from flask.cli import with_appcontext

from flask_llm_batches.cli.group import FAILED, json_option
from flask_llm_batches.cli.output import print_rows
from flask_llm_batches.current import current_llm_batches


@click.command(epilog="Example: flask llm-batches worker --concurrency 8")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="The number of steps that run at the same time.",
)
@with_appcontext
def worker(concurrency: int) -> None:
    """Follow batches until they have ended, archive and deliver their results, and send webhooks.

    Run any number of workers, on any number of machines. SIGTERM and Ctrl+C end a worker when the steps that
    are running have ended.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    click.echo("The worker runs. Ctrl+C ends it.", err=True)
    current_llm_batches.work(stop, concurrency=concurrency)
    click.echo("The worker has ended.", err=True)


@click.command(epilog="Example: flask llm-batches tick --budget 50")
@click.option(
    "--budget", type=click.FloatRange(min=0), metavar="SECONDS", help="Begin no step after so many seconds."
)
@with_appcontext
def tick(budget: float | None) -> None:
    """Do what a worker would do now, and end: for cron."""
    click.echo(f"{current_llm_batches.tick(budget=budget)} steps")


@click.command(epilog="Example: flask llm-batches deliveries --again batch_0123456789abcdef")
@click.option("--again", "batch_id", metavar="BATCH_ID", help="Deliver the rows of this batch again.")
@json_option
@click.pass_context
@with_appcontext
def deliveries(context: click.Context, batch_id: str | None, *, as_json: bool) -> None:
    """Print the rows that a handler refuses and that were set aside.

    With --again, the exit code is 1 if it still refuses a row.
    """
    if batch_id is not None:
        done, refused = current_llm_batches.deliver_again(batch_id)
        print_rows(("delivered", "refused"), [(done, refused)], as_json=as_json)
        if refused:
            context.exit(FAILED)
        return
    aside = current_llm_batches.set_aside()
    ids = current_llm_batches.shown_ids(row.batch_uid for row in aside)
    rows = ((ids.get(row.batch_uid, row.batch_uid), row.custom_id, row.error) for row in aside)
    print_rows(("batch", "custom_id", "error"), rows, as_json=as_json)


@click.command(epilog="Example: flask llm-batches webhooks --again batch_0123456789abcdef")
@click.option("--again", "batch_id", metavar="BATCH_ID", help="Send the webhooks of this batch again.")
@json_option
@with_appcontext
def webhooks(batch_id: str | None, *, as_json: bool) -> None:
    """Print the webhooks that were sent, are due, or were given up, newest first."""
    if batch_id is not None:
        print_rows(("due",), [(current_llm_batches.send_again(batch_id),)], as_json=as_json)
        return
    rows = []
    sent = current_llm_batches.sent_webhooks()
    ids = current_llm_batches.shown_ids(one.batch_uid for one in sent)
    for one in sent:
        state = "sent" if one.sent_at is not None else "given up" if one.due_at is None else "due"
        rows.append(
            (ids.get(one.batch_uid, one.batch_uid), one.target, one.type, state, one.attempts, one.answer)
        )
    names = ("batch", "target", "type", "state", "attempts", "last_answer")
    print_rows(names, rows, as_json=as_json)
