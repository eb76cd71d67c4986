"""The webhooks that were sent, or are to be."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select, update

from flask_llm_batches.store.models import Webhook, WebhookRow
from flask_llm_batches.store.store import Store, transaction
from flask_llm_batches.store.tasks import do_again

_WEBHOOK = select(*(getattr(WebhookRow, name) for name in Webhook.__slots__))


class Tried(NamedTuple):
    """The outcome of an attempt to send a webhook.

    Attributes:
        answer: In words, without anything that the target sent.
        sent: Whether the target took it.
        wait: Seconds until it is sent again; None if it is not sent again.
    """

    answer: str
    sent: bool = False
    wait: float | None = None


class Webhooks(Store):
    """The webhooks of one app."""

    @transaction
    def add(self, connection: Connection, batch_uid: str, targets: Iterable[str], *, type_: str) -> None:
        """Insert the webhooks of a batch that are not there yet, due now.

        Args:
            connection: The connection to use.
            batch_uid: The batch.
            targets: Their names in ``LLM_BATCHES_WEBHOOKS``.
            type_: Their event.
        """
        known = select(WebhookRow.target).where(WebhookRow.batch_uid == batch_uid)
        there = set(connection.execute(known).scalars())
        now = int(time.time())
        for target in targets:
            if target not in there:
                values = {"uid": uuid.uuid4().hex, "batch_uid": batch_uid, "target": target, "type": type_}
                connection.execute(
                    insert(WebhookRow).values(values | {"created_at": now, "due_at": now, "attempts": 0})
                )

    @transaction
    def due(self, connection: Connection, batch_uid: str) -> Sequence[Webhook]:
        """Return the webhooks of a batch that are due."""
        query = _WEBHOOK.where(WebhookRow.batch_uid == batch_uid, WebhookRow.due_at <= int(time.time()))
        return [Webhook(*row) for row in connection.execute(query.order_by(WebhookRow.id))]

    @transaction
    def next_due(self, connection: Connection, batch_uid: str) -> int | None:
        """Return when the next webhook of a batch is due; None if none will be."""
        query = select(func.min(WebhookRow.due_at)).where(WebhookRow.batch_uid == batch_uid)
        return connection.execute(query).scalar_one()

    @transaction
    def tried(self, connection: Connection, webhook: Webhook, tried: Tried) -> None:
        """Record the outcome of an attempt."""
        now = int(time.time())
        values = {
            "attempts": webhook.attempts + 1,
            "answer": tried.answer,
            "due_at": None if tried.wait is None else int(now + tried.wait),
            "sent_at": now if tried.sent else None,
        }
        connection.execute(update(WebhookRow).where(WebhookRow.id == webhook.id).values(values))

    @transaction
    def all(self, connection: Connection, *, batch_uid: str | None, limit: int) -> Sequence[Webhook]:
        """Return webhooks, newest first."""
        query = _WEBHOOK.order_by(WebhookRow.id.desc()).limit(limit)
        if batch_uid is not None:
            query = query.where(WebhookRow.batch_uid == batch_uid)
        return [Webhook(*row) for row in connection.execute(query)]

    @transaction
    def again(self, connection: Connection, batch_uid: str) -> int:
        """Make all webhooks of a batch due now, as if they had never been sent, and return their number."""
        now = int(time.time())
        values = {"due_at": now, "sent_at": None, "attempts": 0}
        this = WebhookRow.batch_uid == batch_uid
        found = connection.execute(update(WebhookRow).where(this).values(values)).rowcount
        if found:
            do_again(connection, batch_uid, "notify")
        return found
