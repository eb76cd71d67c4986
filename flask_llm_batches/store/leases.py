"""Leases on rows: one process at a time works on a row, and others can tell when it has died.

A lease is a token and an end. It is taken by a compare-and-set update, extended while the work goes on, and
ends by itself when its holder does not extend it any more. It makes sure that work is not done twice for
nothing; what must not happen twice needs a condition of its own, as a holder may be late.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, update

from flask_llm_batches.store.models import Leased

LEASE = 15
"""Seconds after which a lease ends that is not extended."""


def new_lease() -> dict[str, Any]:
    """Return the columns of a lease that begins now, with a token of its own."""
    return {"lease_token": uuid.uuid4().hex, "lease_until": int(time.time()) + LEASE}


def is_free(row: type[Leased]) -> ColumnElement[bool]:
    """Return the condition that nobody holds the lease on a row."""
    return or_(row.lease_until.is_(None), row.lease_until <= int(time.time()))


def extend_lease(
    connection: Connection, row: type[Leased], key: ColumnElement[bool], token: str | None
) -> bool:
    """Extend a lease from now on; return False if it is not the holder's any more.

    Args:
        connection: Where.
        row: The class of the row.
        key: Which row it is.
        token: The holder's token.
    """
    held = update(row).where(key, row.lease_token == token, row.lease_until.is_not(None))
    return connection.execute(held.values(lease_until=int(time.time()) + LEASE)).rowcount == 1
