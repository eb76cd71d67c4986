"""Batches that wait to be submitted: those whose input files are not read yet, and parts."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, func, select, text, update

from flask_llm_batches.batch import Batch
from flask_llm_batches.store import limits, manifests, tasks
from flask_llm_batches.store.intents import FIRST_REFRESH, NewPart, split
from flask_llm_batches.store.leases import new_lease
from flask_llm_batches.store.limits import Allowance
from flask_llm_batches.store.models import QUEUED, BatchRow, LaneRow, Record
from flask_llm_batches.store.store import Store, patient_transaction, transaction
from flask_llm_batches.store.usage import insert_usage


class Queue(Store):
    """The queue of one app. A call that comes too late for a batch changes nothing, and returns None."""

    @transaction
    def submitting(
        self,
        connection: Connection,
        record: Record,
        *,
        provider: str,
        model: str,
        custom_ids: Collection[str],
        tokens: int,
        allowance: Allowance | None,
        reserved: int | None,
    ) -> Record | None:
        """Record that a queued batch is about to be submitted, and its requests.

        The caller then holds its lease.

        Raises:
            OwnerLimitReached: They are more than the owner may have.
        """
        if allowance is not None:
            limits.reserve(
                connection,
                record.owner,
                allowance,
                requests=len(custom_ids),
                cost=reserved,
                except_id=record.id,
            )
        counts = {"total": len(custom_ids), "completed": 0, "failed": 0}
        values: dict[str, Any] = {
            "state": "submitting",
            "provider": provider,
            "model": model,
            "requests": len(custom_ids),
            "tokens": tokens,
            "reserved": reserved,
            "snapshot": record.snapshot | {"provider": provider, "model": model, "request_counts": counts},
            **new_lease(),
        }
        queued = update(BatchRow).where(BatchRow.id == record.id, BatchRow.state == "queued")
        if connection.execute(queued.values(values)).rowcount == 0:
            return None
        manifests.insert_manifest(connection, manifests.pack(record.uid, custom_ids))
        return replace(record, **values)

    @transaction
    def submitting_part(self, connection: Connection, part: Record) -> Record | None:
        """Record that a queued part is about to be submitted. The caller then holds its lease."""
        lease = {"state": "submitting", "missing_since": None, **new_lease()}
        queued = update(BatchRow).where(BatchRow.id == part.id, BatchRow.state == "queued")
        if connection.execute(queued.values(lease)).rowcount == 0:
            return None
        tasks.insert_task(connection, part.uid, "refresh", due_at=int(time.time()) + FIRST_REFRESH)
        lane = update(LaneRow).where(LaneRow.provider == part.provider, LaneRow.model == part.model)
        connection.execute(lane.where(LaneRow.turn < (part.turn or 0)).values(turn=part.turn))
        return replace(part, **lease)

    @transaction
    def split(
        self,
        connection: Connection,
        record: Record,
        parts: Sequence[NewPart],
        *,
        requested_by: str | None,
        allowance: Allowance | None = None,
        reserved: int | None = None,
    ) -> Record | None:
        """Record that a batch is not submitted itself: it has parts, which wait to be submitted.

        Args:
            connection: The connection to use.
            record: The batch, which is queued or is being submitted.
            parts: Its parts.
            requested_by: Who asked for it, for the usage; None if that is recorded already.
            allowance: What its owner may have; None for no limits, or if that is checked already.
            reserved: About what its prompts cost, if that is not recorded already.

        Raises:
            OwnerLimitReached: Its requests are more than the owner may have.
        """
        total = sum(part.requests for part in parts)
        if allowance is not None:
            limits.reserve(
                connection, record.owner, allowance, requests=total, cost=reserved, except_id=record.id
            )
        models = {part.model for part in parts}
        shown = {
            "provider": parts[0].provider,
            "model": parts[0].model if len(models) == 1 else "",
            "request_counts": {"total": total, "completed": 0, "failed": 0},
        }
        values: dict[str, Any] = {
            "provider": shown["provider"],
            "model": shown["model"],
            "requests": total,
            "reserved": record.reserved if reserved is None else reserved,
            "snapshot": record.snapshot | shown | {"model": shown["model"] or None},
        }
        if not split(connection, record, values, parts):
            return None
        whole = replace(record, state="split", **values)
        if requested_by is not None:
            insert_usage(connection, whole, "create", requested_by=requested_by, requests=total)
        return whole

    @transaction
    def postponed(self, connection: Connection, part: Record) -> int:
        """Put a part whose requests cannot be read behind the others, and return since when they cannot."""
        waiting = text(QUEUED), BatchRow.provider == part.provider, BatchRow.model == part.model
        last = connection.execute(select(func.max(BatchRow.turn)).where(*waiting)).scalar() or 0
        since = int(time.time()) if part.missing_since is None else part.missing_since
        this = update(BatchRow).where(BatchRow.id == part.id, BatchRow.state == "queued")
        connection.execute(this.values(turn=last + 1, missing_since=since))
        return since

    @patient_transaction
    def again(self, connection: Connection, record: Record) -> None:
        """Put a batch that its provider does not have back into the queue."""
        this = update(BatchRow).where(BatchRow.id == record.id, BatchRow.state == "submitting")
        values = {"state": "queued", "lease_token": None, "lease_until": None}
        if connection.execute(this.values(values)).rowcount == 0:
            return
        if record.part_of is None:
            manifests.delete_manifest(connection, record.uid)
        else:  # its batch may be the turn of another process, which saw that nothing of it waits
            tasks.do_again(connection, record.part_of, "submit")

    @patient_transaction
    def failed(
        self, connection: Connection, record: Record, errors: Sequence[Mapping[str, Any]]
    ) -> Batch | None:
        """Record that a batch has failed, and why, before its provider took it."""
        changed = {"failed_at": int(time.time()), "errors": {"object": "list", "data": list(errors)}}
        return _ended(connection, record, "failed", changed, ("queued", "submitting"))

    @transaction
    def cancelled(self, connection: Connection, record: Record) -> Batch | None:
        """Record that a queued batch is cancelled."""
        now = int(time.time())
        return _ended(
            connection, record, "cancelled", {"cancelling_at": now, "cancelled_at": now}, ("queued",)
        )


def _ended(
    connection: Connection, record: Record, status: str, changed: dict[str, Any], states: Collection[str]
) -> Batch | None:
    shown = record.snapshot | changed | {"status": status}
    this = update(BatchRow).where(BatchRow.id == record.id, BatchRow.state.in_(states))
    values: dict[str, Any] = {"state": "failed", "status": status, "snapshot": shown, "lease_until": None}
    # Nothing of it is submitted again, and nothing of it costs anything.
    values |= {"retries": 0, "reserved": None}
    if connection.execute(this.values(values)).rowcount == 0:
        return None
    if record.part_of is None:
        manifests.delete_manifest(connection, record.uid)
    return Batch.from_dict(shown, record.provider)
