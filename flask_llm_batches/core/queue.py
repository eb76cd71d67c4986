"""Batches that are made from input files: recorded at once, then checked and submitted.

A create answers before its file is read, as OpenAI's does. A file that is wrong makes a batch that fails. A
batch is queued until its requests are uploaded: if the process dies before that, another one begins again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from flask_llm_batches.batch import Batch
from flask_llm_batches.core.asked import Asked, Checked, Created, check_metadata
from flask_llm_batches.core.create import Creator
from flask_llm_batches.core.estimates import Estimates, prompts_in
from flask_llm_batches.core.files import Files
from flask_llm_batches.core.idempotency import Fingerprint, Idempotency
from flask_llm_batches.core.limits import Limiter
from flask_llm_batches.core.models import Models
from flask_llm_batches.core.requests import (
    LONGEST_REQUEST,
    MAX_ERRORS,
    MISSING,
    Incoming,
    Problems,
    WrongRequest,
    checked,
)
from flask_llm_batches.core.spool import Model, Spool, tokens_of
from flask_llm_batches.core.waiting import Waiting
from flask_llm_batches.errors import (
    REQUIRED,
    LLMBatchesError,
    OwnerLimitReached,
    Problem,
    ValidationFailed,
)
from flask_llm_batches.jsonl import split_lines
from flask_llm_batches.log import get_logger
from flask_llm_batches.principal import EVERYONE, Principal
from flask_llm_batches.providers.adapters import Submission
from flask_llm_batches.providers.clients import Providers, SubmitFailed, Withdrawn
from flask_llm_batches.signals import batch_finished, send
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import File, Record
from flask_llm_batches.store.queue import Queue

logger = get_logger(__name__)

_DAY = 24 * 3600


class FileBatches:
    """The batches of one app that are made from input files."""

    def __init__(
        self,
        creator: Creator,
        batches: Batches,
        queue: Queue,
        files: Files,
        models: Models,
        providers: Providers,
        idempotency: Idempotency,
        waiting: Waiting,
        limiter: Limiter,
        estimates: Estimates,
        *,
        max_requests: int,
    ) -> None:
        self._creator = creator
        self._batches = batches
        self._queue = queue
        self._files = files
        self._models = models
        self._providers = providers
        self._idempotency = idempotency
        self._waiting = waiting
        self._limiter = limiter
        self._estimates = estimates
        self._max_requests = max_requests

    def ask(
        self, file: File, endpoint: str, completion_window: str, metadata: Mapping[str, str] | None
    ) -> Asked:
        """Check what a create asks for, besides its file.

        Raises:
            ValidationFailed: The metadata are wrong, or the provider takes no such endpoint or window.
            UnsupportedProvider: The provider has no batch API for such requests.
        """
        check_metadata(metadata or {})
        submission = Submission("", endpoint, completion_window, dict(metadata or {}))
        asked = Asked("", Model("", "", is_given=False), submission)
        with self._requests(file) as requests, suppress(ValidationFailed):  # the batch fails with it later
            asked = self._resolved(asked, requests)
        if asked.provider:
            self._providers.adapter_of(asked.provider).check(asked.submission)
        return asked

    def check(self, asked: Asked, file: File, *, owner: Principal) -> Checked:
        """Check a batch as ``submit`` does. Nothing is submitted or kept."""
        with self._requests(file) as requests:
            return self._creator.check(self._resolved(asked, requests), requests, owner=owner)

    def create(self, asked: Asked, file: File, *, owner: Principal, key: str | None) -> Created:
        """Record a batch that is submitted later.

        Args:
            asked: What ``ask`` has checked.
            file: Its input file.
            owner: Whose the batch will be.
            key: The ``Idempotency-Key``.
        """
        uid = file.id.removeprefix("file-")
        begin = partial(
            self._batches.begin,
            provider=asked.provider,
            owner=owner.owner,
            model=asked.submission.model,
            custom_ids=(),
            asked_for=asked.fields,
            input_file=uid,
            allowance=self._limiter.allowance(owner),
            **asked.options,
        )
        if key is None:
            record = begin()
        else:
            without_model = replace(asked.submission, model="")
            fingerprint = Fingerprint("", without_model, *asked.then, uid)
            begun = self._idempotency.begin(key, str(fingerprint), owner.owner, begin)
            if isinstance(begun, Batch):
                return Created(replace(begun, replayed=True), waits=False)
            record = begun
        return Created(record.shown(record.last_seen()), waits=True)

    def submit(self, record: Record) -> Batch | None:
        """Check the file of a queued batch, and submit its requests.

        Returns:
            The batch if it has failed; otherwise None.

        Raises:
            LLMBatchesError: The failure is temporary, and the batch stays in the queue.
        """
        snapshot = record.snapshot
        submission = Submission(
            "", snapshot["endpoint"], snapshot["completion_window"], snapshot["metadata"] or {}
        )
        asked = Asked("", Model("", "", is_given=False), submission, retries=record.retries or 0)
        try:
            file = self._files.retrieve(f"file-{record.input_file}", owner=EVERYONE)
            with self._requests(file) as requests:
                asked = self._resolved(asked, requests)
                self._providers.adapter_of(asked.provider).check(asked.submission)
                with self._creator.spooled(asked, requests, owner=record.owner) as spool:
                    if spool.parts:
                        self._split(record, asked, spool)
                        return None
                    begin = partial(self._begin, record, asked, spool)
                    self._creator.submit(record, asked, spool, requested_by=record.owner, begin=begin)
        except Withdrawn:
            return None
        except SubmitFailed as failure:
            if failure.maybe_created:
                begun = self._batches.by_uid(record.uid) or record
                self._creator.not_accepted(begun, failure, record.owner)
                return None
            error = failure.error
            self._queue.again(record)
        except LLMBatchesError as failed:
            error = failed
        else:
            return None
        if error.passes and time.time() < record.created_at + _DAY:
            raise error
        return self._failed(record, error)

    def _split(self, record: Record, asked: Asked, spool: Spool) -> None:
        """Record the parts of a queued batch."""
        allowance = self._limiter.allowance(Principal(record.owner))
        try:
            whole = self._queue.split(
                record,
                spool.parts,
                requested_by=record.owner,
                allowance=allowance,
                reserved=self._estimates.reserved(prompts_in(asked, spool), allowance),
            )
        except OwnerLimitReached:
            self._waiting.discard(spool)
            raise
        if whole is None:  # it was cancelled, or another process did the same
            self._waiting.discard(spool)
        else:
            self._waiting.told(whole, spool, asked, record.owner)

    def _begin(self, record: Record, asked: Asked, spool: Spool) -> Record:
        """Record that a queued batch is submitted now.

        Raises:
            Withdrawn: It was cancelled, or another process submits it.
        """
        allowance = self._limiter.allowance(Principal(record.owner))
        begun = self._queue.submitting(
            record,
            provider=asked.provider,
            model=asked.submission.model,
            custom_ids=spool.custom_ids,
            tokens=tokens_of(spool.size),
            allowance=allowance,
            reserved=self._estimates.reserved(prompts_in(asked, spool), allowance),
        )
        if begun is None:
            raise Withdrawn
        return begun

    def _failed(self, record: Record, error: LLMBatchesError) -> Batch | None:
        batch = self._queue.failed(record, _described(error))
        if batch is not None:
            logger.info("batch %s failed before it was submitted: %s", record.shown_id, error.code)
            batch = record.shown(batch)
            send(batch_finished, batch=batch, owner=record.owner)
        return batch

    @contextmanager
    def _requests(self, file: File) -> Iterator[Incoming]:
        with closing(self._files.read(file)) as chunks:
            lines = split_lines(chunks, longest=LONGEST_REQUEST)
            yield Incoming(lines, limit=self._max_requests)

    def _resolved(self, asked: Asked, requests: Incoming) -> Asked:
        """Return what is asked for with the provider and the model of the first request that names one.

        Raises:
            ValidationFailed: No request names a model, or the name is unknown.
        """
        first = requests.first_model(of_first=MAX_ERRORS)
        if first is None:
            raise _no_model(requests)
        number, full = first
        try:
            provider, model = self._models.resolve(full)
        except LLMBatchesError as error:
            path = requests.place, number, "body", "model"
            raise ValidationFailed([Problem(path, str(error), "model_not_found")]) from None
        return asked._replace(
            provider=provider,
            model=Model(model, full, is_given=False),
            submission=replace(asked.submission, model=model),
        )


def _no_model(requests: Incoming) -> ValidationFailed:
    """Return the errors of the first requests, none of which names a model."""
    problems = Problems(requests.place)
    for number, content in requests:
        try:
            checked(content)
            problems.add(number, WrongRequest(REQUIRED, "body", "model", code=MISSING))
        except WrongRequest as problem:
            problems.add(number, problem)
        if problems.count == MAX_ERRORS:
            break
    try:
        problems.raise_if_any()
    except ValidationFailed as failed:
        return failed
    return ValidationFailed([Problem((requests.place,), "Shorter than minimum length 1.", "empty_file")])


def _described(error: LLMBatchesError) -> Sequence[Mapping[str, Any]]:
    """Return an error as ``errors.data`` of a batch has it."""
    if not isinstance(error, ValidationFailed):
        return [{"code": error.code, "line": None, "message": str(error), "param": error.param}]
    described = []
    for path, message, code in error.problems:
        in_line = path[:1] == ("lines",)
        line = path[1] if in_line and len(path) > 1 else None
        param = ".".join(map(str, path[2:] if in_line else path)) or None
        described.append({"code": code, "line": line, "message": message, "param": param})
    return described
