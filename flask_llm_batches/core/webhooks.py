"""Sends and receives webhooks in the form of https://www.standardwebhooks.com."""

from __future__ import annotations

import hmac
import json
import time
from base64 import b64encode
from collections.abc import Collection, Mapping

import msgspec

from flask_llm_batches.config import ProviderSettings, WebhookSettings, provider_name
from flask_llm_batches.errors import Unauthenticated, ValidationFailed
from flask_llm_batches.fields import is_id
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import Record, Webhook
from flask_llm_batches.store.tasks import Tasks

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

MAX_EVENT = 64 * 1024
"""The most bytes of an event that comes in."""

_TOLERANCE = 300  # seconds between the clocks of the two sides
_MAX_SIGNATURES = 10


class _Data(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    """OpenAI's and Gemini's event. Its other fields are not used."""

    data: _Data


class Targets:
    """Where the webhooks of one app go."""

    def __init__(self, webhooks: Mapping[str, WebhookSettings]) -> None:
        self._webhooks = webhooks
        self._for_all = [webhook.name for webhook in webhooks.values() if webhook.every]

    def find(self, name: str) -> WebhookSettings | None:
        """Return the settings of a webhook; None if there is none with this name."""
        return self._webhooks.get(name)

    def check(self, name: str, *, http: bool = False) -> None:
        """Check that a create may name a webhook.

        Raises:
            ValidationFailed: There is no such webhook, or it is not open to creates over HTTP.
        """
        found = self.find(name)
        if found is None or (http and not found.http):
            raise ValidationFailed.of("Not the name of a webhook.", "webhook")

    def of(self, record: Record) -> Collection[str]:
        """Return the names of the webhooks for the end of a batch."""
        own = [] if record.webhook is None else [record.webhook]
        return dict.fromkeys([*own, *self._for_all])


class Events:
    """Takes the webhooks of providers: an event is a reason to look at a batch now, and nothing else."""

    def __init__(
        self, providers: Mapping[str, ProviderSettings] | None, batches: Batches, tasks: Tasks
    ) -> None:
        self._providers = providers or {}
        self._batches = batches
        self._tasks = tasks

    def receive(self, provider: str, headers: Mapping[str, str], body: bytes) -> None:
        """Make a worker look at the batch of an event next.

        Args:
            provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
            headers: The headers of the request.
            body: Its body, unchanged.

        Raises:
            Unauthenticated: It is not signed with the ``webhook_secret`` of that provider, or is old.
        """
        name = provider_name(provider)
        entry = self._providers.get(name)
        lower = {key.lower(): value for key, value in headers.items()}
        if entry is None or not _is_signed(entry.webhook_secrets, lower, body):
            raise Unauthenticated("The webhook is not signed, or not as it must be")
        try:
            batch_id = msgspec.json.decode(body, type=_Event).data.id
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # an event of another kind
        # Gemini's ids may come without the prefix.
        ids = [batch_id, f"batches/{batch_id}"] if is_id(batch_id) else []
        for record in self._batches.find_all(ids):
            if record.provider == name:
                self._tasks.hasten(record.uid, "refresh")


def event(webhook: Webhook, batch_id: str) -> bytes:
    """Return the body of a webhook, as OpenAI's own: https://developers.openai.com/api/docs/guides/webhooks."""
    body = {
        "id": f"evt_{webhook.uid}",
        "object": "event",
        "created_at": webhook.created_at,
        "type": webhook.type,
        "data": {"id": batch_id},
    }
    return json.dumps(body).encode()


def signed(secrets: Collection[bytes], webhook: Webhook, body: bytes) -> dict[str, str]:
    """Return the headers that sign a webhook, with one signature for each secret."""
    message_id, timestamp = f"evt_{webhook.uid}", str(int(time.time()))
    signatures = [_signature(secret, message_id, timestamp, body) for secret in secrets]
    return {ID: message_id, TIMESTAMP: timestamp, SIGNATURE: " ".join(signatures)}


def _is_signed(secrets: Collection[bytes], headers: Mapping[str, str], body: bytes) -> bool:
    message_id, timestamp = headers.get(ID, ""), headers.get(TIMESTAMP, "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        return False
    if abs(int(timestamp) - time.time()) > _TOLERANCE or not message_id.isascii():
        return False
    right = [_signature(secret, message_id, timestamp, body).encode() for secret in secrets]
    sent = [one.encode() for one in headers.get(SIGNATURE, "").split(" ", _MAX_SIGNATURES)[:_MAX_SIGNATURES]]
    return any(hmac.compare_digest(one, other) for one in right for other in sent)


def _signature(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + b64encode(hmac.digest(secret, content, "sha256")).decode()
