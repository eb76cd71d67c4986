"""Commands for what goes on without a caller."""

from __future__ import annotations

import signal
import threading

import click
from flask.cli import with_appcontext

from flask_llm_batches.current import current_llm_batches


@click.command()
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="The number of steps that run at the same time.",
)
@with_appcontext
def worker(concurrency: int) -> None:
    """Follow batches until they have ended, and archive, deliver and announce their results.

    Run any number of workers, on any number of machines. SIGTERM and Ctrl+C end a worker when the steps that
    are running have ended.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    current_llm_batches.work(stop, concurrency=concurrency)


@click.command()
@click.option(
    "--budget", type=click.FloatRange(min=0), metavar="SECONDS", help="Begin no step after so many seconds."
)
@with_appcontext
def tick(budget: float | None) -> None:
    """Do what a worker would do now, and end: for cron."""
    click.echo(f"{current_llm_batches.tick(budget=budget)} steps")


@click.command()
@click.option("--again", "batch_id", metavar="BATCH_ID", help="Deliver the rows of this batch again.")
@with_appcontext
def deliveries(batch_id: str | None) -> None:
    """Print the rows that a handler refuses and that were set aside."""
    if batch_id is not None:
        done, refused = current_llm_batches.deliver_again(batch_id)
        click.echo(f"{done} delivered, {refused} refused")
        return
    for row in current_llm_batches.set_aside():
        click.echo(f"batch_{row.batch_uid}  {row.custom_id!r}  {row.error!r}")


@click.command()
@click.option("--again", "batch_id", metavar="BATCH_ID", help="Send the webhooks of this batch again.")
@with_appcontext
def webhooks(batch_id: str | None) -> None:
    """Print the webhooks that were sent, are due, or were given up, newest first."""
    if batch_id is not None:
        click.echo(f"{current_llm_batches.send_again(batch_id)} due")
        return
    for one in current_llm_batches.sent_webhooks():
        state = "sent" if one.sent_at is not None else "given up" if one.due_at is None else "due"
        tries = (
            f"{one.attempts} tries" if one.answer is None else f"{one.attempts} tries, the last: {one.answer}"
        )
        click.echo(f"batch_{one.batch_uid}  {one.target}  {one.type}  {state}  {tries}")
