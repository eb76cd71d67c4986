"""Makes a batch at a provider out of requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from flask_llm_batches.batch import UID_KEY, Batch
from flask_llm_batches.config import Settings
from flask_llm_batches.core.adoption import send_accepted
from flask_llm_batches.core.heartbeat import Heartbeat
from flask_llm_batches.core.idempotency import Fingerprint, Idempotency
from flask_llm_batches.core.requests import Incoming
from flask_llm_batches.core.spool import Model, Spool, spooled
from flask_llm_batches.errors import (
    REQUIRED,
    InvalidModel,
    LLMBatchesError,
    Problem,
    ProviderFailed,
    RecordUnavailable,
    ValidationFailed,
)
from flask_llm_batches.log import get_logger, request_id
from flask_llm_batches.principal import has_control_characters
from flask_llm_batches.providers.adapters import Submission
from flask_llm_batches.providers.clients import Providers, SubmitFailed
from flask_llm_batches.signals import send, usage_recorded
from flask_llm_batches.store.batches import Batches, IdTaken
from flask_llm_batches.store.models import Record

logger = get_logger(__name__)

DEFAULT_ENDPOINT = "/v1/chat/completions"

MAX_METADATA = 15
"""The most pairs of metadata: the providers take 16, and one is ours."""

MAX_METADATA_KEY, MAX_METADATA_VALUE = 64, 512
"""The most characters of a key and of a value, at OpenAI."""


class Checked(NamedTuple):
    """The result of a dry run.

    Attributes:
        provider: The provider that would run the batch.
        requests: The number of requests.
        size: Their size in bytes, as the provider would receive them.
        warnings: What would differ from the request.
    """

    provider: str
    requests: int
    size: int
    warnings: Sequence[str]


class Asked(NamedTuple):
    """What a create asks for, besides its requests.

    Attributes:
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        model: Its model.
        submission: What is submitted besides the requests.
        on_results: The name of the handler that takes the rows.
        webhook: The name of the webhook for its end.
    """

    provider: str
    model: Model
    submission: Submission
    on_results: str | None = None
    webhook: str | None = None


class Creator:
    """Makes the batches of one app."""

    def __init__(
        self,
        settings: Settings,
        batches: Batches,
        providers: Providers,
        idempotency: Idempotency,
        heartbeat: Heartbeat,
    ) -> None:
        self._settings = settings
        self._batches = batches
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
            model: ``provider:model``; None if every request names it.
            endpoint: The endpoint of every request.
            completion_window: How long the provider may take.
            metadata: The caller's own.
            requests: The first one is looked at for the model, if there is no other.

        Raises:
            InvalidModel: ``model`` is not ``provider:model``.
            UnknownProvider: There is no such provider.
            UnsupportedProvider: The provider has no batch API for such requests.
            ValidationFailed: The metadata is wrong, or the provider does not take that endpoint or window.
        """
        full = model if model is not None else requests.first_model()
        if full is None:
            raise ValidationFailed.of(REQUIRED, "model")
        check_metadata(metadata or {})
        provider, name = _split_model(full)
        provider = self._providers.name_of(provider)
        submission = Submission(name, endpoint, completion_window, dict(metadata or {}))
        self._providers.adapter_of(provider).check(submission)
        return Asked(provider, Model(name, full, is_given=model is not None), submission)

    def check(self, asked: Asked, requests: Incoming) -> Checked:
        """Check a batch as ``create`` does. Nothing is submitted or kept."""
        self._providers.check(asked.provider)
        with self._spooled(asked, requests) as spool:
            warnings = [_renamed(spool, asked)] if spool.renamed else []
            return Checked(asked.provider, len(spool.custom_ids), spool.size, warnings)

    def create(
        self, asked: Asked, requests: Incoming, *, owner: str, requested_by: str, key: str | None
    ) -> Batch:
        """Submit a batch, once: the intent is recorded before the provider is called.

        Args:
            asked: What ``ask`` has checked.
            requests: The requests.
            owner: Whose the batch will be.
            requested_by: Who asks.
            key: The ``Idempotency-Key``.
        """
        provider, submission = asked.provider, asked.submission
        asked_for = {
            "model": submission.model,
            "endpoint": submission.endpoint,
            "completion_window": submission.completion_window,
            "metadata": submission.metadata,
        }
        then = asked.on_results, asked.webhook
        fingerprint = Fingerprint(provider, submission, *then) if key is not None else None
        with self._spooled(asked, requests, fingerprint) as spool:
            begin = partial(
                self._batches.begin,
                provider=provider,
                owner=owner,
                model=submission.model,
                custom_ids=spool.custom_ids,
                asked_for=asked_for,
                on_results=asked.on_results,
                webhook=asked.webhook,
                request_id=request_id(),
            )
            if key is None:
                record = begin()
            else:
                begun = self._idempotency.begin(key, str(fingerprint), owner, begin)
                if isinstance(begun, Batch):
                    return replace(begun, owner=owner, replayed=True)
                record = begun
            if spool.renamed:
                logger.warning("batch %s: %s", record.uid, _renamed(spool, asked))
            marked = replace(submission, metadata={**submission.metadata, UID_KEY: record.uid})
            try:
                # Others see by the lease that this process lives, however long it takes.
                with self._heartbeat.during(partial(self._batches.extend_lease, record)):
                    batch = self._providers.submit(provider, spool.path, marked)
            except SubmitFailed as failure:
                self._not_accepted(record, failure, requested_by)
                error = failure.error
            else:
                batch = replace(batch.remembering(asked_for), owner=owner)
                return self._accepted(record, batch, requested_by)
            try:
                raise error  # here, where no other exception would hold it in a reference cycle with the body
            finally:
                del error

    def _spooled(
        self, asked: Asked, requests: Incoming, fingerprint: Fingerprint | None = None
    ) -> AbstractContextManager[Spool]:
        return spooled(
            requests,
            model=asked.model,
            endpoint=asked.submission.endpoint,
            provider=asked.provider,
            adapter=self._providers.adapter_of(asked.provider),
            settings=self._settings,
            fingerprint=fingerprint,
        )

    def _accepted(self, record: Record, batch: Batch, requested_by: str) -> Batch:
        try:
            recorded = self._is_recorded(record, batch, requested_by)
        except IdTaken:
            logger.exception("provider %r gave the id %r to two batches", batch.provider, batch.id)
            failed = ProviderFailed("LLM provider error", should_retry=False)
            self._not_accepted(record, SubmitFailed(failed, maybe_created=True), requested_by)
            raise failed from None
        if not recorded:
            # After an error the caller would create the batch again, and pay twice.
            logger.error(
                "batch %r at %r is accepted, but not recorded as such. This process tries to as long as it "
                "lives; should it end before: flask llm-batches reconcile --adopt %s=%r",
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

    def _not_accepted(self, record: Record, failure: SubmitFailed, requested_by: str) -> None:
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


def _renamed(spool: Spool, asked: Asked) -> str:
    return f"{spool.renamed} requests name another model; all run with {asked.model.name!r}."


def check_metadata(metadata: Mapping[Any, Any]) -> None:
    """Check the metadata of a create.

    Raises:
        ValidationFailed: They are more than 15 pairs, or not strings of the right lengths.
    """
    problems = []
    if not isinstance(metadata, Mapping):
        raise ValidationFailed.of("Not a valid mapping type.", "metadata")
    if len(metadata) > MAX_METADATA:
        problems.append(Problem(("metadata",), f"Longer than maximum length {MAX_METADATA}."))
    for key, value in list(metadata.items())[:MAX_METADATA]:
        if not (isinstance(key, str) and 1 <= len(key) <= MAX_METADATA_KEY):
            problems.append(
                Problem(("metadata",), f"A key is not a string of 1 to {MAX_METADATA_KEY} characters.")
            )
        elif not (isinstance(value, str) and len(value) <= MAX_METADATA_VALUE):
            problem = f"Not a string of at most {MAX_METADATA_VALUE} characters."
            problems.append(Problem(("metadata", key), problem))
    if problems:
        raise ValidationFailed(problems)


def _split_model(model: str) -> tuple[str, str]:
    if not isinstance(model, str):
        raise InvalidModel(f"Invalid model: it must be a string, not {type(model).__name__}", param="model")
    # The first separator counts: "openai:org/model", and "openai/ft:model" as older clients write it.
    parts = re.split("[:/]", model, maxsplit=1)
    if len(parts) == 1 or not all(part.strip() for part in parts) or has_control_characters(model):
        raise InvalidModel(
            f"Invalid model {model!r}: it must be 'provider:model', such as 'openai:gpt-4o-mini'",
            param="model",
        )
    return parts[0], parts[1]
