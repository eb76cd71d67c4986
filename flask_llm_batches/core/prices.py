"""The cost of tokens, according to genai-prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

from flask_llm_batches.core.counting import NO_MODEL, Consumed
from flask_llm_batches.log import get_logger

logger = get_logger(__name__)

# genai-prices' names of providers, where they are not any-llm's.
_PRICE_LISTS = {
    "gemini": "google",
    "vertexai": "google",
    "bedrock": "aws",
    "azureanthropic": "anthropic",
    "vertexaianthropic": "anthropic",
}
_BATCH = {"processing": "batch"}

# Tokens of these kinds that have no rate of their own cost as much as other input.
_AS_INPUT = ("cache_read_mtok", "cache_write_mtok")

_NANO = Decimal("1e-9")
_MOST = 10**9  # a higher cost is invented by the provider; billionths of this one fit into 64 bits


def cost(
    models: Mapping[str | None, Mapping[int, Consumed]], *, kind: str, model: str, at: int
) -> Decimal | None:
    """Return what tokens cost at a provider's batch rates: US dollars, to a billionth.

    Args:
        models: The tokens by model, as ``TokenCount`` has them; None stands for results that do not name
            their model.
        kind: any-llm's name of the provider.
        model: The model of results that do not name theirs.
        at: When the batch was created, as Unix seconds.

    Returns:
        None if a batch rate is not known: the standard rate would be wrong, and half of it a guess.
    """
    if NO_MODEL in models:
        return None
    total = Decimal(0)
    for name, bands in models.items():
        for used in bands.values():
            try:
                price = _price(used, kind=kind, model=name or model, at=datetime.fromtimestamp(at, UTC))
            except Exception as error:
                # Results are returned even if their price is not known.
                logger.warning(
                    "no price of %r at %s", name or model, kind, exc_info=not isinstance(error, LookupError)
                )
                return None
            if price is None:
                return None
            total += price
    return total.quantize(_NANO) if total < _MOST else None


def estimate(*, kind: str, model: str, requests: int, tokens: int) -> tuple[Decimal | None, Decimal | None]:
    """Return what prompts cost today at a provider's batch rates, and at its standard rates.

    Args:
        kind: any-llm's name of the provider.
        model: The model.
        requests: How many requests there are.
        tokens: How many tokens their prompts have.

    Returns:
        US dollars, to a billionth; None where a rate is not known.
    """
    used = Consumed(requests, prompt=tokens)
    now = datetime.now(UTC)
    rates = []
    for context in (_BATCH, {}):
        try:
            price = _price(used, kind=kind, model=model, at=now, context=context)
        except Exception as error:
            logger.warning("no price of %r at %s", model, kind, exc_info=not isinstance(error, LookupError))
            return None, None
        rates.append(None if price is None or price >= _MOST else price.quantize(_NANO))
    return rates[0], rates[1]


def total(costs: Iterable[Decimal | None]) -> Decimal | None:
    """Return the sum of costs; None if one is not known."""
    known = list(costs)
    return None if None in known else sum((one for one in known if one is not None), Decimal(0))


def _price(
    used: Consumed, *, kind: str, model: str, at: datetime, context: Mapping[str, str] = _BATCH
) -> Decimal | None:
    from genai_prices import Usage, calc_price
    from genai_prices.types import ModelPrice

    def mean(tokens: int, rounding: str = ROUND_FLOOR) -> Decimal:
        with localcontext(rounding=rounding):
            return Decimal(tokens) / used.requests

    # Per request, as rates may depend on the length of its prompt. No part of a prompt may exceed the prompt.
    usage = Usage(
        input_tokens=mean(used.prompt, ROUND_CEILING),
        cache_read_tokens=mean(used.cached),
        cache_write_tokens=mean(used.written),
        cache_write_1h_tokens=mean(used.written_for_hour),
        output_tokens=mean(used.completion),
    )
    found = calc_price(
        usage,
        model,
        provider_id=_PRICE_LISTS.get(kind, kind),
        genai_request_timestamp=at,
        price_context=dict(context),
    )
    # If there is no batch rate, calc_price uses the standard rate and does not say so.
    taken = found.model_price
    if not context:
        return found.total_price * used.requests
    batch_rates = replace(found.model, prices=ModelPrice()).get_prices(at, _BATCH)
    for name, number in (
        ("input_mtok", used.prompt - used.cached - used.written),
        ("cache_read_mtok", used.cached),
        ("cache_write_mtok", used.written - used.written_for_hour),
        ("cache_write_1h_mtok", used.written_for_hour),
        ("output_mtok", used.completion),
    ):
        counts_as = name if name not in _AS_INPUT or getattr(taken, name) is not None else "input_mtok"
        rate = getattr(batch_rates, counts_as)
        if number and (rate is None or rate != getattr(taken, counts_as)):
            return None
    return found.total_price * used.requests
