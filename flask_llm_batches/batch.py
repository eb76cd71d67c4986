"""What a batch is, whichever provider runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

UID_KEY = "flask_llm_batches_uid"
"""Where our own id of a batch travels in the provider's metadata; never shown to callers."""

STATUSES = frozenset(
    {
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    }
)
"""OpenAI's statuses, into which any-llm translates every provider's."""


FINISHED = frozenset({"completed", "failed", "expired", "cancelled"})
"""The statuses that do not change any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """OpenAI's batch object and the provider it is at.

    Times are Unix seconds. ``request_counts`` has ``total``, ``completed`` and ``failed``; ``errors`` has
    ``data``, a list of ``{"code", "line", "message", "param"}``.
    """

    id: str
    provider: str
    status: str
    created_at: int
    object: str = "batch"
    endpoint: str | None = None
    model: str | None = None
    errors: dict[str, Any] | None = None
    input_file_id: str | None = None
    completion_window: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    usage: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether its status does not change any more."""
        return self.status in FINISHED

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], provider: str) -> Self:
        """Read a batch object, as a provider or a snapshot of ours has it.

        Raises:
            ValueError: It has no id, no status of OpenAI's or no time of creation.
        """
        known: dict[str, Any] = {name: data.get(name) for name in cls.__slots__}
        known |= {"provider": provider, "object": "batch"}
        if not (isinstance(known["id"], str) and known["id"]):
            raise ValueError("a batch without an id")
        if known["status"] not in STATUSES:
            raise ValueError("a batch without a known status")
        if not isinstance(known["created_at"], int):
            raise ValueError("a batch without a time of creation")
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Give every field, nulls included, as JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}

    def remembering(self, *, model: str | None, metadata: Mapping[str, str] | None) -> Self:
        """Fill in what some providers do not give back, and take out what is ours."""
        kept = dict(self.metadata or metadata or {})
        kept.pop(UID_KEY, None)
        return replace(self, model=self.model or model, metadata=kept or None)
