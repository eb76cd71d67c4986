"""The parts of a batch, and the batches that ``retry`` links to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flask_llm_batches.batch import FINISHED
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.merged import count_replaced
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import Record
from flask_llm_batches.store.parts import Parts


class Part(NamedTuple):
    """A part of a batch. A batch that was submitted as one has one part.

    Attributes:
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        provider_batch_id: The provider's id; None if the provider does not have it, or may not have it.
        model: The model of its requests.
        status: ``queued``, a status of OpenAI's, or ``replaced`` if another part has all of its requests.
        request_counts: As ``Batch`` has them.
        estimated_tokens: About how many tokens its prompts have; None if that is not known.
        created_at: When it was recorded, in Unix seconds.
        ended_at: When it ended; None until then.
        errors: As ``Batch`` has them.
    """

    provider: str
    provider_batch_id: str | None
    model: str
    status: str
    request_counts: Mapping[str, Any] | None
    estimated_tokens: int | None
    created_at: int
    ended_at: int | None
    errors: Mapping[str, Any] | None


class Detail(NamedTuple):
    """The parts of a batch, and its links.

    Attributes:
        parts: Its parts, oldest first.
        retry_of: The id of the batch whose failed requests it has; None if there is none.
        retried_by: The ids of the batches that have its failed requests.
    """

    parts: Sequence[Part]
    retry_of: str | None
    retried_by: Sequence[str]


class Details:
    """Returns the details of one app's batches."""

    def __init__(self, lookup: Lookup, batches: Batches, parts: Parts) -> None:
        self._lookup = lookup
        self._batches = batches
        self._parts = parts

    def of(self, batch_id: str, *, owner: str | None, provider: str | None) -> Detail:
        """Return the details of a batch.

        Raises:
            BatchNotFound: It has no record.
        """
        return self.of_record(self._lookup.record_of(batch_id, owner=owner, provider=provider))

    def of_record(self, record: Record) -> Detail:
        """Return the details of a batch of the record."""
        parts = self._parts.of(record.uid)
        replaced = count_replaced(parts)
        old = None if record.retry_of is None else self._batches.by_uid(record.retry_of)
        return Detail(
            [
                _described(part, is_replaced=replaced[part.uid] >= part.requests > 0)
                for part in parts or [record]
            ],
            None if old is None else old.shown_id,
            [new.shown_id for new in self._parts.retries_of(record.uid)],
        )


def _described(part: Record, *, is_replaced: bool) -> Part:
    batch = part.last_seen()
    status = "replaced" if is_replaced else "queued" if part.state == "queued" else batch.status
    return Part(
        part.provider,
        part.batch_id,
        part.model,
        status,
        batch.request_counts,
        part.tokens,
        part.created_at,
        getattr(batch, f"{batch.status}_at") if batch.status in FINISHED else None,
        batch.errors,
    )
