"""The entries of ``LLM_BATCHES_PROVIDERS``, and a client for each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask_llm_batches.config import ProviderSettings, Settings, provider_name
from flask_llm_batches.errors import ProviderNotConfigured, UnknownProvider, UnsupportedProvider
from flask_llm_batches.providers.adapters import Adapter, adapter_class
from flask_llm_batches.providers.checks import check_providers
from flask_llm_batches.providers.failures import Redactor, to_our_error

if TYPE_CHECKING:
    from any_llm import AnyLLM


class Entries:
    """The providers of one app; without settings, every provider that any-llm knows.

    Attributes:
        redact: Removes their keys from text.
    """

    def __init__(self, settings: Settings) -> None:
        check_providers(settings)
        self.redact = Redactor(settings)
        self._configured = settings.providers
        self._supported: dict[str, ProviderSettings] = {}

    def has(self, name: str) -> bool:
        """Return whether there is an entry of that name."""
        return self._configured is None or provider_name(name) in self._configured

    def named(self, name: str) -> ProviderSettings:
        """Return the entry that a caller named.

        Raises:
            UnknownProvider: There is no provider with that name.
            UnsupportedProvider: It has no batch API.
        """
        if not self.has(name):
            known = ", ".join(sorted(self._configured or ()))
            raise UnknownProvider(f"Unknown provider '{name}': this server has {known}", param="provider")
        wanted = provider_name(name)
        if wanted not in self._supported:
            entry = (self._configured or {}).get(wanted) or ProviderSettings(wanted, wanted)
            self._check_support(entry, asked_for=name)
            self._supported[wanted] = entry
        return self._supported[wanted]

    def of(self, name: str) -> ProviderSettings:
        """Return the entry of a provider that was configured when a batch was made.

        Raises:
            ProviderNotConfigured: It is no longer in the settings.
        """
        if not self.has(name):
            raise ProviderNotConfigured(f"Provider '{name}' is not in the settings of this server any more")
        return self.named(name)

    def adapter(self, entry: ProviderSettings) -> Adapter:
        """Make a client, and an adapter for it."""
        kind = adapter_class(entry.kind)
        return kind(_client(entry, kind), entry.name, self.redact, entry.batch_args)

    def _check_support(self, entry: ProviderSettings, *, asked_for: str) -> None:
        from any_llm import AnyLLM
        from any_llm.exceptions import UnsupportedProviderError

        try:
            kind = AnyLLM.get_provider_class(entry.kind)
        except UnsupportedProviderError:
            raise UnknownProvider(f"Unknown provider '{asked_for}'", param="provider") from None
        except ImportError as error:
            needed = ImportError(f"{error}; pip install 'any-llm-sdk[{entry.kind}]'")
            raise to_our_error(needed, provider=entry.name, call="import", redact=self.redact) from None
        if not kind.SUPPORTS_BATCH:
            raise UnsupportedProvider(
                f"Provider '{entry.name}' does not support batch operations", param="provider"
            )
        self.redact.learn(kind.ENV_API_KEY_NAME)


def _client(entry: ProviderSettings, kind: type[Adapter]) -> AnyLLM:
    from any_llm import AnyLLM
    from any_llm.exceptions import UnsupportedParameterError

    arguments: dict[str, Any] = {
        "api_key": entry.api_key,
        "api_base": entry.api_base,
        "unified_exceptions": True,
        **kind.client_args(entry.client_args),
    }
    try:
        # An SDK that repeats a create makes two batches.
        return AnyLLM.create(entry.kind, max_retries=0, **arguments)
    except UnsupportedParameterError:
        return AnyLLM.create(entry.kind, **arguments)  # Mistral's, which does not retry by itself
