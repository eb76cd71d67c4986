"""The queues of parts: one for each model at each provider."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Update, case, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from flask_llm_batches.batch import FINISHED, STATUSES
from flask_llm_batches.store.leases import extend_lease, is_free, new_lease
from flask_llm_batches.store.models import QUEUED, BatchRow, Lane, LaneRow, Record
from flask_llm_batches.store.queries import RECORD
from flask_llm_batches.store.store import Store, transaction

_LONGEST_WAIT = 900
_PATIENCE = 4  # refusals in a row after which a part counts as too large, although no other is there

_LANE = select(*(getattr(LaneRow, name) for name in Lane.__slots__))


class Flying(NamedTuple):
    """The batches and parts of a model that are at its provider and have not ended.

    Attributes:
        batches: How many batches and parts.
        tokens: About how many tokens their prompts have.
        validating: How many of them the provider has not checked yet.
    """

    batches: int
    tokens: int
    validating: int


class Lanes(Store):
    """The lanes of one app."""

    @transaction
    def claim(self, connection: Connection, provider: str, model: str) -> Lane | None:
        """Claim a lane, and return it with its lease; None if another process submits its parts."""
        this = _existing(connection, provider, model)
        claim = update(LaneRow).where(*this, is_free(LaneRow))
        if connection.execute(claim.values(new_lease())).rowcount == 0:
            return None
        return Lane(*connection.execute(_LANE.where(*this)).one())

    @transaction
    def extend_lease(self, connection: Connection, lane: Lane) -> bool:
        """Extend the lease on a lane; return False if it was lost."""
        this = (LaneRow.provider == lane.provider) & (LaneRow.model == lane.model)
        return extend_lease(connection, LaneRow, this, lane.lease_token)

    @transaction
    def release(self, connection: Connection, lane: Lane) -> None:
        """Release a lane."""
        held = _this(lane).where(LaneRow.lease_token == lane.lease_token)
        connection.execute(held.values(lease_token=None, lease_until=None))

    @transaction
    def find(self, connection: Connection, lane: Lane) -> Lane:
        """Return a lane as it is now."""
        query = _LANE.where(LaneRow.provider == lane.provider, LaneRow.model == lane.model)
        return Lane(*connection.execute(query).one())

    @transaction
    def next(self, connection: Connection, lane: Lane) -> Record | None:
        """Return the part whose turn it is; None if none waits."""
        query = RECORD.where(
            text(QUEUED),
            BatchRow.provider == lane.provider,
            BatchRow.model == lane.model,
            BatchRow.part_of.is_not(None),
        )
        row = connection.execute(query.order_by(BatchRow.turn, BatchRow.id).limit(1)).first()
        return None if row is None else Record(*row)

    @transaction
    def flying(self, connection: Connection, lane: Lane) -> Flying:
        """Return how many batches and parts of a lane are at its provider and have not ended."""
        return _flying(connection, lane.provider, lane.model)

    @transaction
    def refused(self, connection: Connection, lane: Lane, *, until: int) -> None:
        """Record that the provider refused a part when it was submitted, and until when nothing else is."""
        connection.execute(_this(lane).values(refused_until=until, failures=LaneRow.failures + 1))

    @transaction
    def taken(self, connection: Connection, provider: str, model: str) -> None:
        """Record that the provider runs a part."""
        this = update(LaneRow).where(LaneRow.provider == provider, LaneRow.model == model)
        connection.execute(this.where(LaneRow.failures > 0).values(refused_until=None, failures=0))

    @transaction
    def no_room(
        self, connection: Connection, provider: str, model: str, *, tokens: int, limit: int | None, wait: int
    ) -> int:
        """Record that a provider has no room for a batch.

        Args:
            connection: The connection to use.
            provider: The provider.
            model: The model.
            tokens: About how many tokens the batch has.
            limit: The limit that the provider names; None if it names none.
            wait: The least seconds until the next try, if the provider has no other batch of the model.

        Returns:
            How often the model was refused in a row.
        """
        this = _existing(connection, provider, model)
        failures: int = connection.execute(select(LaneRow.failures).where(*this)).scalar_one()
        now = int(time.time())
        others = _flying(connection, provider, model)
        values: dict[str, Any] = {"failures": failures + 1}
        if others.batches:
            tokens += others.tokens
        else:
            values["refused_until"] = now + min(wait * 2 ** min(failures, 10), _LONGEST_WAIT)
        # All these tokens together were too many, so the limit is lower.
        if others.batches or failures >= _PATIENCE:
            limit = max(1, min(tokens - 1, limit or tokens))
        if limit is not None:
            values |= {"token_limit": limit, "learned_at": now}
        connection.execute(update(LaneRow).where(*this).values(values))
        return failures + 1


def _existing(connection: Connection, provider: str, model: str) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that select a lane, which is inserted if it is not there yet."""
    this = LaneRow.provider == provider, LaneRow.model == model
    if connection.execute(select(LaneRow.turn).where(*this)).first() is None:
        # another process may just have inserted it
        with suppress(IntegrityError), connection.begin_nested():
            connection.execute(insert(LaneRow).values(provider=provider, model=model, turn=0, failures=0))
    return this


def _flying(connection: Connection, provider: str, model: str) -> Flying:
    validating = case((BatchRow.status == "validating", 1), else_=0)
    query = select(
        func.count(), func.coalesce(func.sum(BatchRow.tokens), 0), func.coalesce(func.sum(validating), 0)
    ).where(
        BatchRow.status.in_(STATUSES - FINISHED),
        BatchRow.state.in_(("submitting", "accepted", "unknown")),
        BatchRow.provider == provider,
        BatchRow.model == model,
    )
    return Flying(*(int(number) for number in connection.execute(query).one()))


def _this(lane: Lane) -> Update:
    return update(LaneRow).where(LaneRow.provider == lane.provider, LaneRow.model == lane.model)
