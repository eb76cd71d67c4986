"""Estimates of what requests cost, before anything is submitted."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from flask_llm_batches.core.asked import Asked
from flask_llm_batches.core.prices import estimate, total
from flask_llm_batches.core.spool import Spool, tokens_of
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.store.intents import NewPart
from flask_llm_batches.store.limits import Allowance, in_billionths


class Prompts(NamedTuple):
    """The prompts for one model.

    Attributes:
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        model: The model.
        requests: How many there are.
        tokens: About how many tokens they have.
    """

    provider: str
    model: str
    requests: int
    tokens: int


class Estimates:
    """Estimates of one app."""

    def __init__(self, providers: Providers) -> None:
        self._providers = providers

    def costs(self, prompts: Sequence[Prompts]) -> tuple[Decimal | None, Decimal | None]:
        """Return what prompts cost at batch rates and at standard rates, in US dollars, if that is known."""
        costs = [
            estimate(
                kind=self._providers.kind_of(one.provider),
                model=one.model,
                requests=one.requests,
                tokens=one.tokens,
            )
            for one in prompts
        ]
        return total(one for one, _ in costs), total(one for _, one in costs)

    def reserved(self, prompts: Sequence[Prompts], allowance: Allowance | None) -> int | None:
        """Return about what prompts cost, in billionths of a US dollar; None if unknown or not limited."""
        if allowance is None or allowance.cost is None:
            return None
        cost, _ = self.costs(prompts)
        return None if cost is None else in_billionths(cost)


def prompts_in(asked: Asked, spool: Spool) -> Sequence[Prompts]:
    """Return the prompts of a create."""
    if spool.parts:
        return prompts_of(spool.parts)
    size = len(spool.custom_ids), tokens_of(spool.size)
    return [Prompts(asked.provider, asked.submission.model, *size)]


def prompts_of(parts: Sequence[NewPart]) -> Sequence[Prompts]:
    """Return the prompts of parts."""
    return [Prompts(part.provider, part.model, part.requests, part.tokens) for part in parts]
