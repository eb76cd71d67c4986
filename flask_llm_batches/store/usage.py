"""Records usage and sums it up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, case, func, insert, literal, select

from flask_llm_batches.batch import FINISHED, own_id
from flask_llm_batches.errors import ValidationFailed
from flask_llm_batches.store.models import BatchRow, Record, UsageRow
from flask_llm_batches.store.store import Store, is_owned, transaction

Usage = dict[str, Any]
"""The columns of an inserted ``UsageRow``; the cost is a ``Decimal`` in US dollars."""


class Tokens(NamedTuple):
    """The tokens of result rows. Cached tokens are part of the prompt's."""

    prompt: int
    completion: int
    cached: int
    total: int


class Used(NamedTuple):
    """What the results of one model used.

    Attributes:
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        model: The model.
        rows: How many rows of results there are.
        tokens: Their tokens.
        cost: What they cost, in US dollars; None if that is not known.
    """

    provider: str
    model: str
    rows: int
    tokens: Tokens
    cost: Decimal | None


class UsageSum(NamedTuple):
    """A sum of usage.

    Attributes:
        group: The value of the group. For a day, its first second; for a batch, its id.
        batches: How many were created.
        requests: How many were in them.
        prompt_tokens: The tokens of results that were fetched; they include ``cached_tokens``.
        cost: In US dollars, of the results with a known price; None if there are none.
        unpriced: The number of batches with results but without a known price.
        unfetched: How many of the batches are known to have ended with results that nobody has read to the
            end. Their tokens and cost are not in these sums yet.
    """

    group: str | int
    batches: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int
    cost: Decimal | None
    unpriced: int
    unfetched: int


MAX_EVENTS = 20_000
"""The most creates and results that can be summed up by batch."""

GROUPS = ("owner", "model", "provider", "day", "batch")
"""What usage can be grouped by."""

_WITH_RESULTS = FINISHED - {"failed"}
_NANO = 10**9  # costs are kept as whole numbers, which every database sums up exactly
_UNIT = 10**9
_SUMMED = ("prompt_tokens", "completion_tokens", "cached_tokens", "total_tokens", "cost")
_NAMED = {"owner": UsageRow.owner, "model": UsageRow.model, "provider": UsageRow.provider}
_GROUPS: dict[str | None, Sequence[Any]] = {
    None: [literal("")],
    # MariaDB ignores trailing spaces in comparisons.
    **{name: [column, func.char_length(column)] for name, column in _NAMED.items()},
    "day": [UsageRow.created_at - UsageRow.created_at % 86_400],
    "batch": [BatchRow.batch_id, UsageRow.batch_uid, BatchRow.input_file],
}


class UsageSums(Store):
    """The usage of one app, summed up."""

    @transaction
    def sums(
        self,
        connection: Connection,
        *,
        group_by: str | None,
        owner: str | None,
        since: int | None,
        until: int | None,
        batch_uid: str | None = None,
    ) -> Sequence[UsageSum]:
        """Return the sums of what happened from ``since`` until before ``until``, by group and sorted.

        With ``batch_uid``, they are those of one batch.

        ``group_by`` is ``owner``, ``model``, ``provider``, ``day`` or ``batch`` (the oldest first), or None
        for one sum.

        Raises:
            ValidationFailed: ``group_by`` is none of these, or a sum by batch would have more than
                ``MAX_EVENTS`` events.
        """
        if group_by not in (None, *GROUPS):
            raise ValidationFailed.of(f"Must be one of: {', '.join(GROUPS)}.", "group_by")
        group = _GROUPS[group_by]
        made, results = UsageRow.event == "create", UsageRow.event == "results"
        conditions: list[ColumnElement[bool]] = []
        if since is not None:
            conditions.append(UsageRow.created_at >= since)
        if until is not None:
            conditions.append(UsageRow.created_at < until)
        if batch_uid is not None:
            conditions.append(UsageRow.batch_uid == batch_uid)
        # With coalesce, the database uses the index of unaccounted batches, which has fewer rows than the
        # index of the owner's statuses. Without an owner, the index of unaccounted batches has all that ever
        # failed, so it must be searched by status, too.
        status = BatchRow.status if owner is None else func.coalesce(BatchRow.status, "")
        has_results = status.in_(_WITH_RESULTS)
        ended = [*conditions, made, BatchRow.accounted_at.is_(None), has_results]
        conditions.append(UsageRow.event.in_(("create", "results")))
        if owner is not None:
            conditions.append(is_owned(UsageRow.owner, owner))
            # BatchRow's owner, not UsageRow's: its index has fewer rows
            ended.append(is_owned(BatchRow.owner, owner))
        query = select(
            *group,
            func.count(case((made, 1))),
            func.coalesce(func.sum(case((made, UsageRow.requests))), 0),
            func.count(case((and_(results, UsageRow.cost.is_(None)), 1))),
            *(part for name in _SUMMED for part in _parts(connection, getattr(UsageRow, name))),
        ).where(*conditions)
        unfetched = (
            select(*group, func.count())
            .select_from(BatchRow)
            .join(UsageRow, BatchRow.uid == UsageRow.batch_uid)
            .where(*ended)
        )
        if group_by == "batch":
            events = select(func.count()).select_from(UsageRow).where(*conditions)
            if connection.execute(events).scalar_one() > MAX_EVENTS:
                raise ValidationFailed.of("Too many batches: choose a shorter time.", "since")
            query = query.join(BatchRow, BatchRow.uid == UsageRow.batch_uid)
        if group_by is not None:
            query = query.group_by(*group)
            query = query.order_by(*([func.min(UsageRow.id)] if group_by == "batch" else group))
            unfetched = unfetched.group_by(*group)
        waiting = {tuple(row[:-1]): row[-1] for row in connection.execute(unfetched)}
        width = len(group)
        return [
            _usage_sum(_name(group_by, row), *row[width:], unfetched=waiting.get(tuple(row[:width]), 0))
            for row in connection.execute(query)
        ]

    @transaction
    def spent(self, connection: Connection, *, owner: str | None, since: int) -> dict[int, Decimal]:
        """Return the known cost of each day with one, by the day's first second, in US dollars."""
        day = _GROUPS["day"][0]
        query = select(day, *_parts(connection, UsageRow.cost)).where(
            UsageRow.created_at >= since, UsageRow.event == "results", UsageRow.cost.is_not(None)
        )
        if owner is not None:
            query = query.where(is_owned(UsageRow.owner, owner))
        return {
            int(at): Decimal(int(units) * _UNIT + int(rest)) / _NANO
            for at, units, rest in connection.execute(query.group_by(day))
        }


def _parts(connection: Connection, column: Any) -> Sequence[ColumnElement[Any]]:
    """Return the sums of a column, in whole units and in remainders."""
    if connection.dialect.name == "sqlite":  # its sums overflow at 64 bits
        return func.sum(column // _UNIT), func.sum(column % _UNIT)
    return literal(0), func.sum(column)


def _name(group_by: str | None, row: Sequence[Any]) -> Any:
    """Return the value of a group: of a batch, the id that callers see."""
    has_own_id = group_by == "batch" and (row[0] is None or row[2] is not None)
    return own_id(row[1]) if has_own_id else row[0]


def _usage_sum(
    group: str | int, batches: int, requests: int, unpriced: int, *parts: Any, unfetched: int
) -> UsageSum:
    *tokens, cost = (
        None if rest is None else int(units) * _UNIT + int(rest)
        for units, rest in zip(parts[::2], parts[1::2], strict=True)
    )
    price = None if cost is None else Decimal(cost) / _NANO
    return UsageSum._make(
        (group, batches, int(requests), *(number or 0 for number in tokens), price, unpriced, unfetched)
    )


def insert_usage(connection: Connection, record: Record, event: str, **values: Any) -> Usage:
    """Insert a row of usage and return its columns."""
    used = {
        "event": event,
        "batch_uid": record.uid,
        "owner": record.owner,
        "provider": record.provider,
        "model": record.model,
        "created_at": int(time.time()),
        **values,
    }
    cost = used.get("cost")
    stored = used if cost is None else used | {"cost": int((cost * _NANO).to_integral_value())}
    connection.execute(insert(UsageRow).values(stored))
    return used


def find_usage(connection: Connection, record: Record, event: str) -> Usage | None:
    """Return the columns of a batch's row of usage, as ``insert_usage`` does; None if there is none."""
    columns = [column for column in UsageRow.__table__.columns if column.name != "id"]
    query = select(*columns).where(UsageRow.batch_uid == record.uid, UsageRow.event == event)
    row = connection.execute(query).mappings().first()
    return None if row is None else {name: value for name, value in row.items() if value is not None}
