"""Makes a new batch of the requests that failed in an old one."""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import closing
from dataclasses import replace
from functools import partial

from flask_llm_batches.batch import Batch
from flask_llm_batches.core.adoption import send_accepted
from flask_llm_batches.core.asked import Created
from flask_llm_batches.core.estimates import Estimates, prompts_of
from flask_llm_batches.core.idempotency import Fingerprint, Idempotency
from flask_llm_batches.core.limits import Limiter
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.parts import Parts
from flask_llm_batches.core.results import ResultReader
from flask_llm_batches.core.sources import Sources
from flask_llm_batches.errors import (
    BatchFailed,
    BatchNotFound,
    LLMBatchesError,
    OwnerLimitReached,
    RequestsGone,
    ValidationFailed,
)
from flask_llm_batches.log import request_id
from flask_llm_batches.principal import Principal
from flask_llm_batches.providers.adapters import Submission
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.idempotency import KeyUsed
from flask_llm_batches.store.intents import NewPart
from flask_llm_batches.store.models import Record


class Retrier:
    """Retries what failed in the batches of one app."""

    def __init__(
        self,
        lookup: Lookup,
        results: ResultReader,
        parts: Parts,
        sources: Sources,
        providers: Providers,
        batches: Batches,
        idempotency: Idempotency,
        limiter: Limiter,
        estimates: Estimates,
    ) -> None:
        self._estimates = estimates
        self._limiter = limiter
        self._lookup = lookup
        self._results = results
        self._parts = parts
        self._sources = sources
        self._providers = providers
        self._batches = batches
        self._idempotency = idempotency

    def retry(
        self,
        batch_id: str,
        *,
        owner: str | None,
        provider: str | None,
        requested_by: str | None,
        key: str | None,
    ) -> Created:
        """Record a new batch of the requests that failed in a batch.

        Raises:
            BatchNotComplete: The batch still runs.
            RequestsGone: Its requests are not kept any more.
            ValidationFailed: None of them failed.
        """
        batch, record = self._lookup.current(batch_id, owner=owner, provider=provider)
        if record is None:
            raise BatchNotFound(f"Batch '{batch_id}' not found")
        by = requested_by or owner or record.owner
        snapshot = record.snapshot
        submission = Submission(
            record.model, snapshot["endpoint"], snapshot["completion_window"], snapshot["metadata"] or {}
        )
        begin: Callable[..., Record] = partial(self._begin, batch, record, submission, by)
        if key is None:
            whole = begin()
        else:
            fingerprint = Fingerprint(record.provider, submission, "retry", record.uid)
            begun = self._idempotency.begin(key, str(fingerprint), record.owner, begin)
            if isinstance(begun, Batch):
                return Created(replace(begun, replayed=True), waits=False)
            whole = begun
        made = whole.last_seen()
        send_accepted(whole, made, self._batches.usage_of(whole), requested_by=by)
        return Created(whole.shown(made), waits=True)

    def _begin(
        self, batch: Batch, record: Record, submission: Submission, by: str, key: dict[str, str] | None = None
    ) -> Record:
        if key is not None and self._idempotency.is_used(key):
            raise KeyUsed
        parts = self._new_parts(record, self._failed(batch, record))
        if not parts:
            raise RequestsGone(record.shown_id)
        allowance = self._limiter.allowance(Principal(record.owner))
        try:
            return self._batches.begin(
                provider=record.provider,
                owner=record.owner,
                model=record.model,
                custom_ids=(),
                asked_for={
                    "model": record.model or None,
                    "endpoint": submission.endpoint,
                    "completion_window": submission.completion_window,
                    "metadata": submission.metadata,
                },
                key=key,
                on_results=record.on_results,
                webhook=record.webhook,
                request_id=request_id(),
                output_seconds=record.output_seconds,
                retry_of=record.uid,
                parts=parts,
                requested_by=by,
                allowance=allowance,
                reserved=self._estimates.reserved(prompts_of(parts), allowance),
            )
        except (OwnerLimitReached, KeyUsed):
            self._sources.discard(parts)
            raise

    def _failed(self, batch: Batch, record: Record) -> Set[str] | None:
        """Return the ``custom_id``s of the requests that failed; None for all."""
        try:
            self._lookup.check_ended(batch, record)
        except BatchFailed:
            return None
        results = self._results.read(
            batch, record, status="failed", requested_by=record.owner, keep_waiting=lambda: True
        )
        with closing(results):
            failed = {row.custom_id for group in results.groups() for row in group or ()}
        if not failed:
            raise ValidationFailed.of("No request of this batch failed.", "batch_id")
        return failed

    def _new_parts(self, record: Record, wanted: Set[str] | None) -> list[NewPart]:
        # Together, the parts that replace no others have all requests.
        olds = [part for part in self._parts.of(record) if part.replaces is None]
        parts: list[NewPart] = []
        for old in olds or [record]:
            if not old.provider:  # its file was wrong
                raise RequestsGone(record.shown_id)
            most = self._providers.adapter_of(old.provider).max_requests
            try:
                parts += self._sources.pieces(old, of=most or old.requests, wanted=wanted)
            except LLMBatchesError:
                self._sources.discard(parts)
                raise
        return parts
