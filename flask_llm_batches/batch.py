"""A batch and its rows, the same for all providers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import time
from typing import Any, Literal, Self

import msgspec

from flask_llm_batches.fields import READ, is_id, read_time

UID_KEY = "flask_llm_batches_uid"
"""The key of our own id of a batch in the provider's metadata; never shown to callers."""

_OWN_ID = re.compile("batch_([0-9a-f]{32})")


def own_id(uid: str) -> str:
    """Return the id that callers see until the provider has returned its own."""
    return f"batch_{uid}"


def uid_of(batch_id: str) -> str | None:
    """Return the uid in an id of ours; None if the id has another form."""
    found = _OWN_ID.fullmatch(batch_id)
    return found and found[1]


def file_id(uid: str) -> str:
    """Return the id of a file that callers see."""
    return f"file-{uid}"


NO_FILE = ""
"""The ``input_file_id`` of a batch that was made of requests: typed clients need a string."""

OutputKind = Literal["output", "error"]
"""The files of a batch's results: ``output`` has the rows with a result, and ``error`` has the others."""


def output_uid(batch_uid: str, kind: OutputKind) -> str:
    """Return the uid of a file of results."""
    return f"{kind}-{batch_uid}"


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


LAG = 2 * 3600
"""Seconds after the end of a batch during which its files may still be incomplete at the provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """OpenAI's batch object and the provider it is at.

    Times are Unix seconds. ``request_counts`` has ``total``, ``completed`` and ``failed``; ``errors`` has
    ``data``, a list of ``{"code", "line", "message", "param"}``. Two fields are ours: ``owner`` is None for a
    batch without a record; ``replayed`` is true if an earlier create with the same ``Idempotency-Key`` made
    the batch that a create returns.
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
    owner: str | None = field(default=None, compare=False)
    replayed: bool = field(default=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether its status does not change any more."""
        return self.status in FINISHED

    @property
    def settled(self) -> bool:
        """Whether a batch that has ended did so long enough ago that nothing about it will change."""
        known = [at for at in (getattr(self, f"{self.status}_at"), self.expires_at) if at is not None]
        return min(known, default=self.created_at + 24 * 3600) + LAG < time()

    @property
    def uid(self) -> str | None:
        """Our own id of the batch, if the provider returned it with the metadata."""
        uid = (self.metadata or {}).get(UID_KEY)
        return uid_of(own_id(uid)) if isinstance(uid, str) else None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], provider: str) -> Self:
        """Make a batch from a batch object of a provider, or from a snapshot.

        A field of another type than OpenAI's is ignored. A status that OpenAI does not have means that
        the batch has not ended.

        Raises:
            ValueError: It has no id, no status or no time of creation.
        """
        status, created_at = data.get("status"), read_time(data.get("created_at"))
        if not is_id(data.get("id")):
            raise ValueError("a batch without an id")
        if not isinstance(status, str):
            raise ValueError("a batch without a status")
        if created_at is None:
            raise ValueError("a batch without a time of creation")
        return cls(
            id=data["id"],
            provider=provider,
            status=status if status in STATUSES else "in_progress",
            created_at=created_at,
            **{name: read(value) for name, read in READ.items() if (value := data.get(name)) is not None},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every field of OpenAI's object, and the provider, as JSON types; nulls included."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("owner", "replayed")}

    def remembering(self, known: Mapping[str, Any]) -> Self:
        """Return the batch with fields that some providers do not return, and without our own metadata."""
        kept = {**(known.get("metadata") or {}), **(self.metadata or {})}
        kept.pop(UID_KEY, None)
        return replace(
            self,
            model=self.model or known.get("model"),
            endpoint=self.endpoint or known.get("endpoint"),
            completion_window=self.completion_window or known.get("completion_window"),
            metadata=kept or None,
        )


# Our own codes of requests that may well succeed in another batch; OpenAI has the first two, as well.
_PASSING = frozenset({"batch_cancelled", "batch_expired", "missing", "unreadable"})

# The HTTP statuses of error codes, for providers that return a code but no status: OpenAI's,
# https://platform.claude.com/docs/en/api/errors and, by number,
# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_STATUS_OF = {
    "rate_limit_exceeded": 429,
    "request_timeout": 408,
    "server_error": 500,
    "api_error": 500,
    "authentication_error": 401,
    "billing_error": 402,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "permission_error": 403,
    "rate_limit_error": 429,
    "request_too_large": 413,
    "timeout_error": 504,
    **{
        str(code): status
        for code, status in enumerate(
            (499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401), 1
        )
    },
}


class RowError(msgspec.Struct, frozen=True, gc=False):
    """Why a request has no result; ``RowError.of`` makes one.

    Attributes:
        code: The provider's, or one of ours: ``batch_expired``, ``batch_cancelled``, ``missing``,
            ``unreadable``, ``too_large``.
        message: The provider's, without keys, or ours.
        retryable: Whether the cause passes, so that the same request may succeed in another batch.
        status: The HTTP status of the provider's answer to the request, 400 to 599; None if there was none.
    """

    code: str
    message: str
    retryable: bool
    status: int | None

    @classmethod
    def of(cls, code: str, message: str, status: int | None = None) -> Self:
        """Return the error for a code and, if the provider gave one, a status.

        These are retryable at all providers: 408, 429 and 5xx, requests that the batch did not run, and rows
        that are missing or damaged.
        """
        if status is None:
            status = _STATUS_OF.get(code) or (int(code) if re.fullmatch("[45][0-9]{2}", code) else None)
        if status is not None and not 400 <= status < 600:
            status = None
        passing = code in _PASSING or status in (408, 429) or (status or 0) >= 500
        return cls(code, message, passing, status)


NOT_EXECUTED = {
    "expired": RowError.of("batch_expired", "The batch expired before this request was executed"),
    "cancelled": RowError.of("batch_cancelled", "The batch was cancelled before this request was executed"),
}
"""Why a request has no result, by the status of its batch."""

MISSING = RowError.of("missing", "The provider gave no readable row for this request")
UNREADABLE = RowError.of("unreadable", "The provider's row for this request is damaged")
LONGEST_ROW = 128 * 1024 * 1024
"""The most bytes of a row: embeddings of 2,048 texts, or ten large pictures, are some 80 MB."""

TOO_LARGE = RowError.of("too_large", "The provider's row for this request is longer than 128 MiB")


class Row(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a request; exactly one of ``result`` and ``error`` is None.

    Attributes:
        custom_id: The id of the request.
        result: The bytes of the provider's JSON object, on one line.
        error: Why there is none.
    """

    custom_id: str
    result: msgspec.Raw | None = None
    error: RowError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "custom_id": self.custom_id,
            "result": None if self.result is None else parsed(self.result),
            "error": None if self.error is None else msgspec.structs.asdict(self.error),
        }


def parsed(result: msgspec.Raw) -> Any:
    """Return a result as JSON types. A number that is too large for Python is infinite."""
    content = bytes(result)
    try:
        return json.loads(content)
    except ValueError:  # Python reads no integer of more than 4,300 digits
        return json.loads(content, parse_int=_parse_integer)


def _parse_integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)
