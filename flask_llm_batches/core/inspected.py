"""What the calls of ``Inspections`` return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from flask_llm_batches.batch import Batch, Row
from flask_llm_batches.core.detail import Detail
from flask_llm_batches.store.models import SetAside, Webhook
from flask_llm_batches.store.usage import UsageSum

MOST_COUNTED = 1000
"""The most batches with one status that are counted."""


class Some(NamedTuple):
    """Some of the batches.

    Attributes:
        total: How many there are, at most ``MOST_COUNTED`` of each status.
        newest: The newest of them, as last seen.
    """

    total: int
    newest: Sequence[Batch]


class Overview(NamedTuple):
    """The batches and the cost of an owner, or of everyone.

    Attributes:
        running: Those that run.
        queued: Those that wait, or that their provider checks.
        failed: Those that failed.
        completed: Those that have completed.
        days: The cost in US dollars of each day that has one, by the day's first second in Unix time.
        worker_alive: Whether a worker is alive.
    """

    running: Some
    queued: Some
    failed: Some
    completed: Some
    days: Mapping[int, Decimal]
    worker_alive: bool


class Inspected(NamedTuple):
    """Everything about a batch except its rows.

    Attributes:
        batch: As it is now.
        stale: Why the batch is shown as last seen; None if it is as it is now.
        sought: Whether its create got no answer, so that it is looked for at the provider.
        detail: Its parts and its links.
        usage: What it used, by model.
        archived_at: When its results were archived; None if they are not in the archive.
        on_results: The handler of its rows; None if there is none.
        delivered: How many rows were delivered to it, or set aside.
        set_aside: Rows that the handler refuses, the first hundred.
        webhooks: Its webhooks, newest first.
    """

    batch: Batch
    stale: str | None
    sought: bool
    detail: Detail
    usage: Sequence[UsageSum]
    archived_at: int | None
    on_results: str | None
    delivered: int
    set_aside: Sequence[SetAside]
    webhooks: Sequence[Webhook]


class Failure(NamedTuple):
    """Requests that failed with the same code.

    Attributes:
        code: The code.
        total: How many there are.
        retryable: Whether the first of them may succeed in another batch.
        samples: The ``custom_id`` and the message of the first three.
    """

    code: str
    total: int
    retryable: bool
    samples: Sequence[tuple[str, str]]


class Failures(NamedTuple):
    """The requests of a batch that failed, by code.

    Attributes:
        groups: The most frequent first; at most a hundred.
        others: How many failed with other codes.
        rows: How many rows were read.
        complete: Whether all rows were read.
    """

    groups: Sequence[Failure]
    others: int
    rows: int
    complete: bool


class Exchange(NamedTuple):
    """A request and its result.

    Attributes:
        request: The line that its provider got; None if it was not found.
        why_no_request: Why the request was not found.
        row: The row of the results; None if it was not found.
        why_no_row: Why the row was not found.
    """

    request: bytes | None
    why_no_request: str | None
    row: Row | None
    why_no_row: str | None
