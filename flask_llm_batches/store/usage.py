"""What was used, and by whom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, case, func, insert, literal, select

from flask_llm_batches.store.models import UsageRow
from flask_llm_batches.store.store import Store, is_owned, transaction

if TYPE_CHECKING:
    from flask_llm_batches.store.records import Record

Usage = dict[str, Any]
"""The columns of a ``UsageRow`` that was written; its cost as a ``Decimal`` of US dollars."""


class Tokens(NamedTuple):
    """What result rows consumed; cached tokens are part of the prompt's."""

    prompt: int
    completion: int
    cached: int
    total: int


class UsageSum(NamedTuple):
    """Usage summed up.

    Attributes:
        group: Whose; for a day its first second.
        batches: How many were created.
        requests: How many were in them.
        prompt_tokens: Of their results, as far as those were fetched; cached tokens are part of them.
        cost: In US dollars, of those whose price is known.
        unpriced: How many batches' results have no price that is known.
    """

    group: str | int
    batches: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int
    cost: Decimal
    unpriced: int


_NANO = 10**9  # costs are kept as whole numbers, which every database sums up exactly
_SUMMED = ("prompt_tokens", "completion_tokens", "cached_tokens", "total_tokens", "cost")
_GROUPS: dict[str | None, ColumnElement[Any]] = {
    None: literal(""),
    "owner": UsageRow.owner.expression,
    "model": UsageRow.model.expression,
    "provider": UsageRow.provider.expression,
    "day": UsageRow.created_at - UsageRow.created_at % 86_400,
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
    ) -> Sequence[UsageSum]:
        """Sum up what happened at ``since`` or later and before ``until``, group by group in their order.

        They are by ``owner``, ``model``, ``provider`` or ``day``; None gives one sum.
        """
        group = _GROUPS[group_by]
        conditions: list[ColumnElement[bool]] = [UsageRow.event.in_(("create", "results"))]
        if owner is not None:
            conditions.append(is_owned(UsageRow.owner, owner))
        if since is not None:
            conditions.append(UsageRow.created_at >= since)
        if until is not None:
            conditions.append(UsageRow.created_at < until)
        created, results = UsageRow.event == "create", UsageRow.event == "results"
        query = select(
            group,
            func.count(case((created, 1))),
            func.coalesce(func.sum(case((created, UsageRow.requests))), 0),
            *(func.coalesce(func.sum(getattr(UsageRow, name)), 0) for name in _SUMMED),
            func.count(case((and_(results, UsageRow.cost.is_(None)), 1))),
        ).where(*conditions)
        if group_by is not None:
            # To MariaDB "ada" is "ada " as well.
            apart = () if group_by == "day" else (func.char_length(group),)
            query = query.group_by(group, *apart).order_by(group, *apart)
        rows = connection.execute(query).all()
        return [
            UsageSum._make((group, *map(int, sums), Decimal(int(cost)) / _NANO, unpriced))
            for group, *sums, cost, unpriced in rows
        ]


def use(connection: Connection, record: Record, event: str, **values: Any) -> Usage:
    """Write a row of usage, and give its columns."""
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
