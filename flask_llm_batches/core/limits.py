"""What owners may have at once and spend in a month, as the host says."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal

from flask import current_app

from flask_llm_batches.principal import Principal
from flask_llm_batches.store.limits import Allowance, in_billionths


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an owner may have; None is no limit.

    Attributes:
        batches: Batches that have not ended.
        requests: Requests in them.
        dollars: US dollars in a calendar month, in UTC: the cost of the results that were read in it, and an
            estimate for the prompts of batches whose results were not read yet, if they still run or were
            created in that month. What has no known price does not count.
    """

    batches: int | None = None
    requests: int | None = None
    dollars: Decimal | float | None = None


Limit = Callable[[Principal], Limits | Awaitable[Limits | None] | None]
"""Returns what an owner may have; None for no limits."""


class Limiter:
    """The limits of one extension.

    Attributes:
        limit: The host's function; None if there are no limits.
    """

    def __init__(self) -> None:
        self.limit: Limit | None = None

    def allowance(self, principal: Principal) -> Allowance | None:
        """Return what an owner may have; None if there are no limits."""
        if self.limit is None:
            return None
        limits: Limits | None = current_app.ensure_sync(self.limit)(principal)
        if limits is None:
            return None
        dollars = None if limits.dollars in (None, math.inf) else Decimal(str(limits.dollars))
        return Allowance(limits.batches, limits.requests, None if dollars is None else in_billionths(dollars))
