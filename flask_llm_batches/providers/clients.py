"""The configured providers, called from synchronous code.

``any_llm`` is imported at the first call to a provider: that takes two seconds, which ``flask routes`` in the
host app must not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flask_llm_batches.batch import Batch, Row
from flask_llm_batches.config import ProviderSettings, Settings
from flask_llm_batches.errors import (
    BatchNotComplete,
    BatchNotFound,
    ConfigurationError,
    LLMBatchesError,
    ProviderFailed,
    ProviderTimeout,
    ResultsGone,
    UnknownProvider,
    UnsupportedProvider,
    ValidationFailed,
)
from flask_llm_batches.providers.adapters import Adapter, Page, Submission, adapter_class
from flask_llm_batches.providers.bridge import Bridge
from flask_llm_batches.providers.failures import Redactor, as_ours, status_of
from flask_llm_batches.providers.rows import read_rows

if TYPE_CHECKING:
    from any_llm import AnyLLM

T = TypeVar("T")

# A list is fresh where that takes no longer than people wait for one.
_SOON, _AT_ONCE = 3.0, 10

_GROUP = 500  # rows that an SDK made a list of are handed on so many at a time


class SubmitFailed(Exception):
    """A submit went wrong.

    Attributes:
        error: What to tell the caller.
        maybe_created: Whether there may be a batch all the same.
    """

    def __init__(self, error: LLMBatchesError, *, maybe_created: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.maybe_created = maybe_created


class Providers:
    """The providers of one app. Safe between threads, and after a fork.

    Every call raises what ``failures.as_ours`` makes of the provider's errors.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bridge = Bridge()
        self._redact = Redactor(settings)
        self._supported: dict[str, ProviderSettings] = {}
        _check_kinds(settings)
        _check_batch_args(settings)

    def name_of(self, name: str) -> str:
        """Give a provider's name as it is configured, for any spelling of its case.

        Raises:
            UnknownProvider: There is none of that name.
            UnsupportedProvider: It has no batch API.
        """
        return self._find(name).name

    def check(self, name: str) -> None:
        """Find out whether a provider can be called, without calling it.

        Raises:
            ProviderNotConfigured: It has no key.
        """
        try:
            self._kept(self._find(name))
        except Exception as error:  # noqa: BLE001  # whatever an SDK raises
            raise as_ours(error, provider=name, call="check", redact=self._redact) from None

    def adapter_of(self, name: str) -> type[Adapter]:
        """Give the class that knows what a provider takes."""
        return adapter_class(self._find(name).kind)

    def submit(self, provider: str, spool: Path, submission: Submission) -> Batch:
        """Hand in a batch, once: nothing here or below sends it again.

        Raises:
            SubmitFailed: It did not work, or nobody knows.
        """
        creating = False

        async def submit(adapter: Adapter) -> Batch:
            nonlocal creating
            uploaded = await adapter.upload(spool)
            creating = True
            return await adapter.create(uploaded, submission)

        try:
            found = self._find(provider)
            if adapter_class(found.kind).streams_upload:
                return self._bridge.run(submit(self._kept(found)), self._settings.transfer_timeout)
            return self._apart(found, submit)
        except Exception as error:  # noqa: BLE001  # whatever a provider or an SDK raises
            ours = as_ours(error, provider=provider, call="create", redact=self._redact)
            ours.should_retry = not isinstance(ours, (ProviderFailed, ProviderTimeout))
            # An answer below 500 is a refusal; without one, or after a 5xx, there may be a batch.
            status = status_of(error)
            raise SubmitFailed(ours, maybe_created=creating and (status is None or status >= 500)) from None

    def retrieve(self, provider: str, batch_id: str) -> Batch:
        """Ask after a batch; simultaneous questions after the same one are asked once."""
        return self._control(
            provider, "retrieve", lambda adapter: adapter.retrieve(batch_id), batch_id, shared=True
        )

    def retrieve_many(self, wanted: Sequence[tuple[str, str]]) -> Sequence[Batch | None]:
        """Ask after batches, several at a time; None for those that give no answer soon.

        Args:
            wanted: The provider and the id of each.
        """
        turns = asyncio.Semaphore(_AT_ONCE)

        adapters: dict[str, Adapter] = {}
        for provider, _ in wanted:
            try:
                adapters[provider] = self._kept(self._find(provider))
            except Exception as error:  # noqa: BLE001  # it is not configured any more, or not as it was
                as_ours(error, provider=provider, call="list", redact=self._redact)

        async def ask(provider: str, batch_id: str) -> Batch | None:
            if provider not in adapters:
                return None
            try:
                async with asyncio.timeout(min(_SOON, self._settings.timeout)), turns:
                    return await adapters[provider].retrieve(batch_id)
            except Exception as error:  # noqa: BLE001  # whatever a provider or an SDK raises
                as_ours(error, provider=provider, call="list", redact=self._redact, batch_id=batch_id)
                return None

        async def ask_all() -> list[Batch | None]:
            return await asyncio.gather(*(ask(*one) for one in wanted))

        with suppress(TimeoutError):
            if adapters:
                return self._bridge.run(ask_all(), 2 * _SOON)
        return [None] * len(wanted)

    def kind_of(self, provider: str) -> str:
        """Give any-llm's name of a provider."""
        return self._find(provider).kind

    def cancel(self, provider: str, batch_id: str) -> Batch:
        """Ask for a batch to be cancelled."""
        try:
            return self._control(provider, "cancel", lambda adapter: adapter.cancel(batch_id), batch_id)
        finally:
            self._bridge.part((provider, batch_id))

    def list(self, provider: str, *, after: str | None, limit: int) -> Page:
        """List what the provider has, newest first.

        Raises:
            ValidationFailed: The provider has no batch ``after``.
        """
        try:
            return self._control(provider, "list", lambda adapter: adapter.list(after, limit), after)
        except BatchNotFound:
            raise ValidationFailed({"after": ["Not the id of a batch in this list."]}) from None

    def rows(self, batch: Batch, *, beat: float) -> Iterator[Sequence[Row] | None]:
        """Give the rows of a batch that has ended, some at a time; None after ``beat`` silent seconds.

        A reader who stops ends the download.

        Raises:
            BatchNotComplete: any-llm gives none of a batch of this status.
            ResultsGone: There are none any more.
        """
        provider, batch_id = batch.provider, batch.id
        try:
            found = self._find(provider)
            if not adapter_class(found.kind).streams_results:
                yield from _in_groups(self._apart(found, lambda adapter: adapter.results(batch)))
                return
            adapter = self._kept(found)
            download = self._bridge.iterate(
                lambda: adapter.download(batch), beat=beat, timeout=self._settings.transfer_timeout
            )
            with closing(download):
                yield from read_rows(download, adapter, batch)
        except Exception as error:  # noqa: BLE001  # whatever a provider or an SDK raises
            if type(error).__name__ == "BatchNotCompleteError":
                status = str(getattr(error, "batch_status", "unknown"))
                raise BatchNotComplete(batch_id, status=status, provider=provider) from None
            ours = as_ours(error, provider=provider, call="results", redact=self._redact, batch_id=batch_id)
            if isinstance(ours, BatchNotFound):  # the batch was there a moment ago
                ours = ResultsGone(batch_id, provider=provider)
            raise ours from None

    def _control(
        self,
        provider: str,
        call: str,
        ask: Callable[[Adapter], Coroutine[Any, Any, T]],
        batch_id: str | None = None,
        *,
        shared: bool = False,
    ) -> T:
        try:
            adapter = self._kept(self._find(provider))
            if shared:
                return self._bridge.run_shared(
                    (provider, batch_id), lambda: ask(adapter), self._settings.timeout
                )
            return self._bridge.run(ask(adapter), self._settings.timeout)
        except Exception as error:  # noqa: BLE001  # whatever a provider or an SDK raises
            raise as_ours(
                error, provider=provider, call=call, redact=self._redact, batch_id=batch_id
            ) from None

    def _apart(self, provider: ProviderSettings, work: Callable[[Adapter], Coroutine[Any, Any, T]]) -> T:
        async def with_client_of_its_own() -> T:
            adapter = self._adapter(provider)
            try:
                return await work(adapter)
            finally:
                await adapter.close()

        return self._bridge.run_apart(with_client_of_its_own, self._settings.transfer_timeout)

    def _kept(self, provider: ProviderSettings) -> Adapter:
        return self._bridge.keep(provider.name, lambda: self._adapter(provider), Adapter.close)

    def _adapter(self, provider: ProviderSettings) -> Adapter:
        return adapter_class(provider.kind)(
            self._client(provider), provider.name, self._redact, provider.batch_args
        )

    def _client(self, provider: ProviderSettings) -> AnyLLM:
        from any_llm import AnyLLM
        from any_llm.exceptions import UnsupportedParameterError

        arguments: dict[str, Any] = {
            "api_key": provider.api_key,
            "api_base": provider.api_base,
            "unified_exceptions": True,
            **provider.client_args,
        }
        try:
            # An SDK that repeats a create makes two batches.
            return AnyLLM.create(provider.kind, max_retries=0, **arguments)
        except UnsupportedParameterError:
            return AnyLLM.create(provider.kind, **arguments)  # Mistral's, which repeats nothing by itself

    def _find(self, name: str) -> ProviderSettings:
        wanted = name.strip().lower()
        if (found := self._supported.get(wanted)) is not None:
            return found
        configured = self._settings.providers
        if configured is not None and wanted not in configured:
            raise UnknownProvider(
                f"Unknown provider '{name}': this server has "
                + ", ".join(sorted(entry.name for entry in configured.values())),
                param="provider",
            )
        provider = configured[wanted] if configured is not None else ProviderSettings(wanted, wanted)
        self._check_support(provider, asked_for=name)
        self._supported[wanted] = provider
        return provider

    def _check_support(self, provider: ProviderSettings, *, asked_for: str) -> None:
        from any_llm import AnyLLM
        from any_llm.exceptions import UnsupportedProviderError

        try:
            kind = AnyLLM.get_provider_class(provider.kind)
        except UnsupportedProviderError:
            raise UnknownProvider(f"Unknown provider '{asked_for}'", param="provider") from None
        except ImportError as error:
            needed = ImportError(f"{error}; pip install 'any-llm-sdk[{provider.kind}]'")
            raise as_ours(needed, provider=provider.name, call="import", redact=self._redact) from None
        if not kind.SUPPORTS_BATCH:
            raise UnsupportedProvider(
                f"Provider '{provider.name}' does not support batch operations", param="provider"
            )
        self._redact.learn(kind.ENV_API_KEY_NAME)


def _in_groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), _GROUP):
        yield rows[start : start + _GROUP]


def _check_kinds(settings: Settings) -> None:
    """Find misspelt providers at start-up, in any-llm's folder: importing it would take two seconds."""
    spec = find_spec("any_llm")
    folder = (
        Path(spec.submodule_search_locations[0], "providers")
        if spec and spec.submodule_search_locations
        else None
    )
    if folder is None or not folder.is_dir():
        return
    registry = folder / "registry.py"
    in_registry = registry.read_text(encoding="utf-8") if registry.is_file() else ""
    for provider in (settings.providers or {}).values():
        if not (folder / provider.kind).is_dir() and f'"{provider.kind}"' not in in_registry:
            raise ConfigurationError(
                f"LLM_BATCHES_PROVIDERS[{provider.name!r}]: any-llm has no provider {provider.kind!r}; "
                'an entry with a name of its own says which one it is: {"provider": "openai", ...}'
            )


def _check_batch_args(settings: Settings) -> None:
    for provider in (settings.providers or {}).values():
        known = adapter_class(provider.kind).known_args
        for argument in provider.batch_args:
            if known is not None and argument not in known:
                raise ConfigurationError(
                    f"LLM_BATCHES_PROVIDERS[{provider.name!r}]['batch_args'] must not have {argument!r}: "
                    f"{provider.kind} takes {', '.join(sorted(known))} only"
                )
