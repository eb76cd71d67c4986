"""Makes a batch at a provider out of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice

from flask import Flask, current_app

from flask_llm_batches.batch import UID_KEY, Batch
from flask_llm_batches.config import Settings
from flask_llm_batches.core.adoption import send_accepted
from flask_llm_batches.core.asked import MAX_METADATA, Asked, Checked, Created, check_metadata
from flask_llm_batches.core.estimates import Estimates, prompts_in
from flask_llm_batches.core.heartbeat import Heartbeat
from flask_llm_batches.core.idempotency import Fingerprint, Idempotency
from flask_llm_batches.core.limits import Limiter
from flask_llm_batches.core.models import Models
from flask_llm_batches.core.requests import Incoming
from flask_llm_batches.core.sources import Sources
from flask_llm_batches.core.spool import Model, Route, Splitting, Spool, spooled, tokens_of
from flask_llm_batches.core.waiting import Waiting, renamed
from flask_llm_batches.errors import (
    REQUIRED,
    IdempotencyInProgress,
    IdempotencyMismatch,
    LLMBatchesError,
    OwnerLimitReached,
    ProviderFailed,
    RecordUnavailable,
    ValidationFailed,
)
from flask_llm_batches.log import get_logger
from flask_llm_batches.principal import Principal
from flask_llm_batches.providers.adapters import Submission
from flask_llm_batches.providers.clients import Providers, SubmitFailed
from flask_llm_batches.signals import send, usage_recorded
from flask_llm_batches.store.batches import Batches, IdTaken
from flask_llm_batches.store.models import Record

logger = get_logger(__name__)


class Creator:
    """Makes the batches of one app."""

    def __init__(
        self,
        settings: Settings,
        batches: Batches,
        providers: Providers,
        models: Models,
        idempotency: Idempotency,
        heartbeat: Heartbeat,
        sources: Sources,
        waiting: Waiting,
        limiter: Limiter,
        estimates: Estimates,
    ) -> None:
        self._estimates = estimates
        self._limiter = limiter
        self._sources = sources
        self._waiting = waiting
        self._settings = settings
        self._batches = batches
        self._models = models
        self._providers = providers
        self._idempotency = idempotency
        self._heartbeat = heartbeat

    def ask(
        self,
        model: str | None,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None,
        requests: Incoming,
    ) -> Asked:
        """Check what a create asks for, besides its requests.

        Args:
            model: ``provider:model``, or a name that stands for it; None if every request names it.
            endpoint: The endpoint of every request.
            completion_window: How long the provider may take.
            metadata: The caller's own.
            requests: Without ``model``, the first one names it.

        Raises:
            InvalidModel: ``model`` stands for none.
            UnknownProvider: There is no such provider.
            UnsupportedProvider: The provider has no batch API for such requests.
            ValidationFailed: The metadata is wrong, or the provider does not take that endpoint or window.
        """
        if model is None:
            first = requests.first_model()
            if first is None:
                raise ValidationFailed.of(REQUIRED, "model")
            _, full = first
        else:
            full = model
        check_metadata(metadata or {})
        provider, name = self._models.resolve(full)
        submission = Submission(name, endpoint, completion_window, dict(metadata or {}))
        self._providers.adapter_of(provider).check(submission)
        return Asked(provider, Model(name, full, is_given=model is not None), submission)

    def check(self, asked: Asked, requests: Incoming, *, owner: Principal) -> Checked:
        """Check a batch as ``create`` does. Nothing is submitted or kept."""
        self._providers.check(asked.provider)
        with self.spooled(asked, requests) as spool:
            warnings = [renamed(spool, asked)] if spool.renamed else []
            number = sum(part.requests for part in spool.parts) or len(spool.custom_ids)
            tokens = tokens_of(spool.size)
            prompts = prompts_in(asked, spool)
            costs = self._estimates.costs(prompts)
            if (allowance := self._limiter.allowance(owner)) is not None:
                cost = self._estimates.reserved(prompts, allowance)
                error = self._batches.exceeded(owner.owner, allowance, requests=number, cost=cost)
                warnings += [] if error is None else [str(error)]
            return Checked(
                asked.provider, number, spool.size, len(spool.parts) or 1, tokens, *costs, warnings
            )

    def create(
        self, asked: Asked, requests: Incoming, *, owner: Principal, requested_by: str, key: str | None
    ) -> Created:
        """Submit a batch, once: the intent is recorded before the provider is called.

        A batch of several parts is recorded, and a worker submits them. So is one that its provider has no
        room for at this moment, if a worker is alive.

        Args:
            asked: What ``ask`` has checked.
            requests: The requests.
            owner: Whose the batch will be.
            requested_by: Who asks.
            key: The ``Idempotency-Key``.
        """
        fingerprint = None if key is None else Fingerprint(asked.provider, asked.submission, *asked.then)
        with self.spooled(asked, requests, fingerprint, owner=owner.owner) as spool:
            allowance = self._limiter.allowance(owner)
            begin = partial(
                self._batches.begin,
                provider=asked.provider,
                owner=owner.owner,
                model=asked.submission.model,
                custom_ids=spool.custom_ids,
                asked_for=asked.fields,
                tokens=tokens_of(spool.size),
                parts=spool.parts,
                requested_by=requested_by,
                allowance=allowance,
                reserved=self._estimates.reserved(prompts_in(asked, spool), allowance),
                **asked.options,
            )
            try:
                begun = (
                    begin()
                    if key is None
                    else self._idempotency.begin(key, str(fingerprint), owner.owner, begin)
                )
            except (OwnerLimitReached, IdempotencyInProgress, IdempotencyMismatch):
                self._sources.discard(spool.parts)
                raise
            if isinstance(begun, Batch):
                self._sources.discard(spool.parts)
                return Created(replace(begun, replayed=True), waits=False)
            record = begun
            if spool.parts:
                return Created(self._waiting.told(record, spool, asked, requested_by), waits=True)
            try:
                return Created(self.submit(record, asked, spool, requested_by=requested_by), waits=False)
            except SubmitFailed as failure:
                queued = self._waiting.queued(record, spool, asked, failure, requested_by)
                if queued is not None:
                    return Created(queued, waits=True)
                self.not_accepted(record, failure, requested_by)
                error = failure.error
            try:
                # outside of the except block, which would make a reference cycle that holds the body
                raise error
            finally:
                del error

    def submit(
        self,
        record: Record,
        asked: Asked,
        spool: Spool,
        *,
        requested_by: str,
        begin: Callable[[], Record] | None = None,
    ) -> Batch:
        """Submit the requests of a recorded batch, and record the answer.

        Args:
            record: The batch.
            asked: What was asked for.
            spool: Its requests.
            requested_by: Who asked for it.
            begin: Called in an app context when the requests are uploaded, if the batch is queued until then.
                Returns the record whose lease this process holds. Without it, this is ``record``.

        Raises:
            SubmitFailed: The provider refused it, or did not answer. The caller records that.
        """
        if spool.renamed:
            logger.warning("batch %s: %s", record.uid, renamed(spool, asked))
        kept = dict(islice(asked.submission.metadata.items(), MAX_METADATA - 1))
        marked = replace(asked.submission, metadata={**kept, UID_KEY: record.uid})
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself
        # The lease shows others that this process is alive, however long the submit takes.
        with ExitStack() as leases:

            def hold() -> None:
                nonlocal record
                with app.app_context():
                    record = record if begin is None else begin()
                    leases.enter_context(self._during(record))

            if begin is None:
                hold()
            before_create = None if begin is None else hold
            batch = self._providers.submit(asked.provider, spool.path, marked, before_create=before_create)
        return record.shown(self._accepted(record, batch.remembering(asked.fields), requested_by))

    def _during(self, record: Record) -> AbstractContextManager[None]:
        return self._heartbeat.during(partial(self._batches.extend_lease, record))

    def spooled(
        self,
        asked: Asked,
        requests: Incoming,
        fingerprint: Fingerprint | None = None,
        *,
        owner: str | None = None,
    ) -> AbstractContextManager[Spool]:
        """Check requests on their way into a file that is deleted when the block ends.

        Requests of several parts are kept for an owner; without one, they are only checked.
        """

        def route(name: str) -> Route:
            provider, model = self._models.resolve(name)
            adapter = self._providers.adapter_of(provider)
            adapter.check(replace(asked.submission, model=model))
            return Route(provider, model, adapter)

        keep = None if owner is None else partial(self._sources.keep, owner=owner)
        return spooled(
            requests,
            model=asked.model,
            endpoint=asked.submission.endpoint,
            provider=asked.provider,
            adapter=self._providers.adapter_of(asked.provider),
            settings=self._settings,
            splitting=Splitting(keep, self._sources.discard, route, asked.retries),
            fingerprint=fingerprint,
        )

    def _accepted(self, record: Record, batch: Batch, requested_by: str) -> Batch:
        try:
            recorded = self._is_recorded(record, batch, requested_by)
        except IdTaken:
            logger.exception("provider %r gave the id %r to two batches", batch.provider, batch.id)
            failed = ProviderFailed("LLM provider error", should_retry=False)
            self.not_accepted(record, SubmitFailed(failed, maybe_created=True), requested_by)
            raise failed from None
        if not recorded:
            # After an error the caller would create the batch again, and pay twice.
            logger.error(
                "batch %r at %r is accepted, but not recorded as such. This process keeps trying. If it ends "
                "before it succeeds, run: flask llm-batches reconcile --adopt %s=%r",
                batch.id,
                batch.provider,
                record.uid,
                batch.id,
            )
            self._heartbeat.add(lambda: self._is_unrecorded(record, batch, requested_by))
        return batch

    def _is_unrecorded(self, record: Record, batch: Batch, requested_by: str) -> bool:
        try:
            return not self._is_recorded(record, batch, requested_by)
        except IdTaken:
            logger.exception("provider %r gave the id %r to two batches", batch.provider, batch.id)
            return False

    def _is_recorded(self, record: Record, batch: Batch, requested_by: str) -> bool:
        """Record a batch as accepted, and return whether it is.

        Raises:
            IdTaken: The provider gave it the id of another batch.
        """
        try:
            usage = self._batches.accepted(record, batch, requested_by=requested_by, token=record.lease_token)
        except RecordUnavailable:
            return False
        if usage is not None:
            logger.info("batch %r at %r has %d requests", batch.id, batch.provider, record.requests)
            send_accepted(record, batch, usage, requested_by=requested_by)
        return True

    def not_accepted(self, record: Record, failure: SubmitFailed, requested_by: str) -> None:
        """Record that a submit failed."""
        state = "unknown" if failure.maybe_created else "failed"
        try:
            usage = self._batches.not_accepted(
                record, state=state, error=failure.error.code, requested_by=requested_by
            )
        except LLMBatchesError:
            logger.exception("batch %s is %s, but not recorded as such", record.uid, state)
        else:
            if usage is not None:
                send(usage_recorded, usage=usage)
