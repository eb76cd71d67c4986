"""What the endpoints do, for the host's own code too."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from blinker import NamedSignal
from flask import current_app
from werkzeug.local import LocalProxy

from flask_llm_batches.batch import UID_KEY, Batch
from flask_llm_batches.config import Settings
from flask_llm_batches.core.keys import Keys
from flask_llm_batches.core.spool import REQUIRED, spooled
from flask_llm_batches.core.usage import count_tokens
from flask_llm_batches.errors import (
    BatchFailed,
    BatchNotComplete,
    BatchNotFound,
    InvalidModel,
    LLMBatchesError,
    RecordUnavailable,
    ValidationFailed,
)
from flask_llm_batches.principal import Principal
from flask_llm_batches.providers.adapters import Page, Row, Submission
from flask_llm_batches.providers.clients import Providers, SubmitFailed
from flask_llm_batches.signals import batch_finished, batch_submitted, usage_recorded
from flask_llm_batches.store.records import Record, Records

logger = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "/v1/chat/completions"

# No id of a provider's has these, and none of them can be part of a path: control characters, "?", "#",
# empty and dot segments.
_BATCH_ID = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^\x00-\x1f\x7f-\x9f?#]{1,512}")


class Service:
    """Batches, for whoever has established who is asking; ``current_llm_batches`` is the app's.

    Every call names the ``owner`` in whose name it is made; ``None`` stands for an admin, who sees the
    batches of all. Every call raises ``LLMBatchesError``s, or a ``ValueError`` for an ``owner`` that is no
    owner's name, and nothing else, and needs an app context.

    Attributes:
        settings: The app's ``LLM_BATCHES_*``.
        keys: The built-in API keys.
    """

    def __init__(self, settings: Settings, records: Records, providers: Providers) -> None:
        self.settings = settings
        self.keys = Keys(records)
        self._records = records
        self._providers = providers

    def create(
        self,
        *,
        owner: str,
        model: str,
        requests: msgspec.Raw | Iterable[Mapping[str, Any]],
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        requested_by: str | None = None,
    ) -> Batch:
        """Hand in a batch.

        Args:
            owner: Whose it will be.
            model: ``provider:model``; goes into every request's body.
            requests: ``{"custom_id": ..., "body": {...}}`` each, or the bytes of a JSON array of them.
            completion_window: How long the provider may take.
            metadata: At most 15 pairs, kept with the batch by providers that keep any.
            endpoint: What every request is for.
            requested_by: Who asks, for the usage; the owner unless given.
        """
        Principal(owner)  # says what an owner must be
        provider, model = _split_model(model)
        provider = self._providers.name_of(provider)
        by = requested_by or owner
        asked_for = {
            "endpoint": endpoint,
            "completion_window": completion_window,
            "metadata": dict(metadata or {}),
        }
        with spooled(
            requests,
            model=model,
            endpoint=endpoint,
            max_requests=self.settings.max_requests,
            folder=self.settings.spool_dir,
        ) as spool:
            row = self._records.begin(
                provider=provider, owner=owner, model=model, requests=spool.requests, asked_for=asked_for
            )
            submission = Submission(
                endpoint=endpoint,
                completion_window=completion_window,
                metadata={**(metadata or {}), UID_KEY: row.uid},
            )
            try:
                batch = self._providers.submit(provider, spool.path, submission)
            except SubmitFailed as failure:
                self._not_accepted(row, failure, by)
                raise failure.error from None
        batch = batch.remembering(model=model, metadata=metadata)
        try:
            usage = self._records.accepted(row, batch, requested_by=by)
        except RecordUnavailable:
            # An error would have the caller send it again, and pay twice.
            logger.exception("batch %r at %r is accepted, but not recorded as such", batch.id, provider)
            return batch
        _send(batch_submitted, batch=batch, owner=owner, requested_by=by)
        _send(usage_recorded, usage=usage)
        return batch

    def retrieve(self, batch_id: str, *, owner: str | None, provider: str | None = None) -> Batch:
        """Ask the provider after a batch.

        Args:
            batch_id: The provider's id.
            owner: Whose it must be.
            provider: Whose id it is; may be left out for a batch that was made here.
        """
        name, row = self._locate(batch_id, owner=owner, provider=provider)
        return self._seen(row, self._providers.retrieve(name, batch_id))

    def cancel(self, batch_id: str, *, owner: str | None, provider: str | None = None) -> Batch:
        """Ask the provider to cancel a batch; what is finished by then stays, and is billed."""
        name, row = self._locate(batch_id, owner=owner, provider=provider)
        return self._seen(row, self._providers.cancel(name, batch_id))

    def list(
        self, *, owner: str | None, provider: str | None = None, after: str | None = None, limit: int = 20
    ) -> Page:
        """List batches, newest first: an owner's from the record, for an admin what the provider has.

        Args:
            owner: Whose.
            provider: Only of this one; an admin must name one.
            after: The id of the last batch of the page before.
            limit: How many.
        """
        name = None if provider is None else self._providers.name_of(provider)
        if owner is not None:
            Principal(owner)
        if owner is None:
            if name is None:
                raise ValidationFailed({"provider": [f"{REQUIRED} An admin lists what a provider has."]})
            page = self._providers.list(name, after=after, limit=limit)
            return Page([self._seen(None, batch) for batch in page.batches], page.has_more)
        last = None
        if after is not None:
            found = [
                row
                for row in self._records.find(after)
                if row.owner == owner and name in (None, row.provider)
            ]
            if not found:
                raise ValidationFailed({"after": ["Not the id of a batch in this list."]})
            last = found[0]
        rows, has_more = self._records.list(owner=owner, provider=name, after=last, limit=limit)
        return Page([Batch.from_dict(row.snapshot, row.provider) for row in rows], has_more)

    def results(
        self,
        batch_id: str,
        *,
        owner: str | None,
        provider: str | None = None,
        requested_by: str | None = None,
    ) -> Sequence[Row]:
        """Fetch the results of a batch, and account for them the first time.

        A batch that expired or was cancelled has those of what was finished before.

        Raises:
            BatchNotComplete: It still runs.
            BatchFailed: It failed before any request ran.
        """
        name, row = self._locate(batch_id, owner=owner, provider=provider)
        batch = self._seen(row, self._providers.retrieve(name, batch_id))
        if batch.status == "failed":
            raise BatchFailed(batch_id, reasons=_reasons(batch))
        if not batch.finished:
            raise BatchNotComplete(batch_id, status=batch.status, provider=name)
        rows = self._providers.results(batch)
        if row is not None and row.accounted_at is None:
            by = requested_by or owner or row.owner
            usage = self._records.account(row, count_tokens(rows), requested_by=by, rows=len(rows))
            if usage is not None:
                _send(usage_recorded, usage=usage)
        return rows

    def _locate(self, batch_id: str, *, owner: str | None, provider: str | None) -> tuple[str, Record | None]:
        """Find the provider of a batch and its record, before any provider is called.

        What is not there and what is not theirs are the same to a caller, in every case.
        """
        name = None if provider is None else self._providers.name_of(provider)
        if owner is not None:
            Principal(owner)
        if not _BATCH_ID.fullmatch(batch_id):
            raise BatchNotFound(f"Batch '{batch_id}' not found")
        known = self._records.find(batch_id)
        theirs = [row for row in known if owner in (None, row.owner) and name in (None, row.provider)]
        if len(theirs) == 1:
            return theirs[0].provider, theirs[0]
        if name is None:
            raise ValidationFailed(
                {"provider": [f"{REQUIRED} It may be left out for a batch of yours only."]}
            )
        if not known and (owner is None or self.settings.untracked == "allow"):
            return name, None
        raise BatchNotFound(f"Batch '{batch_id}' not found")

    def _seen(self, row: Record | None, batch: Batch) -> Batch:
        if row is None:
            return batch.remembering(model=None, metadata=None)
        batch = batch.remembering(model=row.model, metadata=row.snapshot.get("metadata"))
        if self._records.seen(row, batch) and batch.finished:
            _send(batch_finished, batch=batch, owner=row.owner)
        return batch

    def _not_accepted(self, row: Record, failure: SubmitFailed, requested_by: str) -> None:
        state = "unknown" if failure.maybe_created else "failed"
        try:
            usage = self._records.not_accepted(
                row, state=state, error=failure.error.code, requested_by=requested_by
            )
        except LLMBatchesError:
            logger.exception("batch %s is %s, but not recorded as such", row.uid, state)
        else:
            _send(usage_recorded, usage=usage)


def _split_model(model: str) -> tuple[str, str]:
    # The first of the two decides: "openai:org/model", and "openai/ft:model" as older clients write it.
    parts = re.split("[:/]", model, maxsplit=1)
    if len(parts) == 1 or not all(part.strip() for part in parts):
        raise InvalidModel(
            f"Invalid model '{model}': it must be 'provider:model', such as 'openai:gpt-4o-mini'",
            param="model",
        )
    return parts[0], parts[1]


def _reasons(batch: Batch) -> str:
    problems = (batch.errors or {}).get("data") or []
    return " ".join(
        f"Line {problem['line']}: {problem['message']}" if problem.get("line") else str(problem["message"])
        for problem in problems[:10]
    )


def _send(signal: NamedSignal, **payload: Any) -> None:
    app: Any = current_app
    signal.send(app._get_current_object(), **payload)  # noqa: SLF001  # as Flask itself sends its own


def _service() -> Service:
    try:
        service: Service = current_app.extensions["llm_batches"]
    except KeyError:
        raise RuntimeError(
            "This app has no LLMBatches: call llm_batches.init_app(app) in its factory."
        ) from None
    return service


current_llm_batches: Service = LocalProxy(_service)  # type: ignore[assignment]
"""The service of the app at hand."""
