"""The state of the record, for operators."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.exc import DBAPIError

from flask_llm_batches.batch import own_id
from flask_llm_batches.store.models import (
    UNSETTLED,
    Base,
    BatchRow,
    Lane,
    LaneRow,
    SetAsideRow,
    TaskRow,
    WebhookRow,
    WorkerRow,
)
from flask_llm_batches.store.store import Store, transaction
from flask_llm_batches.store.tasks import ALIVE

# For the error messages of SQLite, PostgreSQL and MariaDB.
_MISSING = re.compile("no such table|no such column|does not exist|doesn't exist|Unknown column")

_AGAIN = 3  # failures in a row
_NAMED = 3


class Load(NamedTuple):
    """The work that is due, and the workers.

    Attributes:
        workers: How many workers are alive.
        steps: How many steps are due.
        waiting: For how many seconds the oldest of them has been due.
        unsettled: How many batches got no answer to their create, and are not being submitted now.
        set_aside: How many rows a handler refuses.
        given_up: How many webhooks were given up.
        failing: Up to three steps that have failed three times or more, as the batch's id and the step.
    """

    workers: int
    steps: int
    waiting: int
    unsettled: int
    set_aside: int
    given_up: int
    failing: Sequence[tuple[str, str]]


class Health(Store):
    """The state of the record of one app."""

    @transaction
    def missing_tables(self, connection: Connection) -> Sequence[str]:
        """Return the tables that are missing, or lack a column."""
        missing = []
        for table in Base.metadata.sorted_tables:
            try:
                with connection.begin_nested():
                    connection.execute(select(table).limit(0))
            except DBAPIError as error:
                if not _MISSING.search(str(error.orig)):
                    raise
                missing.append(table.name)
        return missing

    @transaction
    def write(self, connection: Connection) -> str:
        """Check that the database can be written to, by an update of no rows, and return its kind."""
        connection.execute(update(WorkerRow).where(WorkerRow.uid == "").values(seen_at=0))
        return connection.dialect.name

    @transaction
    def load(self, connection: Connection) -> Load:
        """Return the work that is due, and the number of workers."""
        now = int(time.time())
        due = TaskRow.due_at <= now
        steps = connection.execute(select(func.count()).select_from(TaskRow).where(due)).scalar_one()
        oldest = connection.execute(select(func.min(TaskRow.due_at)).where(due)).scalar()
        workers = select(func.count()).select_from(WorkerRow).where(WorkerRow.seen_at > now - ALIVE)
        # As text: SQLite uses the partial index only for exactly this condition.
        unsettled = (
            select(func.count()).select_from(BatchRow).where(text(UNSETTLED), BatchRow.lease_until < now)
        )
        given_up = WebhookRow.due_at.is_(None) & WebhookRow.sent_at.is_(None)
        set_aside = select(func.count()).select_from(SetAsideRow)
        webhooks = select(func.count()).select_from(WebhookRow).where(given_up)
        failing = select(TaskRow.batch_uid, TaskRow.step).where(TaskRow.failures >= _AGAIN)
        failing = failing.order_by(TaskRow.failures.desc()).limit(_NAMED)
        return Load(
            connection.execute(workers).scalar_one(),
            steps,
            0 if oldest is None else now - oldest,
            connection.execute(unsettled).scalar_one(),
            connection.execute(set_aside).scalar_one(),
            connection.execute(webhooks).scalar_one(),
            [(own_id(uid), step) for uid, step in connection.execute(failing)],
        )

    @transaction
    def token_limits(self, connection: Connection) -> Sequence[Lane]:
        """Return the queues of which it is known how many tokens the provider lets wait."""
        columns = (getattr(LaneRow, name) for name in Lane.__slots__)
        query = select(*columns).where(LaneRow.token_limit.is_not(None))
        return [Lane(*row) for row in connection.execute(query.order_by(LaneRow.provider, LaneRow.model))]
