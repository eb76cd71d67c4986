"""What a batch is, whichever provider runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import msgspec

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

    def remembering(self, known: Mapping[str, Any]) -> Self:
        """Fill in what some providers do not give back, and take out what is ours."""
        kept = dict(self.metadata or known.get("metadata") or {})
        kept.pop(UID_KEY, None)
        return replace(
            self,
            model=self.model or known.get("model"),
            endpoint=self.endpoint or known.get("endpoint"),
            completion_window=self.completion_window or known.get("completion_window"),
            metadata=kept or None,
        )


class RowError(msgspec.Struct, frozen=True, gc=False):
    """Why a request has no result: the provider's own code and message, or one of ours."""

    code: str
    message: str


NOT_EXECUTED = {
    "expired": RowError("batch_expired", "The batch expired before this request was executed"),
    "cancelled": RowError("batch_cancelled", "The batch was cancelled before this request was executed"),
}
"""Why a request has no result, by the status of its batch."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """What came of a request; exactly one of ``result`` and ``error`` is None.

    Attributes:
        custom_id: Whose request it is.
        result: The bytes of a JSON object on one line, as the provider gave it.
        error: Why there is none.
    """

    custom_id: str
    result: msgspec.Raw | None = None
    error: RowError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON types."""
        return {
            "custom_id": self.custom_id,
            "result": None if self.result is None else json.loads(bytes(self.result)),
            "error": None if self.error is None else {"code": self.error.code, "message": self.error.message},
        }
