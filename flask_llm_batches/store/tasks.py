"""What workers have to do, and which workers there are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from flask_llm_batches.store.leases import extend_lease, is_free, new_lease
from flask_llm_batches.store.models import Task, TaskRow, WorkerRow
from flask_llm_batches.store.store import Store, transaction

ALIVE = 15
"""Seconds for which a worker counts as alive after it was last seen."""

_CANDIDATES = 20
_TASK = select(*(getattr(TaskRow, name) for name in Task.__slots__))


class Tasks(Store):
    """The tasks of one app."""

    @transaction
    def claim(
        self, connection: Connection, *, batch_uid: str | None = None, step: str | None = None
    ) -> Task | None:
        """Claim the task that has been due for the longest, and return it with its lease.

        Args:
            connection: The connection to use.
            batch_uid: Only a task of this batch.
            step: Only a task for this step.

        Returns:
            The task; None if nothing is due.
        """
        query = _TASK.where(TaskRow.due_at <= int(time.time()), is_free(TaskRow))
        if batch_uid is not None:
            query = query.where(TaskRow.batch_uid == batch_uid)
        if step is not None:
            query = query.where(TaskRow.step == step)
        due = connection.execute(query.order_by(TaskRow.due_at).limit(_CANDIDATES)).all()
        for task in (Task(*row) for row in due):
            lease = new_lease()
            this = TaskRow.id == task.id, TaskRow.due_at == task.due_at, is_free(TaskRow)
            if connection.execute(update(TaskRow).where(*this).values(lease)).rowcount == 1:
                return Task(task.id, task.batch_uid, task.step, task.due_at, task.failures, **lease)
        return None

    @transaction
    def extend_lease(self, connection: Connection, task: Task) -> bool:
        """Extend the lease on a task; return False if it was lost."""
        return extend_lease(connection, TaskRow, TaskRow.id == task.id, task.lease_token)

    @transaction
    def again(self, connection: Connection, task: Task, *, due_at: int, failures: int) -> None:
        """Release a task that is to be done again, unless its lease was lost."""
        held = update(TaskRow).where(TaskRow.id == task.id, TaskRow.lease_token == task.lease_token)
        released = {"lease_token": None, "lease_until": None}
        connection.execute(held.values(due_at=due_at, failures=failures, **released))

    @transaction
    def done(self, connection: Connection, task: Task, *, then: Mapping[str, float]) -> None:
        """Replace a task by those that come after it, unless its lease was lost."""
        held = delete(TaskRow).where(TaskRow.id == task.id, TaskRow.lease_token == task.lease_token)
        if connection.execute(held).rowcount == 1:
            for step, seconds in then.items():
                insert_task(connection, task.batch_uid, step, due_at=int(time.time() + seconds))

    @transaction
    def hasten(self, connection: Connection, batch_uid: str, step: str) -> None:
        """Make a task of a batch due now, if there is one."""
        now = int(time.time())
        this = TaskRow.batch_uid == batch_uid, TaskRow.step == step
        connection.execute(update(TaskRow).where(*this, TaskRow.due_at > now).values(due_at=now))


class Workers(Store):
    """The workers of one app."""

    @transaction
    def seen(self, connection: Connection, uid: str) -> None:
        """Record that a worker is alive, and delete those that were not seen for an hour."""
        now = int(time.time())
        if connection.execute(update(WorkerRow).where(WorkerRow.uid == uid).values(seen_at=now)).rowcount:
            return
        connection.execute(delete(WorkerRow).where(WorkerRow.seen_at < now - 3600))
        connection.execute(insert(WorkerRow).values(uid=uid, seen_at=now))

    @transaction
    def ended(self, connection: Connection, uid: str) -> None:
        """Record that a worker has ended."""
        connection.execute(delete(WorkerRow).where(WorkerRow.uid == uid))

    @transaction
    def alive(self, connection: Connection) -> int:
        """Return the number of workers that are alive."""
        query = select(func.count()).select_from(WorkerRow)
        return connection.execute(query.where(WorkerRow.seen_at > int(time.time()) - ALIVE)).scalar_one()


def insert_task(connection: Connection, batch_uid: str, step: str, *, due_at: int) -> None:
    """Insert a task. If there is one already, make it due at the given time, if that is earlier."""
    this = TaskRow.batch_uid == batch_uid, TaskRow.step == step
    if connection.execute(select(TaskRow.id).where(*this)).first() is None:
        values = {"batch_uid": batch_uid, "step": step, "due_at": due_at, "failures": 0}
        connection.execute(insert(TaskRow).values(values))
    else:
        connection.execute(update(TaskRow).where(*this, TaskRow.due_at > due_at).values(due_at=due_at))


def do_again(connection: Connection, batch_uid: str, step: str) -> None:
    """Make a task of a batch due now: it has more to do, although a worker may just have seen none.

    That worker loses its lease. Otherwise it would delete the task that the caller relies on.
    """
    now = int(time.time())
    this = update(TaskRow).where(TaskRow.batch_uid == batch_uid, TaskRow.step == step)
    if connection.execute(this.values(due_at=now, lease_token=None, lease_until=None)).rowcount == 0:
        # another process may just have inserted it
        with suppress(IntegrityError), connection.begin_nested():
            insert_task(connection, batch_uid, step, due_at=now)


def delete_tasks(connection: Connection, batch_uid: str) -> None:
    """Delete the tasks of a batch."""
    connection.execute(delete(TaskRow).where(TaskRow.batch_uid == batch_uid))
