"""The tables, and frozen copies of their rows. Times are Unix seconds, as in the API."""

from flask_llm_batches.store.models.api_keys import ApiKey, ApiKeyRow
from flask_llm_batches.store.models.base import Base, Leased
from flask_llm_batches.store.models.batches import (
    UNSETTLED,
    BatchRow,
    IdempotencyKey,
    IdempotencyRow,
    ManifestRow,
    ProviderRow,
    Record,
    UsageRow,
)
from flask_llm_batches.store.models.objects import ChunkRow, ObjectRow
from flask_llm_batches.store.models.work import (
    SetAside,
    SetAsideRow,
    Task,
    TaskRow,
    Webhook,
    WebhookRow,
    WorkerRow,
)

__all__ = [
    "UNSETTLED",
    "ApiKey",
    "ApiKeyRow",
    "Base",
    "BatchRow",
    "ChunkRow",
    "IdempotencyKey",
    "IdempotencyRow",
    "Leased",
    "ManifestRow",
    "ObjectRow",
    "ProviderRow",
    "Record",
    "SetAside",
    "SetAsideRow",
    "Task",
    "TaskRow",
    "UsageRow",
    "Webhook",
    "WebhookRow",
    "WorkerRow",
]
