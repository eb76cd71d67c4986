"""The names of models that callers use, and what they stand for here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from flask_llm_batches.config import Settings
from flask_llm_batches.errors import InvalidModel, LLMBatchesError, UnknownProvider
from flask_llm_batches.fields import is_whole
from flask_llm_batches.principal import has_control_characters
from flask_llm_batches.providers.clients import Providers

_LONGEST = 255  # characters of a model: the record takes no more
_SEPARATOR = re.compile("([^:/]*)([:/]?)(.*)", re.DOTALL)
_FINE_TUNED = "ft"  # OpenAI's names of fine-tuned models begin with "ft:"


class Resolved(NamedTuple):
    """A model at a provider.

    Attributes:
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        model: The model, as the provider calls it.
    """

    provider: str
    model: str


class Models:
    """The models of one app: ``LLM_BATCHES_MODELS``, and ``provider:model`` in full."""

    def __init__(self, settings: Settings, providers: Providers) -> None:
        self._models = settings.models
        self._patterns = [
            (name.split("*"), target) for name, target in settings.models.items() if "*" in name
        ]
        names = list(settings.providers or ())
        self._only = names[0] if len(names) == 1 else None
        self._providers = providers

    def __iter__(self) -> Iterator[tuple[str, Resolved]]:
        """Yield the names of the map, without its patterns, and what each stands for."""
        for name, target in self._models.items():
            if "*" not in name:
                yield name, Resolved(*target.split(":", 1))

    def resolve(self, name: object) -> Resolved:
        """Return the model that a name stands for.

        A name of the map wins, then ``provider:model``, then a pattern of the map. With one provider in the
        settings, any other plain name is a model of that provider.

        Raises:
            InvalidModel: It stands for none.
            UnknownProvider: There is no provider with that name.
            UnsupportedProvider: It has no batch API.
        """
        if not isinstance(name, str):
            raise InvalidModel(
                f"Invalid model: it must be a string, not {type(name).__name__}", param="model"
            )
        if has_control_characters(name) or not is_whole(name) or not name.strip():
            raise _invalid(name)
        # The first separator counts: "openai:org/model", and "openai/ft:model" as older clients write it.
        provider, separator, model = _SEPARATOR.fullmatch(name).groups()  # type: ignore[union-attr]  # it always matches
        in_full = bool(separator) and self._knows(provider)
        target = self._models.get(name) or (None if in_full else self._by_pattern(name))
        if target is not None:
            provider, _, model = target.partition(":")
        elif self._only is not None and not in_full and (not separator or provider == _FINE_TUNED):
            provider, model = self._only, name
        elif not separator or not provider.strip():
            raise _invalid(name)
        if not model.strip() or len(model) > _LONGEST:
            raise _invalid(name)
        return Resolved(self._providers.name_of(provider), model)

    def _knows(self, provider: str) -> bool:
        try:
            self._providers.name_of(provider)
        except UnknownProvider:
            return False
        except LLMBatchesError:  # it is known, and cannot be used
            return True
        return True

    def _by_pattern(self, name: str) -> str | None:
        for pattern, target in self._patterns:
            start, end = pattern
            if len(name) >= len(start) + len(end) and name.startswith(start) and name.endswith(end):
                return target.replace("*", name[len(start) : len(name) - len(end)])
        return None


def _invalid(name: str) -> InvalidModel:
    return InvalidModel(
        f"Invalid model {name[:_LONGEST]!r}: it must be 'provider:model', such as 'openai:gpt-4o-mini', "
        "or a name that LLM_BATCHES_MODELS has",
        param="model",
    )
