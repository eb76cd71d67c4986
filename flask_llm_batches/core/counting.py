"""Counts the tokens of result rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from flask_llm_batches.store.usage import Tokens
from flask_llm_batches.untrusted import SMALL, TooMany, size, small

# Prices may depend on the length of a prompt, but only from 100,000 tokens on. So prompts of up to 50,000
# tokens are summed up in one band, and longer ones in bands of 1,000 tokens.
_SHORT, _BAND, _LONGEST = 50_000, 1_000, 2_000_000

# A provider may name another model in each row: after ten, all others are counted as one, without a price.
_MODELS, _NAME_LENGTH = 10, 255
NO_MODEL = "no model"
"""The model of tokens without a price: of too many models, and of results whose usage cannot be used."""


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Any = None
    input_tokens: Any = None
    completion_tokens: Any = None
    output_tokens: Any = None
    total_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    prompt_tokens_details: Any = None
    input_tokens_details: Any = None
    cache_creation: Any = None


_NO_USAGE = _Usage()


class _Used(msgspec.Struct, gc=False):
    usage: _Usage | None = None
    model: Any = None


class _Parts(msgspec.Struct, gc=False):
    usage: msgspec.Raw = msgspec.Raw(b"null")
    model: msgspec.Raw = msgspec.Raw(b"null")


_decode_parts = msgspec.json.Decoder(_Parts).decode
_decode = msgspec.json.Decoder(_Used).decode


@dataclass(slots=True)
class Consumed:
    """The tokens of requests for one model whose prompts have about the same length.

    Attributes:
        requests: How many requests.
        prompt: Tokens of their prompts; ``cached`` and ``written`` are part of them.
        completion: Tokens of the answers.
        cached: Tokens read from a cache.
        written: Tokens written to a cache; ``written_for_hour`` are part of them.
        written_for_hour: Tokens written to a cache that keeps them for an hour.
    """

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    written: int = 0
    written_for_hour: int = 0

    def add(self, other: Consumed) -> None:
        self.requests += other.requests
        self.prompt += other.prompt
        self.completion += other.completion
        self.cached += other.cached
        self.written += other.written
        self.written_for_hour += other.written_for_hour


class TokenCount:
    """Sums up the usage that results state.

    Chat completions call them ``prompt_tokens`` and ``completion_tokens``, responses ``input_tokens`` and
    ``output_tokens``, embeddings have no completion.

    Attributes:
        models: What was consumed, by model and then by the length of prompts. None is the model of results
            that name none.
    """

    def __init__(self) -> None:
        self._total = 0
        self.models: dict[str | None, dict[int, Consumed]] = {}

    def add(self, result: msgspec.Raw) -> None:
        """Count the usage of one result."""
        try:
            if size(result) > SMALL:
                parts = _decode_parts(result)
                small(parts.usage), small(parts.model)
            said = _decode(result)
        except (msgspec.DecodeError, RecursionError, TooMany):
            said = _Used()  # the usage is not an object, or too deep or long, or a number is too large
        usage = said.usage or _NO_USAGE
        details = _object(usage.prompt_tokens_details) or _object(usage.input_tokens_details)
        # Anthropic's input does not include tokens that were read from or written to its cache; others' does.
        read = _number(usage.cache_read_input_tokens)
        written = _number(usage.cache_creation_input_tokens)
        used = Consumed(
            1,
            _number(usage.prompt_tokens, usage.input_tokens) + read + written,
            _number(usage.completion_tokens, usage.output_tokens),
            _number(details.get("cached_tokens")) + read,
            _number(details.get("cache_write_tokens")) + written,
            _number(_object(usage.cache_creation).get("ephemeral_1h_input_tokens")),
        )
        self._total += _number(usage.total_tokens) or used.prompt + used.completion
        model = said.model if isinstance(said.model, str) else None
        bands = self._bands(model if 0 < used.prompt + used.completion < _MOST else NO_MODEL)
        band = 0 if used.prompt <= _SHORT else (min(used.prompt, _LONGEST) - 1) // _BAND
        if band in bands:
            bands[band].add(used)
        else:
            bands[band] = used

    def _bands(self, model: str | None) -> dict[int, Consumed]:
        if model not in self.models and (len(self.models) >= _MODELS or len(model or "") > _NAME_LENGTH):
            model = NO_MODEL
        return self.models.setdefault(model, {})

    @property
    def tokens(self) -> Tokens:
        """The sums so far."""
        every = Consumed()
        for bands in self.models.values():
            for used in bands.values():
                every.add(used)
        return Tokens(every.prompt, every.completion, every.cached, self._total)


# Tokens of one request: no model takes as many, and a batch's sum and cost still fit into 64 bits.
_MOST = 10**8


def _number(value: object, other: object = None) -> int:
    """Return the first of two values that is a number of tokens; 0 if none is."""
    if isinstance(value, int):
        return value if 0 <= value <= _MOST else min(max(value, 0), _MOST)
    return 0 if other is None else _number(other)


_NOTHING: dict[str, Any] = {}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else _NOTHING
