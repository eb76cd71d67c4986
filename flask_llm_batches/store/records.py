"""The batches that we were asked to make."""

from __future__ import annotations

import time
import uuid
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, or_, select, update

from flask_llm_batches.batch import FINISHED, Batch
from flask_llm_batches.store import idempotency
from flask_llm_batches.store.models import BatchRow, ManifestRow, UsageRow
from flask_llm_batches.store.store import Store, is_owned, transaction
from flask_llm_batches.store.usage import Tokens, Usage, use

SETTLED = ("accepted", "failed")
"""The states of a batch of which it is known whether the provider has it."""

MANIFEST_PART = 10_000
"""So many ids are in a row of the manifest: few enough for one statement, whatever their length is."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a batch; ``BatchRow`` says what each column is."""

    id: int
    uid: str
    provider: str
    batch_id: str | None
    state: str
    owner: str
    model: str
    requests: int
    status: str | None
    snapshot: dict[str, Any]
    created_at: int
    refreshed_at: int | None
    accounted_at: int | None


# Rows are read and written without the ORM's session: that takes a third of the time, in every call.
_RECORD = select(*(getattr(BatchRow, name) for name in Record.__slots__))
_UNSETTLED = ("submitting", "unknown")
_FIND = _RECORD.where(BatchRow.batch_id == bindparam("batch_id"))


class Records(Store):
    """The batches of one app."""

    def begin(
        self,
        *,
        provider: str,
        owner: str,
        model: str,
        custom_ids: Collection[str],
        asked_for: Mapping[str, Any],
        key: Mapping[str, str] | None = None,
    ) -> Record:
        """Note that a batch is about to be submitted, and what is in it.

        Args:
            provider: As ``BatchRow`` has them, like the next ones.
            owner: See there.
            model: See there.
            custom_ids: What is in it.
            asked_for: The first snapshot.
            key: ``key_hash`` and ``fingerprint`` of an ``Idempotency-Key``.

        Raises:
            KeyUsed: The key was used before.
        """
        values: dict[str, Any] = {
            "uid": uuid.uuid4().hex,
            "state": "submitting",
            "provider": provider,
            "owner": owner,
            "model": model,
            "requests": len(custom_ids),
            "snapshot": dict(asked_for),
            "created_at": int(time.time()),
        }
        # Before the transaction: whoever comes with the same key waits for it.
        manifest = [
            {"batch_uid": values["uid"], "part": part, "custom_ids": packed}
            for part, packed in enumerate(_packed(custom_ids))
        ]
        return self._begin(values, manifest, key)

    @transaction
    def _begin(
        self,
        connection: Connection,
        values: dict[str, Any],
        manifest: Iterable[Mapping[str, Any]],
        key: Mapping[str, str] | None,
    ) -> Record:
        if key is not None:
            idempotency.claim(connection, key, batch_uid=values["uid"], at=values["created_at"])
        made = connection.execute(insert(BatchRow).values(values)).inserted_primary_key
        for part in manifest:  # one at a time: a statement may be no larger than MariaDB's packets
            connection.execute(insert(ManifestRow), part)
        unknown: dict[str, Any] = dict.fromkeys(("batch_id", "status", "refreshed_at", "accounted_at"))
        return Record(id=made[0] if made else 0, **unknown, **values)

    @transaction
    def accepted(
        self, connection: Connection, record: Record, batch: Batch, *, requested_by: str
    ) -> Usage | None:
        """Note that the provider has a batch, once; whoever comes second is given None."""
        claim = (
            update(BatchRow)
            .where(BatchRow.id == record.id, BatchRow.state != "accepted")
            .values(state="accepted", batch_id=batch.id, status=batch.status, snapshot=batch.to_dict())
        )
        if connection.execute(claim).rowcount == 0:
            return None
        idempotency.answered(connection, record.uid, batch)
        return use(connection, record, "create", requested_by=requested_by, requests=record.requests)

    @transaction
    def not_accepted(
        self, connection: Connection, record: Record, *, state: str, error: str, requested_by: str
    ) -> Usage:
        """Note that a submit failed: ``failed`` when there is no batch, ``unknown`` when there may be one."""
        submitting = BatchRow.id == record.id, BatchRow.state == "submitting"
        connection.execute(update(BatchRow).where(*submitting).values(state=state))
        if state == "failed":
            idempotency.free(connection, record.uid)
        return use(
            connection,
            record,
            "create_failed",
            requested_by=requested_by,
            requests=record.requests,
            error=error,
        )

    def seen(self, record: Record, batch: Batch) -> tuple[Batch, bool]:
        """Keep a batch as a provider has just shown it.

        Returns:
            How it is, and whether this call changed its status. Once it has ended, nothing older counts.
        """
        return (batch, False) if batch.to_dict() == record.snapshot else self._changed(record, batch)

    @transaction
    def _changed(self, connection: Connection, record: Record, batch: Batch) -> tuple[Batch, bool]:
        this = BatchRow.id == record.id
        news = this, BatchRow.status != batch.status, BatchRow.status.not_in(FINISHED)
        values: dict[str, Any] = {"status": batch.status, "snapshot": batch.to_dict()}
        if connection.execute(update(BatchRow).where(*news).values(values)).rowcount == 1:
            return batch, True
        same = update(BatchRow).where(this, BatchRow.status == batch.status)
        if connection.execute(same.values(values)).rowcount == 1:
            return batch, False
        known = connection.execute(select(BatchRow.snapshot).where(this)).scalar_one()
        return Batch.from_dict(known, record.provider), False

    @transaction
    def unsettled(
        self, connection: Connection, *, owner: str | None = None, provider: str | None = None
    ) -> Sequence[Record]:
        """Give the batches of which nobody knows whether they are at the provider, oldest first.

        Those that are being submitted at this moment are among them.
        """
        query = _RECORD.where(BatchRow.state.in_(_UNSETTLED))
        if owner is not None:
            query = query.where(is_owned(BatchRow.owner, owner))
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        return [Record(*row) for row in connection.execute(query.order_by(BatchRow.id))]

    @transaction
    def not_there(self, connection: Connection, record: Record) -> None:
        """Note that the provider does not have an unsettled batch."""
        claim = update(BatchRow).where(BatchRow.id == record.id, BatchRow.state.in_(_UNSETTLED))
        if connection.execute(claim.values(state="failed")).rowcount == 1:
            idempotency.free(connection, record.uid)

    @transaction
    def given_up_at(self, connection: Connection, record: Record) -> int:
        """Say when the submit of a batch went wrong; when it was begun if nobody saw the end of it."""
        query = select(func.max(UsageRow.created_at)).where(
            UsageRow.batch_uid == record.uid, UsageRow.event == "create_failed"
        )
        return connection.execute(query).scalar() or record.created_at

    @transaction
    def by_uid(self, connection: Connection, uid: str) -> Record | None:
        """Find a batch by our own id."""
        row = connection.execute(_RECORD.where(BatchRow.uid == uid)).first()
        return None if row is None else Record(*row)

    @transaction
    def claim_refresh(
        self, connection: Connection, records: Sequence[Record], *, before: int
    ) -> Sequence[Record]:
        """Give those of the records that no list has asked after since then; nobody else gets the same."""
        now = int(time.time())
        claimed = []
        for record in records:
            stale = or_(BatchRow.refreshed_at.is_(None), BatchRow.refreshed_at <= before)
            claim = update(BatchRow).where(BatchRow.id == record.id, stale).values(refreshed_at=now)
            if connection.execute(claim).rowcount == 1:
                claimed.append(record)
        return claimed

    @transaction
    def find(self, connection: Connection, batch_id: str) -> list[Record]:
        """Find the batches with a provider's id: more than one where providers gave out the same."""
        return [Record(*row) for row in connection.execute(_FIND, {"batch_id": batch_id})]

    @transaction
    def find_all(self, connection: Connection, batch_ids: Collection[str]) -> Sequence[Record]:
        """Find the batches with any of these ids."""
        query = _RECORD.where(BatchRow.batch_id.in_(batch_ids))
        return [Record(*row) for row in connection.execute(query)]

    @transaction
    def list(
        self, connection: Connection, *, owner: str, provider: str | None, after: Record | None, limit: int
    ) -> tuple[list[Record], bool]:
        """List an owner's accepted batches, newest first, and say whether there are more."""
        query = _RECORD.where(is_owned(BatchRow.owner, owner), BatchRow.batch_id.is_not(None))
        if provider is not None:
            query = query.where(BatchRow.provider == provider)
        if after is not None:
            query = query.where(BatchRow.id < after.id)
        rows = connection.execute(query.order_by(BatchRow.id.desc()).limit(limit + 1)).all()
        return [Record(*row) for row in rows[:limit]], len(rows) > limit

    @transaction
    def custom_ids(self, connection: Connection, record: Record, part: int) -> Sequence[str]:
        """Give some of the ids that went into a batch; none when there is no such part."""
        query = select(ManifestRow.custom_ids).where(
            ManifestRow.batch_uid == record.uid, ManifestRow.part == part
        )
        packed = connection.execute(query).scalar()
        return () if packed is None else msgspec.json.decode(zlib.decompress(packed), type=tuple[str, ...])

    @transaction
    def account(
        self,
        connection: Connection,
        record: Record,
        tokens: Tokens,
        *,
        requested_by: str,
        rows: int,
        cost: Decimal | None,
    ) -> Usage | None:
        """Put a batch's results into the usage, once; whoever comes second is given None."""
        claim = (
            update(BatchRow)
            .where(BatchRow.id == record.id, BatchRow.accounted_at.is_(None))
            .values(accounted_at=int(time.time()))
        )
        if connection.execute(claim).rowcount == 0:
            return None
        return use(
            connection,
            record,
            "results",
            requested_by=requested_by,
            requests=rows,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            cached_tokens=tokens.cached,
            total_tokens=tokens.total,
            cost=cost,
        )


def _packed(custom_ids: Iterable[str]) -> Iterator[bytes]:
    remaining = iter(custom_ids)
    while part := list(islice(remaining, MANIFEST_PART)):
        yield zlib.compress(msgspec.json.encode(part), level=1)
