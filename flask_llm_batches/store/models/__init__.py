"""The tables, and frozen copies of their rows. Times are Unix seconds, as in the API."""

from flask_llm_batches.store.models.api_keys import ApiKey, ApiKeyRow
from flask_llm_batches.store.models.base import Base, Leased
from flask_llm_batches.store.models.batches import (
    QUEUED,
    UNSETTLED,
    BatchRow,
    IdempotencyKey,
    IdempotencyRow,
    Lane,
    LaneRow,
    ManifestRow,
    ProviderRow,
    Record,
    UsageRow,
)
from flask_llm_batches.store.models.objects import ChunkRow, File, FileRow, ObjectRow
from flask_llm_batches.store.models.work import (
    OwnerRow,
    SetAside,
    SetAsideRow,
    Task,
    TaskRow,
    Webhook,
    WebhookRow,
    WorkerRow,
)

__all__ = [
    "QUEUED",
    "UNSETTLED",
    "ApiKey",
    "ApiKeyRow",
    "Base",
    "BatchRow",
    "ChunkRow",
    "File",
    "FileRow",
    "IdempotencyKey",
    "IdempotencyRow",
    "Lane",
    "LaneRow",
    "Leased",
    "ManifestRow",
    "ObjectRow",
    "OwnerRow",
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
