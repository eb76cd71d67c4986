"""Result rows into tokens, and tokens into what they cost."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from flask_llm_batches.store.usage import Tokens, UsageSum

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, TieredPrices

# Prices may depend on how long a prompt is, from 100,000 tokens on: shorter ones are summed up, longer ones
# priced one by one.
LONG_PROMPT = 50_000

# genai-prices' names of providers, where they are not any-llm's.
_PRICE_LISTS = {
    "gemini": "google",
    "vertexai": "google",
    "bedrock": "aws",
    "azureanthropic": "anthropic",
    "vertexaianthropic": "anthropic",
}
_BATCH = {"processing": "batch"}


class _Used(msgspec.Struct, gc=False):
    usage: Any = None
    model: Any = None


_decode = msgspec.json.Decoder(_Used).decode


@dataclass(slots=True)
class _Consumed:
    """What the requests of one model consumed."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    written: int = 0

    def add(self, other: _Consumed) -> None:
        self.prompt += other.prompt
        self.completion += other.completion
        self.cached += other.cached
        self.written += other.written


@dataclass(slots=True)
class _OfModel:
    short: _Consumed = field(default_factory=_Consumed)
    long: list[_Consumed] = field(default_factory=list)


class TokenCount:
    """Sums up the usage that results state, model by model.

    Chat completions call them ``prompt_tokens`` and ``completion_tokens``, responses ``input_tokens`` and
    ``output_tokens``, embeddings have no completion.
    """

    def __init__(self) -> None:
        self._total = 0
        self._models: dict[str | None, _OfModel] = defaultdict(_OfModel)

    def add(self, result: msgspec.Raw) -> None:
        """Count the usage of one result."""
        try:
            said = _decode(result)
        except msgspec.DecodeError:
            return  # a number that fits nowhere
        usage = said.usage
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        if not isinstance(details, dict):
            details = {}
        # Anthropic counts what it read from and wrote to its cache beside the input, others as part of it.
        read = _number(usage, "cache_read_input_tokens")
        written = _number(usage, "cache_creation_input_tokens")
        used = _Consumed(
            _number(usage, "prompt_tokens", "input_tokens") + read + written,
            _number(usage, "completion_tokens", "output_tokens"),
            _number(details, "cached_tokens") + read,
            _number(details, "cache_write_tokens") + written,
        )
        self._total += _number(usage, "total_tokens") or used.prompt + used.completion
        of_model = self._models[said.model if isinstance(said.model, str) else None]
        if used.prompt > LONG_PROMPT:
            of_model.long.append(used)
        else:
            of_model.short.add(used)

    @property
    def tokens(self) -> Tokens:
        """The sums so far."""
        every = _Consumed()
        for of_model in self._models.values():
            for used in (of_model.short, *of_model.long):
                every.add(used)
        return Tokens(every.prompt, every.completion, every.cached, self._total)

    def cost(self, *, kind: str, model: str, at: int) -> Decimal | None:
        """Give what it costs at a provider's batch rates, in US dollars.

        Args:
            kind: any-llm's name of the provider.
            model: Of results that do not name theirs.
            at: When the batch was created, as Unix seconds.

        Returns:
            None when a batch rate is not known: the standard one would be wrong, and half of it a guess.
        """
        total = Decimal(0)
        for name, used in self._models.items():
            prices = _BatchPrices.find(kind, name or model, datetime.fromtimestamp(at, UTC))
            if prices is None:
                return None
            for consumed, prompt in ((used.short, 0), *((one, one.prompt) for one in used.long)):
                cost = prices.of(consumed, prompt=prompt)
                if cost is None:
                    return None
                total += cost
        return total


@dataclass(frozen=True, slots=True)
class _BatchPrices:
    """The batch rates of one model, after genai-prices: US dollars for a million tokens, by its names."""

    rates: Mapping[str, Decimal | TieredPrices]
    standard: ModelPrice

    @classmethod
    def find(cls, kind: str, model: str, moment: datetime) -> _BatchPrices | None:
        from genai_prices import Usage, calc_price

        try:
            found = calc_price(Usage(), model, provider_id=_PRICE_LISTS.get(kind, kind)).model
        except LookupError:
            return None
        rates = {
            name: price
            for variant in found.price_variants or ()
            if variant.when == _BATCH and (variant.constraint is None or variant.constraint.active(moment))
            for name, price in vars(variant.prices).items()
            if price is not None
        }
        return cls(rates, found.get_prices(moment)) if rates else None

    def of(self, used: _Consumed, *, prompt: int) -> Decimal | None:
        """Price what requests consumed whose prompts have so many tokens, or fewer than any tier."""
        cost = Decimal(0)
        read = self._name("cache_read_mtok")
        written = self._name("cache_write_mtok")
        for name, tokens in (
            ("input_mtok", used.prompt - used.cached - used.written),
            (read, used.cached),
            (written, used.written),
            ("output_mtok", used.completion),
        ):
            if tokens:
                if name not in self.rates:
                    return None
                cost += tokens * _rate(self.rates[name], prompt)
        return cost / 1_000_000

    def _name(self, name: str) -> str:
        """Give the name of a rate: what has none of its own costs what other input does."""
        return name if name in self.rates or getattr(self.standard, name) is not None else "input_mtok"


def group_name(row: UsageSum, group_by: str | None) -> str | None:
    """Say whose a sum is: a day as 2026-11-23; None where there is one sum of all."""
    if group_by == "day":
        return datetime.fromtimestamp(int(row.group), UTC).date().isoformat()
    return None if group_by is None else str(row.group)


def _cell(name: str | None) -> str:
    """Keep a spreadsheet from taking a name, which callers choose, for a formula."""
    return f"'{name}" if name and name[0] in "=+-@\t\r" else name or ""


def usage_csv(sums: Iterable[UsageSum], group_by: str | None) -> str:
    """Write sums as CSV, with a line of names first."""
    text = io.StringIO()
    writer = csv.writer(text)
    names = UsageSum._fields[1:]
    writer.writerow(names if group_by is None else (group_by, *names))
    for row in sums:
        figures = [format(value, "f") if isinstance(value, Decimal) else value for value in row[1:]]
        writer.writerow(figures if group_by is None else [_cell(group_name(row, group_by)), *figures])
    return text.getvalue()


def _rate(price: Decimal | TieredPrices, prompt: int) -> Decimal:
    if isinstance(price, Decimal):
        return price
    # A tier holds for all tokens of a request whose prompt is longer.
    return next((tier.price for tier in reversed(price.tiers) if prompt > tier.start), price.base)


# Tokens of one request: no model takes as many, and a batch's sum and cost still fit into 64 bits.
_MOST = 10**8


def _number(usage: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(value := usage.get(name), int):
            return min(max(value, 0), _MOST)
    return 0
