"""The parts of batches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, delete, select, update

from flask_llm_batches.batch import FINISHED, Batch
from flask_llm_batches.store import files, manifests, tasks
from flask_llm_batches.store.intents import NewPart, insert_parts
from flask_llm_batches.store.models import BatchRow, Record, TaskRow
from flask_llm_batches.store.queries import RECORD
from flask_llm_batches.store.store import Store, transaction

_IN_THE_WAY = 5  # batches of one model that a poll refreshes


class Parts(Store):
    """The parts of one app's batches."""

    @transaction
    def of(self, connection: Connection, whole_uid: str) -> Sequence[Record]:
        """Return the parts of a batch, oldest first."""
        # Sorted in Python: with ORDER BY, SQLite would read all batches in the order of their ids.
        rows = connection.execute(RECORD.where(BatchRow.part_of == whole_uid))
        return sorted((Record(*row) for row in rows), key=lambda part: part.id)

    @transaction
    def retries_of(self, connection: Connection, batch_uid: str) -> Sequence[Record]:
        """Return the batches that retry what failed in a batch, oldest first."""
        rows = connection.execute(RECORD.where(BatchRow.retry_of == batch_uid))
        return sorted((Record(*row) for row in rows), key=lambda record: record.id)

    @transaction
    def in_the_way(self, connection: Connection, whole: Record) -> Sequence[str]:
        """Return the uids of some batches that parts of a batch may wait for and that are to be refreshed."""
        waiting = select(BatchRow.provider, BatchRow.model).where(
            BatchRow.part_of == whole.uid, BatchRow.state == "queued"
        )
        found: list[str] = []
        for provider, model in connection.execute(waiting.distinct()).all():
            query = select(TaskRow.batch_uid).join(BatchRow, BatchRow.uid == TaskRow.batch_uid)
            query = query.where(
                TaskRow.step == "refresh",
                TaskRow.due_at <= int(time.time()),
                BatchRow.provider == provider,
                BatchRow.model == model,
                BatchRow.state.in_(("submitting", "accepted", "unknown")),
            )
            found += connection.execute(query.order_by(TaskRow.due_at).limit(_IN_THE_WAY)).scalars()
        return found

    @transaction
    def changed(
        self,
        connection: Connection,
        whole: Record,
        batch: Batch,
        *,
        then: Mapping[str, float],
        expire_at: int,
    ) -> bool:
        """Record a batch as it is now, computed from its parts; return whether it has just ended.

        Args:
            connection: The connection to use.
            whole: The batch, as it was.
            batch: The batch as it is.
            then: The steps that come after its end, each with the seconds until it is due.
            expire_at: When the files with its requests are deleted, if it has ended.
        """
        running = update(BatchRow).where(BatchRow.id == whole.id, BatchRow.status.not_in(FINISHED))
        if batch.status != "cancelling" and not batch.finished:
            # another process may just have cancelled it
            running = running.where(BatchRow.status != "cancelling")
        values = {"status": batch.status, "snapshot": batch.to_dict()}
        if connection.execute(running.values(values)).rowcount == 0 or not batch.finished:
            return False
        files.insert_outputs(connection, whole, whole.outputs(batch))
        for step, seconds in then.items():
            tasks.insert_task(connection, whole.uid, step, due_at=int(time.time() + seconds))
        sources = select(BatchRow.source).where(BatchRow.part_of == whole.uid, BatchRow.source.is_not(None))
        uids = connection.execute(sources).scalars().all()
        files.let_expire(connection, [uid for uid in uids if uid is not None], at=expire_at)
        return True

    @transaction
    def replace(
        self,
        connection: Connection,
        whole: Record,
        part: Record,
        parts: Sequence[NewPart],
        values: Mapping[str, Any] = MappingProxyType({}),
    ) -> bool:
        """Insert parts that submit the requests of a part, or some of them; return False if there are any.

        A part that was never submitted is deleted.

        Args:
            connection: The connection to use.
            whole: The batch.
            part: The part.
            parts: Those that replace it.
            values: The columns of ``BatchRow`` that change for the part.
        """
        # Other processes that do the same wait for this update.
        this = update(BatchRow).where(BatchRow.id == part.id, BatchRow.state == part.state)
        if connection.execute(this.values(retries=0, **values)).rowcount == 0:
            return False
        others = select(BatchRow.id).where(BatchRow.part_of == whole.uid, BatchRow.replaces == part.uid)
        if connection.execute(others).first() is not None:
            return False
        if part.state == "queued":
            manifests.delete_manifest(connection, part.uid)
            connection.execute(delete(BatchRow).where(BatchRow.id == part.id))
        replaced = part.replaces if part.state == "queued" else part.uid
        insert_parts(connection, whole, parts, turn=part.turn, replaces=replaced)
        tasks.do_again(connection, whole.uid, "submit")
        return True

    @transaction
    def collected(self, connection: Connection, part: Record, values: Mapping[str, Any]) -> None:
        """Record that the rows of a part were read, and that none of them is submitted again."""
        connection.execute(update(BatchRow).where(BatchRow.id == part.id).values(retries=0, **values))

    @transaction
    def expire_archives(self, connection: Connection, whole_uid: str, *, at: int) -> None:
        """Set the time at which the archives of a batch's parts are deleted."""
        archived = select(BatchRow.uid).where(
            BatchRow.part_of == whole_uid, BatchRow.archived_at.is_not(None)
        )
        for uid in connection.execute(archived).scalars().all():
            tasks.insert_task(connection, uid, "expire", due_at=at)

    @transaction
    def cancel(self, connection: Connection, whole: Record, batch: Batch) -> bool:
        """Record that a batch is being cancelled, and cancel the parts that wait; False if it has ended."""
        running = update(BatchRow).where(BatchRow.id == whole.id, BatchRow.status.not_in(FINISHED))
        values = {"status": batch.status, "snapshot": batch.to_dict()}
        if connection.execute(running.values(values)).rowcount == 0:
            return False
        queued = RECORD.where(BatchRow.part_of == whole.uid, BatchRow.state == "queued")
        at = batch.cancelling_at
        for row in connection.execute(queued).all():
            part = Record(*row)
            shown = part.snapshot | {"status": "cancelled", "cancelling_at": at, "cancelled_at": at}
            this = update(BatchRow).where(BatchRow.id == part.id, BatchRow.state == "queued")
            connection.execute(this.values(state="failed", status="cancelled", snapshot=shown))
        return True

    @transaction
    def hasten(self, connection: Connection, provider: str, model: str) -> None:
        """Make the batches whose parts wait for this model due now, as there may be room for them."""
        now = int(time.time())
        waiting = select(BatchRow.part_of).where(
            BatchRow.state == "queued", BatchRow.provider == provider, BatchRow.model == model
        )
        this = TaskRow.step == "submit", TaskRow.due_at > now, TaskRow.batch_uid.in_(waiting)
        connection.execute(update(TaskRow).where(*this).values(due_at=now))
