"""Records batches and their outcome."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from flask_llm_batches.batch import FINISHED, Batch, own_id
from flask_llm_batches.log import get_logger
from flask_llm_batches.store import files, idempotency, manifests, tasks
from flask_llm_batches.store.intents import Intents
from flask_llm_batches.store.leases import extend_lease
from flask_llm_batches.store.models import BatchRow, Record
from flask_llm_batches.store.queries import RECORD
from flask_llm_batches.store.reasons import ID_TAKEN, LOST, NOT_THERE
from flask_llm_batches.store.store import patient_transaction, transaction
from flask_llm_batches.store.usage import Usage, Used, find_usage, insert_usage

logger = get_logger(__name__)

UNSETTLED_STATES = ("submitting", "unknown")
"""The states of a batch of which it is not known whether the provider has it."""

_OLDER = 60  # the least number of seconds between two batches with the same id

LOST_AFTER = 24 * 3600
"""Seconds after which a batch counts as failed, if its provider does not have it for all that time."""


class IdTaken(Exception):
    """A provider returned an id that is recorded for another of its batches."""


class Batches(Intents):
    """The batches of one app."""

    @transaction
    def extend_lease(self, connection: Connection, record: Record) -> bool:
        """Extend the lease of the process that submits a batch; return False if it has ended."""
        return extend_lease(connection, BatchRow, BatchRow.id == record.id, record.lease_token)

    def accepted(
        self, record: Record, batch: Batch, *, requested_by: str, token: str | None = None
    ) -> Usage | None:
        """Record that the provider has a batch, once. The second call returns None.

        The usage of a part is empty: that of its batch is recorded.

        Args:
            record: The batch, as it was.
            batch: The batch, as the provider shows it.
            requested_by: Who asked for it.
            token: Identifies the call: a repeated call with the same token counts as the first one.

        Raises:
            IdTaken: The id is that of another batch.
        """
        return self._accepted(record, batch, requested_by, token or uuid.uuid4().hex)

    @patient_transaction
    def _accepted(
        self, connection: Connection, record: Record, batch: Batch, requested_by: str, token: str
    ) -> Usage | None:
        this = BatchRow.id == record.id
        claim = update(BatchRow).where(this, BatchRow.state != "accepted")
        values = {"batch_id": batch.id, "status": batch.status, "snapshot": batch.to_dict()}
        lease = {"lease_token": token, "lease_until": None}
        _take_id(connection, record, batch)
        try:
            claimed = connection.execute(claim.values(state="accepted", **values, **lease)).rowcount
        except IntegrityError:
            raise IdTaken from None
        if claimed == 1 and record.state == "failed":  # it turned up late, and no worker follows it any more
            tasks.insert_task(connection, record.uid, "refresh", due_at=int(time.time()))
        if claimed == 0:
            # The commit of an earlier attempt may have come through although the connection broke.
            if connection.execute(select(BatchRow.lease_token).where(this)).scalar() != token:
                return None
            return {} if record.part_of else find_usage(connection, record, "create")
        if record.part_of is not None:
            return {}
        idempotency.record_answer(connection, record.uid, batch)
        files.insert_outputs(connection, record, record.outputs(batch))
        return insert_usage(connection, record, "create", requested_by=requested_by, requests=record.requests)

    @patient_transaction
    def not_accepted(
        self, connection: Connection, record: Record, *, state: str, error: str, requested_by: str
    ) -> Usage | None:
        """Record that a submit failed: ``failed`` if there is no batch, ``unknown`` if there may be one.

        Returns:
            The usage; None if the batch is settled already, or is a part.
        """
        claim = update(BatchRow).where(BatchRow.id == record.id, BatchRow.state == "submitting")
        values: dict[str, Any] = {"state": state, "lease_token": None, "lease_until": int(time.time())}
        if state == "failed":
            values["status"] = None
        if connection.execute(claim.values(values)).rowcount == 0 or record.part_of is not None:
            return None
        if state == "failed":
            idempotency.free(connection, record.uid)
            manifests.delete_manifest(connection, record.uid)
            tasks.delete_tasks(connection, record.uid)
        return insert_usage(
            connection,
            record,
            "create_failed",
            requested_by=requested_by,
            requests=record.requests,
            error=error,
        )

    def seen(self, record: Record, batch: Batch) -> tuple[Batch, bool]:
        """Record a batch that a provider has just returned.

        Returns:
            The batch as it is now, and whether this call changed its status. After its end, an older state is
            ignored.
        """
        if record.missing_since is None and batch.to_dict() == record.snapshot:
            return batch, False
        return self._changed(record, batch)

    @transaction
    def _changed(self, connection: Connection, record: Record, batch: Batch) -> tuple[Batch, bool]:
        this = BatchRow.id == record.id
        news = this, BatchRow.status != batch.status, BatchRow.status.not_in(FINISHED)
        values: dict[str, Any] = {
            "status": batch.status,
            "snapshot": batch.to_dict(),
            "missing_since": None,
        }
        if connection.execute(update(BatchRow).where(*news).values(values)).rowcount == 1:
            files.insert_outputs(connection, record, record.outputs(batch))
            return batch, True
        same = update(BatchRow).where(this, BatchRow.status == batch.status)
        if connection.execute(same.values(values)).rowcount == 1:
            return batch, False
        known = connection.execute(select(BatchRow.snapshot).where(this)).scalar_one()
        return Batch.from_dict(known, record.provider), False

    @transaction
    def missing(self, connection: Connection, record: Record) -> Batch | None:
        """Record that the provider does not have a batch.

        Returns:
            The batch, failed, if this call found that it has been missing for long; otherwise None.
        """
        now = int(time.time())
        running = BatchRow.id == record.id, BatchRow.status.not_in(FINISHED)
        if record.missing_since is None:
            first = update(BatchRow).where(*running, BatchRow.missing_since.is_(None))
            connection.execute(first.values(missing_since=now))
            return None
        lost = record.snapshot | {
            "status": "failed",
            "failed_at": now,
            "errors": {"object": "list", "data": [LOST]},
        }
        long_ago = BatchRow.missing_since <= now - LOST_AFTER
        claim = update(BatchRow).where(*running, long_ago).values(status="failed", snapshot=lost)
        claimed = connection.execute(claim).rowcount == 1
        return Batch.from_dict(lost, record.provider) if claimed else None

    @transaction
    def not_there(self, connection: Connection, record: Record) -> bool:
        """Record that the provider does not have an unsettled batch; return False if it is settled already.

        Its key, if it has one, stays with it: the batch may turn up after all.
        """
        errors = {"object": "list", "data": [NOT_THERE]}
        shown = record.snapshot | {"status": "failed", "failed_at": int(time.time()), "errors": errors}
        this = BatchRow.id == record.id, BatchRow.lease_until == record.lease_until
        claim = update(BatchRow).where(*this, BatchRow.state.in_(UNSETTLED_STATES))
        values = {"state": "failed", "status": "failed", "snapshot": shown}
        return connection.execute(claim.values(values)).rowcount == 1

    @transaction
    def set_archived(self, connection: Connection, record: Record, *, at: int | None) -> None:
        """Record when the results of a batch were archived; None if they are not in the archive any more."""
        connection.execute(update(BatchRow).where(BatchRow.id == record.id).values(archived_at=at))

    @transaction
    def account(
        self,
        connection: Connection,
        record: Record,
        used: Sequence[Used],
        *,
        requested_by: str,
        failed: int,
    ) -> Sequence[Usage]:
        """Record the usage of a batch's results, once. The second call returns nothing.

        The provider's counts may be wrong. The number of rows that have failed is right, and decides which
        files the results have.
        """
        claim = update(BatchRow).where(BatchRow.id == record.id, BatchRow.accounted_at.is_(None))
        now = int(time.time())
        if connection.execute(claim.values(accounted_at=now, failed_rows=failed)).rowcount == 0:
            return ()
        query = RECORD.where(BatchRow.id == record.id)
        counted = Record(*connection.execute(query).one())
        batch = counted.last_seen()
        right, guessed = set(counted.outputs(batch)), set(replace(counted, failed_rows=None).outputs(batch))
        files.insert_outputs(connection, counted, right - guessed)
        files.delete_outputs(connection, counted, guessed - right)
        return [
            insert_usage(
                connection,
                record,
                "results",
                requested_by=requested_by,
                provider=one.provider,
                model=one.model,
                requests=one.rows,
                prompt_tokens=one.tokens.prompt,
                completion_tokens=one.tokens.completion,
                cached_tokens=one.tokens.cached,
                total_tokens=one.tokens.total,
                cost=one.cost,
            )
            for one in used
        ]


def _take_id(connection: Connection, record: Record, batch: Batch) -> None:
    """Remove a provider's id from an older batch, which has an id of ours from now on.

    Providers that lose their batches may count from one again. What they have under the id is the new batch.
    """
    query = RECORD.where(
        BatchRow.provider == record.provider, BatchRow.batch_id == batch.id, BatchRow.id != record.id
    )
    for row in connection.execute(query).all():
        old = Record(*row)
        if batch.created_at <= old.snapshot["created_at"] + _OLDER:
            continue  # it may be the same batch
        logger.warning(
            "provider %r has given the id %r of %s to %s", old.provider, batch.id, old.uid, record.uid
        )
        shown = old.snapshot | {"id": own_id(old.uid), "output_file_id": None, "error_file_id": None}
        if old.status not in FINISHED:
            shown |= {"status": "failed", "errors": {"object": "list", "data": [ID_TAKEN]}}
        values = {"batch_id": None, "status": shown["status"], "snapshot": shown}
        connection.execute(update(BatchRow).where(BatchRow.id == old.id).values(values))
        idempotency.record_answer(connection, old.uid, Batch.from_dict(shown, old.provider))
