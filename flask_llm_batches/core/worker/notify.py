"""Sends the webhooks of a batch that has ended, each one until its target accepts it."""

from __future__ import annotations

import re
import time

import httpcore

from flask_llm_batches.core.outbound import AddressNotPublic, post
from flask_llm_batches.core.webhooks import Targets, event, signed
from flask_llm_batches.core.worker.steps import Next
from flask_llm_batches.store.models import Record, Webhook
from flask_llm_batches.store.webhooks import Tried, Webhooks

# Seconds until a webhook is sent again: eleven tries within a day.
_WAITS = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 28800)
_DAY = 24 * 3600

# A name that cannot be encoded for the DNS is a UnicodeError.
_NOT_REACHED = (
    OSError,
    UnicodeError,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
)

_GONE = 410


class Notify:
    """The step that tells others that a batch has ended."""

    def __init__(self, targets: Targets, webhooks: Webhooks) -> None:
        self._targets = targets
        self._webhooks = webhooks

    def __call__(self, record: Record, _failures: int) -> Next:
        self._webhooks.add(record.uid, self._targets.of(record), type_=f"batch.{record.status}")
        notes = []
        for webhook in self._webhooks.due(record.uid):
            tried = self._send(record, webhook)
            self._webhooks.tried(webhook, tried)
            notes.append(f"{webhook.target!r} {tried.answer}")
        due_at = self._webhooks.next_due(record.uid)
        after = None if due_at is None else max(0.0, due_at - time.time())
        return Next(", ".join(notes) or "no webhook is due", after=after)

    def _send(self, record: Record, webhook: Webhook) -> Tried:
        target = self._targets.find(webhook.target)
        if target is None:
            return Tried("is not in LLM_BATCHES_WEBHOOKS any more")
        body = event(webhook, record.shown_id)
        headers = signed(target.secrets, webhook, body)
        wait = _WAITS[webhook.attempts] if webhook.attempts < len(_WAITS) else None
        try:
            answer = post(target.url, headers, body, allow_private=target.allow_private)
        except AddressNotPublic:
            return Tried("has no public address", wait=wait)
        except _NOT_REACHED as error:
            return Tried(f"is not reached: {type(error).__name__}", wait=wait)
        if 200 <= answer.status < 300:
            return Tried(f"answers {answer.status}", sent=True)
        if answer.status == _GONE or wait is None:
            return Tried(f"answers {answer.status}")
        asked = int(answer.retry_after) if re.fullmatch("[0-9]{1,6}", answer.retry_after) else 0
        return Tried(f"answers {answer.status}", wait=max(wait, min(asked, _DAY)))
