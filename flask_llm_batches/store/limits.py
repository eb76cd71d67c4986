"""Checks the limits of an owner, in the transaction that records a batch."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from flask_llm_batches.batch import FINISHED, STATUSES
from flask_llm_batches.errors import OwnerLimitReached
from flask_llm_batches.log import get_logger
from flask_llm_batches.store.models import BatchRow, OwnerRow, UsageRow
from flask_llm_batches.store.store import is_owned

logger = get_logger(__name__)

_UNIT = 10**9


class Allowance(NamedTuple):
    """What an owner may have; None is no limit.

    Attributes:
        batches: Batches that have not ended.
        requests: Requests in them.
        cost: What is spent in a month, in billionths of a US dollar.
    """

    batches: int | None
    requests: int | None
    cost: int | None


def in_billionths(dollars: Decimal) -> int:
    """Return an amount in billionths of a dollar, as the tables have it."""
    return int((dollars * _UNIT).to_integral_value())


def reserve(
    connection: Connection,
    owner: str,
    allowance: Allowance,
    *,
    requests: int,
    cost: int | None,
    except_id: int | None = None,
) -> None:
    """Check that an owner may have one more batch. Other creates of the owner wait for this transaction.

    Args:
        connection: The connection to use.
        owner: The owner.
        allowance: What they may have.
        requests: How many requests the batch has.
        cost: About what it costs, in billionths of a US dollar; None if that is not known.
        except_id: The batch itself, if it is recorded already.

    Raises:
        OwnerLimitReached: The owner would have more than allowed.
    """
    _lock(connection, owner)
    error = exceeded(connection, owner, allowance, requests=requests, cost=cost, except_id=except_id)
    if error is not None:
        logger.warning("a batch of owner %r was refused: %s", owner, error)
        raise error


def exceeded(
    connection: Connection,
    owner: str,
    allowance: Allowance,
    *,
    requests: int,
    cost: int | None,
    except_id: int | None = None,
) -> OwnerLimitReached | None:
    """Return the limit that one more batch would exceed now; None if the owner may have it.

    The arguments are those of ``reserve``.
    """
    theirs = is_owned(BatchRow.owner, owner), BatchRow.part_of.is_(None)
    others = theirs if except_id is None else (*theirs, BatchRow.id != except_id)
    running = select(func.count(), func.coalesce(func.sum(BatchRow.requests), 0)).where(
        *others, BatchRow.status.in_(STATUSES - FINISHED)
    )
    batches, had = (int(number) for number in connection.execute(running).one())
    if allowance.batches is not None and batches + 1 > allowance.batches:
        return OwnerLimitReached("batches", limit=allowance.batches, used=batches, asked=1)
    if allowance.requests is not None and had + requests > allowance.requests:
        return OwnerLimitReached("requests", limit=allowance.requests, used=had, asked=requests)
    if allowance.cost is None:
        return None
    first, next_month = _month()
    unread = (
        BatchRow.accounted_at.is_(None),
        or_(
            BatchRow.status.in_(STATUSES - FINISHED),
            and_(BatchRow.status != "failed", BatchRow.created_at >= first),
        ),
    )
    spent = select(func.coalesce(func.sum(UsageRow.cost), 0)).where(
        is_owned(UsageRow.owner, owner), UsageRow.created_at >= first
    )
    reserved = select(func.coalesce(func.sum(BatchRow.reserved), 0)).where(*others, *unread)
    used = sum(int(connection.execute(query).scalar() or 0) for query in (spent, reserved))
    if used + (cost or 0) <= allowance.cost and used < allowance.cost:
        return None
    return OwnerLimitReached(
        "dollars",
        limit=Decimal(allowance.cost) / _UNIT,
        used=Decimal(used) / _UNIT,
        asked=Decimal(cost or 0) / _UNIT,
        resets_at=next_month,
    )


def _lock(connection: Connection, owner: str) -> None:
    """Lock an owner: other transactions that lock the same owner wait for the end of this one."""
    this = update(OwnerRow).where(OwnerRow.name == owner).values(turns=OwnerRow.turns + 1)
    while connection.execute(this).rowcount == 0:
        try:
            with connection.begin_nested():
                connection.execute(insert(OwnerRow).values(name=owner, turns=0))
        except IntegrityError:
            continue


def _month() -> tuple[int, int]:
    """Return the first second of this month, and of the next one."""
    first = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()), int(following.timestamp())
