"""The calls that make batches: a part of the service."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from flask_llm_batches.batch import Batch, uid_of
from flask_llm_batches.config import MAX_RETRIES, Settings
from flask_llm_batches.core.asked import DEFAULT_ENDPOINT, Asked, Checked, Created
from flask_llm_batches.core.create import Creator
from flask_llm_batches.core.files import Files, check_expiry
from flask_llm_batches.core.handlers import Handlers
from flask_llm_batches.core.idempotency import Idempotency
from flask_llm_batches.core.parts import Parts
from flask_llm_batches.core.queue import FileBatches
from flask_llm_batches.core.requests import Incoming, Requests
from flask_llm_batches.core.retry import Retrier
from flask_llm_batches.core.webhooks import Targets
from flask_llm_batches.core.worker.alive import WorkerAlive
from flask_llm_batches.core.worker.tick import Ticker
from flask_llm_batches.errors import REQUIRED, RecordUnavailable, ValidationFailed
from flask_llm_batches.log import get_logger
from flask_llm_batches.principal import Owner, Principal, owner_name, owner_or_everyone
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import File, Record

logger = get_logger(__name__)

PARTS_WAIT = "No worker is alive: parts are submitted whenever somebody asks for the batch."
NO_WORKER = "No worker is alive: on_results and webhooks need one, such as flask llm-batches worker."


class Submissions:
    """The calls that make batches. ``Service`` has them, too."""

    settings: Settings
    files: Files
    handlers: Handlers
    webhooks: Targets
    _batches: Batches
    _creator: Creator
    _file_batches: FileBatches
    _parts: Parts
    _retrier: Retrier
    _ticker: Ticker
    _worker_alive: WorkerAlive

    def create(
        self,
        *,
        owner: str | Principal,
        requests: Requests | None = None,
        input_file_id: str | None = None,
        model: str | None = None,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        requested_by: str | None = None,
        idempotency_key: str | None = None,
        on_results: str | None = None,
        webhook: str | None = None,
        output_expires_after: int | None = None,
        retries: int | None = None,
    ) -> Batch:
        """Submit a batch, once.

        Args:
            owner: Whose the batch will be.
            requests: Dicts ``{"custom_id": ..., "body": {...}}``; or JSONL, as a ``pathlib.Path``, a file
                that is open for reading bytes, or lines of bytes; or the bytes of a JSON array.
            input_file_id: Instead of requests, a file of the owner that has them. The batch is recorded now
                and submitted by a worker; without a worker, before this call returns. If the file is wrong,
                the batch fails, and its ``errors`` say why.
            model: ``provider:model``, or a name in ``LLM_BATCHES_MODELS``. It goes into the body of every
                request, which may name no other. May be left out if every request names it; must be left out
                with ``input_file_id``.
            completion_window: How long the provider may take.
            metadata: At most 16 pairs, of which providers with metadata keep 15 with the batch.
            endpoint: The endpoint that every request is for.
            requested_by: Who asks, for the usage; the owner by default.
            idempotency_key: A create that is repeated with the same key returns the first batch.
            on_results: The name of a handler that a worker calls with the rows.
            webhook: The name of a webhook in ``LLM_BATCHES_WEBHOOKS`` that a worker sends when it has ended.
            output_expires_after: Seconds after its end when the files of its results expire, 3,600 to
                2,592,000; by default they last as long as the results.
            retries: How often requests that failed for a temporary reason are submitted again, 0 to 5;
                ``LLM_BATCHES_RETRIES`` by default.

        Returns:
            The batch. Its ``replayed`` is true if an earlier create with the same key made it.
        """
        principal = _principal(owner)
        if idempotency_key is not None:
            Idempotency.check(idempotency_key)
        source = self._source(requests, input_file_id, model, owner)
        asked = self._ask(source, model, endpoint, completion_window, metadata, on_results, webhook, retries)
        if output_expires_after is not None:
            check_expiry(output_expires_after, "output_expires_after")
            asked = asked._replace(output_seconds=output_expires_after)
        if isinstance(source, Incoming):
            by = owner_name(requested_by or principal)
            made = self._creator.create(asked, source, owner=principal, requested_by=by, key=idempotency_key)
        else:
            made = self._file_batches.create(asked, source, owner=principal, key=idempotency_key)
        return self._submitted(made)

    def check(
        self,
        *,
        owner: str | Principal,
        requests: Requests | None = None,
        input_file_id: str | None = None,
        model: str | None = None,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        idempotency_key: str | None = None,
        on_results: str | None = None,
        webhook: str | None = None,
        output_expires_after: int | None = None,
        retries: int | None = None,
    ) -> Checked:
        """Check a batch as ``create`` does. Nothing is submitted or kept.

        That the batch would be above a limit of its owner is a warning: there may be room later.
        """
        principal = _principal(owner)
        if idempotency_key is not None:
            Idempotency.check(idempotency_key)
        if output_expires_after is not None:
            check_expiry(output_expires_after, "output_expires_after")
        source = self._source(requests, input_file_id, model, owner)
        asked = self._ask(source, model, endpoint, completion_window, metadata, on_results, webhook, retries)
        if isinstance(source, Incoming):
            checked = self._creator.check(asked, source, owner=principal)
        else:
            checked = self._file_batches.check(asked, source, owner=principal)
        warnings = [*checked.warnings, *([NO_WORKER] if self._lacks_worker(asked) else [])]
        if checked.parts > 1 and not self._worker_alive():
            warnings.append(PARTS_WAIT)
        return checked._replace(warnings=warnings)

    def retry(
        self,
        batch_id: str,
        *,
        owner: Owner,
        provider: str | None = None,
        requested_by: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Make a new batch of the requests that failed in a batch, and return it.

        The requests of a batch that was submitted as one are fetched from its provider.

        Args:
            batch_id: The id of the batch that has ended.
            owner: Whose batch it must be. The new one belongs to the same owner.
            provider: Whose id it is; may be left out for a batch that was made here.
            requested_by: Who asks, for the usage; the owner by default.
            idempotency_key: A retry that is repeated with the same key returns the first batch.

        Raises:
            BatchNotComplete: The batch still runs.
            RequestsGone: Its requests are not kept any more.
            ValidationFailed: None of them failed.
        """
        if idempotency_key is not None:
            Idempotency.check(idempotency_key)
        name = owner_or_everyone(owner)
        by = None if requested_by is None else owner_name(requested_by)
        made = self._retrier.retry(
            batch_id, owner=name, provider=provider, requested_by=by, key=idempotency_key
        )
        return self._submitted(made)

    def _submitted(self, made: Created) -> Batch:
        if made.waits and not self._worker_alive():
            self._submit_now(made.batch)
        return made.batch

    def _source(
        self,
        requests: Requests | None,
        input_file_id: str | None,
        model: str | None,
        owner: str | Principal,
    ) -> Incoming | File:
        if input_file_id is None:
            if requests is None:
                raise ValidationFailed.of(REQUIRED, "requests")
            return Incoming(requests, limit=self.settings.max_requests)
        if requests is not None:
            raise ValidationFailed.of("Not together with requests.", "input_file_id")
        if model is not None:
            raise ValidationFailed.of("Not together with input_file_id: every line of it names one.", "model")
        return self.files.retrieve(input_file_id, owner=owner, param="input_file_id")

    def _ask(
        self,
        source: Incoming | File,
        model: str | None,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None,
        on_results: str | None,
        webhook: str | None,
        retries: int | None,
    ) -> Asked:
        retries = self.settings.retries if retries is None else retries
        if type(retries) is not int or not 0 <= retries <= MAX_RETRIES:
            raise ValidationFailed.of(f"Not a number from 0 to {MAX_RETRIES}.", "retries")
        if on_results is not None:
            self.handlers.check(on_results)
        if webhook is not None:
            self.webhooks.check(webhook)
        if isinstance(source, Incoming):
            asked = self._creator.ask(model, endpoint, completion_window, metadata, source)
        else:
            asked = self._file_batches.ask(source, endpoint, completion_window, metadata)
        asked = asked._replace(on_results=on_results, webhook=webhook, retries=retries)
        if self._lacks_worker(asked):
            logger.warning(NO_WORKER)
        return asked

    def _lacks_worker(self, asked: Asked) -> bool:
        return (asked.on_results, asked.webhook) != (None, None) and not self._worker_alive()

    def _advance(self, record: Record) -> Record:
        """Do what is due for a batch that waits, or for its parts, and return its record."""
        if record.state == "split":
            # Nobody else may ask for them, and the provider validates one at a time.
            for uid in self._parts.in_the_way(record):
                self._ticker.run(uid, "refresh")
        self._ticker.run(record.uid, "submit")
        if record.state == "split":
            for part in self._parts.of(record):
                self._ticker.run(part.uid, "refresh")
                if part.retries:
                    self._ticker.run(part.uid, "archive")
        return self._batches.by_uid(record.uid) or record

    def _submit_now(self, batch: Batch) -> None:
        with suppress(RecordUnavailable):  # which is logged; it is submitted when somebody asks for the batch
            self._ticker.run(uid_of(batch.id) or "", "submit")


def _principal(owner: str | Principal) -> Principal:
    return owner if isinstance(owner, Principal) else Principal(owner_name(owner))
