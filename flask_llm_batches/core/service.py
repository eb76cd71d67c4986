"""What the endpoints do, for the host's own code too."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Literal, NamedTuple

from blinker import NamedSignal
from flask import Flask, current_app
from werkzeug.local import LocalProxy

from flask_llm_batches.batch import FINISHED, UID_KEY, Batch
from flask_llm_batches.config import Settings
from flask_llm_batches.core.idempotency import Fingerprint, Idempotency
from flask_llm_batches.core.keys import Keys
from flask_llm_batches.core.reconcile import FRESH, Reconciler, Settled
from flask_llm_batches.core.results import BEAT, Groups, Results, accounted, each_once
from flask_llm_batches.core.spool import REQUIRED, Requests, Spool, spooled
from flask_llm_batches.core.usage import TokenCount
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
from flask_llm_batches.providers.adapters import Page, Submission
from flask_llm_batches.providers.clients import Providers, SubmitFailed
from flask_llm_batches.signals import batch_finished, batch_submitted, usage_recorded
from flask_llm_batches.store.api_keys import ApiKeys
from flask_llm_batches.store.database import Database
from flask_llm_batches.store.idempotency import Uses
from flask_llm_batches.store.records import Record, Records
from flask_llm_batches.store.usage import Usage, UsageSum, UsageSums

logger = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "/v1/chat/completions"

# No id of a provider's has these, and none of them can be part of a path: control characters, "?", "#",
# empty and dot segments.
_BATCH_ID = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^\x00-\x1f\x7f-\x9f?#]{1,512}")


class Checked(NamedTuple):
    """What a batch would be.

    Attributes:
        provider: Where it would run.
        requests: How many there are.
        size: Their bytes, as the provider would get them.
        warnings: What would not be as it was asked for.
    """

    provider: str
    requests: int
    size: int
    warnings: Sequence[str]


class Created(NamedTuple):
    """What a create gives.

    Attributes:
        batch: The batch.
        replayed: Whether it was made before, by a create with the same ``Idempotency-Key``.
    """

    batch: Batch
    replayed: bool


class Service:
    """Batches, for whoever has established who is asking; ``current_llm_batches`` is the app's.

    Every call names the ``owner`` in whose name it is made; ``None`` stands for an admin, who sees the
    batches of all. Every call raises ``LLMBatchesError``s, or a ``ValueError`` for an ``owner`` that is no
    owner's name, and nothing else, and needs an app context.

    Attributes:
        settings: The app's ``LLM_BATCHES_*``.
        keys: The built-in API keys.
    """

    def __init__(self, settings: Settings, database: Database, providers: Providers) -> None:
        self.settings = settings
        self.keys = Keys(ApiKeys(database))
        self._database = database
        self._records = Records(database)
        self._uses = Uses(database)
        self._usage = UsageSums(database)
        self._providers = providers
        self._reconciler = Reconciler(settings, self._records, providers, _adopted)
        self._idempotency = Idempotency(
            self._uses, self._records, self._reconciler.settle, settings.idempotency_ttl
        )

    def create(
        self,
        *,
        owner: str,
        model: str,
        requests: Requests,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        requested_by: str | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Hand in a batch.

        Args:
            owner: Whose it will be.
            model: ``provider:model``; goes into every request's body.
            requests: ``{"custom_id": ..., "body": {...}}`` each; or lines of JSONL, as bytes, such as a file
                gives that is open for reading bytes; or the bytes of a JSON array.
            completion_window: How long the provider may take.
            metadata: At most 15 pairs, kept with the batch by providers that keep any.
            endpoint: What every request is for.
            requested_by: Who asks, for the usage; the owner unless given.
            idempotency_key: Makes the same create, when it comes again, give the same batch.
        """
        return self.create_once(
            owner=owner,
            model=model,
            requests=requests,
            completion_window=completion_window,
            metadata=metadata,
            endpoint=endpoint,
            requested_by=requested_by,
            idempotency_key=idempotency_key,
        ).batch

    def create_once(
        self,
        *,
        owner: str,
        model: str,
        requests: Requests,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        requested_by: str | None = None,
        idempotency_key: str | None = None,
    ) -> Created:
        """Hand in a batch as ``create`` does, and say whether it was made now."""
        Principal(owner)  # says what an owner must be
        if idempotency_key is not None:
            self._idempotency.check(idempotency_key)
        provider, submission = self._asked(model, endpoint, completion_window, metadata)
        by = Principal(requested_by or owner).owner
        asked_for = {
            "model": submission.model,
            "endpoint": endpoint,
            "completion_window": completion_window,
            "metadata": dict(metadata or {}),
        }
        fingerprint = Fingerprint(provider, submission) if idempotency_key is not None else None
        with self._spooled(provider, submission, requests, fingerprint) as spool:
            begin = partial(
                self._records.begin,
                provider=provider,
                owner=owner,
                model=submission.model,
                custom_ids=spool.custom_ids,
                asked_for=asked_for,
            )
            if idempotency_key is None:
                row = begin()
            else:
                begun = self._idempotency.begin(idempotency_key, str(fingerprint), owner, begin)
                if isinstance(begun, Batch):
                    return Created(begun, replayed=True)
                row = begun
            marked = replace(submission, metadata={**submission.metadata, UID_KEY: row.uid})
            try:
                batch = self._providers.submit(provider, spool.path, marked)
            except SubmitFailed as failure:
                self._not_accepted(row, failure, by)
                raise failure.error from None
        batch = batch.remembering(asked_for)
        try:
            usage = self._records.accepted(row, batch, requested_by=by)
        except RecordUnavailable:
            # An error would have the caller send it again, and pay twice.
            logger.exception("batch %r at %r is accepted, but not recorded as such", batch.id, provider)
            return Created(batch, replayed=False)
        if usage is not None:
            _send(batch_submitted, batch=batch, owner=owner, requested_by=by)
            _send(usage_recorded, usage=usage)
        return Created(batch, replayed=False)

    def check(
        self,
        *,
        owner: str,
        model: str,
        requests: Requests,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        idempotency_key: str | None = None,
    ) -> Checked:
        """Check a batch as ``create`` does, and send and keep nothing."""
        Principal(owner)
        if idempotency_key is not None:
            self._idempotency.check(idempotency_key)
        provider, submission = self._asked(model, endpoint, completion_window, metadata)
        self._providers.check(provider)
        with self._spooled(provider, submission, requests) as spool:
            warnings = []
            if spool.renamed:
                warnings.append(
                    f"{spool.renamed} requests name another model; all run with {submission.model!r}."
                )
            return Checked(provider, len(spool.custom_ids), spool.size, warnings)

    def _asked(
        self, model: str, endpoint: str, completion_window: str, metadata: Mapping[str, str] | None
    ) -> tuple[str, Submission]:
        provider, model = _split_model(model)
        provider = self._providers.name_of(provider)
        submission = Submission(model, endpoint, completion_window, dict(metadata or {}))
        self._providers.adapter_of(provider).check(submission)
        return provider, submission

    def _spooled(
        self,
        provider: str,
        submission: Submission,
        requests: Requests,
        fingerprint: Fingerprint | None = None,
    ) -> AbstractContextManager[Spool]:
        return spooled(
            requests,
            model=submission.model,
            endpoint=submission.endpoint,
            provider=provider,
            adapter=self._providers.adapter_of(provider),
            settings=self.settings,
            fingerprint=fingerprint,
        )

    def retrieve(self, batch_id: str, *, owner: str | None, provider: str | None = None) -> Batch:
        """Ask the provider after a batch; one that has ended is known.

        Args:
            batch_id: The provider's id.
            owner: Whose it must be.
            provider: Whose id it is; may be left out for a batch that was made here.
        """
        return self._current(batch_id, owner=owner, provider=provider)[0]

    def cancel(self, batch_id: str, *, owner: str | None, provider: str | None = None) -> Batch:
        """Ask the provider to cancel a batch; what is finished by then stays, and is billed."""
        name, row = self._locate(batch_id, owner=owner, provider=provider)
        return self._seen(row, self._providers.cancel(name, batch_id))

    def list(
        self, *, owner: str | None, provider: str | None = None, after: str | None = None, limit: int = 20
    ) -> Page:
        """List batches, newest first: an owner's from the record, for an admin what the provider has.

        Those of the record that run are asked after, unless another list did so two seconds before.

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
            found = self._records.find_all([batch.id for batch in page.batches])
            ours = {row.batch_id: row for row in found if row.provider == name}
            return Page([self._seen(ours.get(batch.id), batch) for batch in page.batches], page.has_more)
        last = None
        if after is not None:
            cursors = [
                row
                for row in (self._records.find(after) if _BATCH_ID.fullmatch(after) else ())
                if row.owner == owner and name in (None, row.provider)
            ]
            if not cursors:
                raise ValidationFailed({"after": ["Not the id of a batch in this list."]})
            last = cursors[0]
        self._reconciler.settle_theirs(owner=owner, provider=name)
        rows, has_more = self._records.list(owner=owner, provider=name, after=last, limit=limit)
        return Page(self._refreshed(rows), has_more)

    def results(
        self,
        batch_id: str,
        *,
        owner: str | None,
        provider: str | None = None,
        status: Literal["succeeded", "failed"] | None = None,
        requested_by: str | None = None,
        keep_waiting: Callable[[], bool] = lambda: True,
    ) -> Results:
        """Fetch the results of a batch, and account for them the first time that all were read.

        A batch that expired or was cancelled has those of what was finished before, and errors for the rest.

        Args:
            batch_id: The provider's id.
            owner: Whose it must be.
            provider: Whose id it is; may be left out for a batch that was made here.
            status: Only the rows that have a result, or only those that have an error.
            requested_by: Who asks, for the usage; the owner unless given.
            keep_waiting: Asked while the provider is silent whether to wait on for the first rows; otherwise
                what goes wrong before them is raised when they are read.

        Raises:
            BatchNotComplete: It still runs.
            BatchFailed: It failed before any request ran.
        """
        batch, row = self._current(batch_id, owner=owner, provider=provider)
        if batch.status == "failed":
            raise BatchFailed(batch_id, reasons=_reasons(batch))
        if not batch.finished:
            raise BatchNotComplete(batch_id, status=batch.status, provider=batch.provider)
        groups = self._providers.rows(batch, beat=BEAT)
        if row is not None:
            by = Principal(requested_by or owner or row.owner).owner
            groups = self._complete(groups, row, batch, by)
        return Results(groups, status=status, keep_waiting=keep_waiting)

    def end_reads(self) -> None:
        """Give the connection back that the host's ``db.session`` has only read on, as the endpoints do.

        A provider may take minutes. A session that has changed something, or may have, is left alone; so is
        every session when the calls above are made.
        """
        self._database.end_reads()

    def _complete(self, groups: Groups, row: Record, batch: Batch, requested_by: str) -> Groups:
        # Rows are read when the request and its context are gone: each look at the record has its own.
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself

        def custom_ids() -> Iterator[Sequence[str]]:
            for part in count():
                with app.app_context():
                    ids = self._records.custom_ids(row, part)
                if not ids:
                    return
                yield ids

        def account(count: TokenCount, rows: int) -> None:
            kind = self._providers.kind_of(row.provider)
            cost = count.cost(kind=kind, model=row.model, at=row.created_at)
            with app.app_context():
                usage = self._records.account(
                    row, count.tokens, requested_by=requested_by, rows=rows, cost=cost
                )
                if usage is not None:
                    _send(usage_recorded, usage=usage)

        groups = each_once(groups, batch_id=batch.id, batch_status=batch.status, parts=custom_ids)
        return groups if row.accounted_at is not None else accounted(groups, account)

    def usage(
        self,
        *,
        owner: str | None,
        since: int | None = None,
        until: int | None = None,
        group_by: Literal["owner", "model", "provider", "day"] | None = None,
    ) -> Sequence[UsageSum]:
        """Sum up what was used: batches when they were created, tokens and cost when results were fetched.

        Args:
            owner: Whose; None for everybody's.
            since: Of what happened then or later, as Unix seconds.
            until: Of what happened before, as Unix seconds.
            group_by: A sum for each of them; one in all unless given.
        """
        if owner is not None:
            Principal(owner)
        return self._usage.sums(group_by=group_by, owner=owner, since=since, until=until)

    def reconcile(self, *, older_than: float | None = None) -> Iterator[Settled]:
        """Find out of every batch of which nobody knows whether its provider has it, and tidy up.

        Args:
            older_than: Seconds after which a create is given up; longer than one may take unless given.
        """
        yield from self._reconciler.settle_every(older_than=older_than)
        self._uses.forget_all(before=int(time.time() - self.settings.idempotency_ttl))

    def _refreshed(self, rows: Sequence[Record]) -> Sequence[Batch]:
        before = int(time.time()) - FRESH
        stale = [row for row in rows if row.status not in FINISHED and (row.refreshed_at or 0) <= before]
        due = list(self._records.claim_refresh(stale, before=before)) if stale else []
        random.shuffle(due)  # not all may get a turn, and next time not the same ones
        answers = self._providers.retrieve_many([(row.provider, str(row.batch_id)) for row in due])
        fresh = {
            row.id: self._seen(row, batch)
            for row, batch in zip(due, answers, strict=True)
            if batch is not None
        }
        return [fresh.get(row.id) or Batch.from_dict(row.snapshot, row.provider) for row in rows]

    def _current(
        self, batch_id: str, *, owner: str | None, provider: str | None
    ) -> tuple[Batch, Record | None]:
        name, row = self._locate(batch_id, owner=owner, provider=provider)
        if row is not None and row.status in FINISHED:
            return Batch.from_dict(row.snapshot, row.provider), row
        return self._seen(row, self._providers.retrieve(name, batch_id)), row

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
        if not known and owner is not None:
            self._reconciler.settle_theirs(owner=owner, provider=name)
            known = self._records.find(batch_id)
        theirs = [row for row in known if owner in (None, row.owner) and name in (None, row.provider)]
        if len(theirs) == 1:
            return theirs[0].provider, theirs[0]
        if name is None:
            raise ValidationFailed(
                {"provider": [f"{REQUIRED} It may be left out for a batch of yours only."]}
            )
        if not known and (owner is None or self._is_nobodys(name, batch_id)):
            return name, None
        raise BatchNotFound(f"Batch '{batch_id}' not found")

    def _is_nobodys(self, provider: str, batch_id: str) -> bool:
        """Find out whether a batch without a record may be shown: it is none that we made for somebody."""
        if self.settings.untracked != "allow":
            return False
        uid = (self._providers.retrieve(provider, batch_id).metadata or {}).get(UID_KEY)
        return uid is None or self._records.by_uid(uid) is None

    def _seen(self, row: Record | None, batch: Batch) -> Batch:
        if row is None:
            return batch.remembering({})
        batch, changed = self._records.seen(row, batch.remembering(row.snapshot))
        if changed and batch.finished:
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


def _adopted(record: Record, batch: Batch, usage: Usage) -> None:
    _send(batch_submitted, batch=batch, owner=record.owner, requested_by=record.owner)
    _send(usage_recorded, usage=usage)
    if batch.finished:  # nobody will see it end
        _send(batch_finished, batch=batch, owner=record.owner)


def _split_model(model: str) -> tuple[str, str]:
    # The first of the two decides: "openai:org/model", and "openai/ft:model" as older clients write it.
    parts = re.split("[:/]", model, maxsplit=1)
    if len(parts) == 1 or not all(part.strip() for part in parts) or "\0" in model:
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
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # as Flask sends its own
    for receiver in signal.receivers_for(app):
        try:
            receiver(app, **payload)
        except Exception:
            # What it hears of has happened: an error would have the caller pay for it again.
            logger.exception("a receiver of %s failed", signal.name)


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
