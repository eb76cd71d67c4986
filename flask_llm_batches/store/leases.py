"""Leases on rows: one process at a time works on a row, and other processes notice when it has died.

A lease is a token and an end. A process takes it by a compare-and-set update and extends it while it works.
If it stops, the lease ends by itself. A lease only saves needless work. What must not happen twice needs its
own condition, because a process may not notice in time that its lease has ended.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, update

from flask_llm_batches.store.models import Leased

LEASE = 15
"""Seconds after which a lease ends, unless it is extended."""


def new_lease() -> dict[str, Any]:
    """Return the columns of a lease that begins now, with a token of its own."""
    return {"lease_token": uuid.uuid4().hex, "lease_until": int(time.time()) + LEASE}


def is_free(row: type[Leased]) -> ColumnElement[bool]:
    """Return the condition that a row has no valid lease."""
    return or_(row.lease_until.is_(None), row.lease_until <= int(time.time()))


def extend_lease(
    connection: Connection, row: type[Leased], key: ColumnElement[bool], token: str | None
) -> bool:
    """Extend a lease from now on; return False if the holder has lost it.

    Args:
        connection: The connection to use.
        row: The class of the row.
        key: The condition that selects the row.
        token: The holder's token.
    """
    held = update(row).where(key, row.lease_token == token, row.lease_until.is_not(None))
    return connection.execute(held.values(lease_until=int(time.time()) + LEASE)).rowcount == 1
