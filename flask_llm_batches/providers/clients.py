"""The configured providers, called from synchronous code.

``any_llm`` is imported at the first call to a provider, because the import takes two seconds. Commands of the
host app that need no provider, such as ``flask routes``, stay fast.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from flask_llm_batches.batch import Batch, Row
from flask_llm_batches.config import ProviderSettings, Settings
from flask_llm_batches.errors import (
    BatchNotComplete,
    BatchNotFound,
    LLMBatchesError,
    NotStored,
    ProviderFailed,
    ProviderTimeout,
    ResultsGone,
    ValidationFailed,
)
from flask_llm_batches.providers.adapters import Adapter, Page, Submission, adapter_class
from flask_llm_batches.providers.bridge import Bridge
from flask_llm_batches.providers.entries import Entries
from flask_llm_batches.providers.failures import is_refusal, to_our_error
from flask_llm_batches.providers.http import noted_dates
from flask_llm_batches.providers.rows import read_rows
from flask_llm_batches.tracing import span

T = TypeVar("T")

# The seconds in which a list refreshes its batches, and how many it refreshes at the same time.
_REFRESH_SECONDS, _REFRESH_CONCURRENCY = 3.0, 10

_ROWS_PER_GROUP = 500  # rows of an SDK's list that are yielded at a time


class SubmitFailed(Exception):
    """A submit failed.

    Attributes:
        error: The error for the caller.
        maybe_created: Whether the provider may have made the batch.
    """

    def __init__(self, error: LLMBatchesError, *, maybe_created: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.maybe_created = maybe_created


class Withdrawn(Exception):
    """A batch is not to be submitted any more; raised by ``before_create``."""


class Providers:
    """The providers of one app. Safe to use from several threads, and after a fork.

    Every call raises the errors that ``failures.to_our_error`` returns.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bridge = Bridge()
        self._entries = Entries(settings)
        self._redact = self._entries.redact

    def name_of(self, name: str) -> str:
        """Return a provider's name as the record has it.

        Raises:
            UnknownProvider: There is no provider with that name.
            UnsupportedProvider: It has no batch API.
        """
        return self._entries.named(name).name

    def has(self, name: str) -> bool:
        """Return whether a provider is in the settings."""
        return self._entries.has(name)

    def check(self, name: str) -> None:
        """Check that a provider can be called, without calling it.

        Raises:
            ProviderNotConfigured: Its key or package is missing, or it is not in the settings.
        """
        try:
            self._kept(self._entries.of(name))
        except Exception as error:  # noqa: BLE001  # an SDK may raise anything
            raise to_our_error(error, provider=name, call="check", redact=self._redact) from None

    def clock_offset(self, name: str) -> float | None:
        """Call a provider, and return by how many seconds its clock is ahead; None if it does not say."""

        async def list_one(adapter: Adapter) -> Sequence[str]:
            with noted_dates() as dates:
                await adapter.list(None, 1)
            return dates

        dates = self._call(name, "check", list_one)
        with suppress(ValueError):
            return parsedate_to_datetime(dates[-1]).timestamp() - time.time() if dates else None
        return None

    def adapter_of(self, name: str) -> type[Adapter]:
        """Return the adapter class of a provider."""
        return adapter_class(self._entries.of(name).kind)

    def submit(
        self,
        provider: str,
        spool: Path,
        submission: Submission,
        *,
        before_create: Callable[[], None] | None = None,
    ) -> Batch:
        """Submit a batch, once: neither this code nor the SDK retries it.

        Args:
            provider: The provider's name.
            spool: The file with the requests.
            submission: What is submitted besides the requests.
            before_create: Called in another thread when the requests are uploaded. Until then, there is
                certainly no batch. What it raises ends the submit.

        Raises:
            SubmitFailed: It failed, or its outcome is not known.
        """
        creating = False

        async def submit(adapter: Adapter) -> Batch:
            nonlocal creating
            uploaded = await adapter.upload(spool)
            if before_create is not None:
                await asyncio.to_thread(before_create)
            creating = True
            return await adapter.create(uploaded, submission)

        try:
            found = self._entries.of(provider)
            with span("provider.create", provider=provider):
                if adapter_class(found.kind).streams_upload:
                    return self._bridge.run(submit(self._kept(found)), self._settings.transfer_timeout)
                return self._call_with_own_client(found, submit)
        except Withdrawn:
            raise
        except Exception as error:  # noqa: BLE001  # a provider or an SDK may raise anything
            ours = to_our_error(error, provider=provider, call="create", redact=self._redact)
            maybe_created = creating and not is_refusal(error)
            if maybe_created and not isinstance(ours, ProviderTimeout):
                ours = ProviderFailed(
                    "LLM provider error"
                )  # a 409, for example, must not look like a refusal
            ours.should_retry = not isinstance(ours, (ProviderFailed, ProviderTimeout))
            raise SubmitFailed(ours, maybe_created=maybe_created) from None

    def retrieve(self, provider: str, batch_id: str) -> Batch:
        """Retrieve a batch from its provider. Simultaneous calls for the same batch share one request."""
        return self._call(
            provider,
            "retrieve",
            lambda adapter: _check_id(batch_id, adapter.retrieve(batch_id)),
            batch_id,
            shared=True,
        )

    def retrieve_many(self, wanted: Sequence[tuple[str, str]]) -> Sequence[Batch | BatchNotFound | None]:
        """Retrieve several batches from their providers.

        Args:
            wanted: Pairs of a provider and a batch id.

        Returns:
            For each pair the batch, the error if there is no such batch, or None if no answer came in time.
        """
        turns = asyncio.Semaphore(_REFRESH_CONCURRENCY)

        adapters: dict[str, Adapter] = {}
        for provider, _ in wanted:
            try:
                adapters[provider] = self._kept(self._entries.of(provider))
            except Exception as error:  # noqa: BLE001  # it was removed from the settings, or changed
                to_our_error(error, provider=provider, call="list", redact=self._redact)

        async def ask(provider: str, batch_id: str) -> Batch | BatchNotFound | None:
            if provider not in adapters:
                return None
            try:
                async with asyncio.timeout(min(_REFRESH_SECONDS, self._settings.timeout)), turns:
                    return await _check_id(batch_id, adapters[provider].retrieve(batch_id))
            except Exception as error:  # noqa: BLE001  # a provider or an SDK may raise anything
                ours = to_our_error(
                    error, provider=provider, call="list", redact=self._redact, batch_id=batch_id
                )
                return ours if isinstance(ours, BatchNotFound) else None

        async def ask_all() -> list[Batch | BatchNotFound | None]:
            return await asyncio.gather(*(ask(*one) for one in wanted))

        with suppress(TimeoutError):
            if adapters:
                with span("provider.retrieve", batches=len(wanted)):
                    return self._bridge.run(ask_all(), 2 * _REFRESH_SECONDS)
        return [None] * len(wanted)

    def kind_of(self, provider: str) -> str:
        """Return any-llm's name of a provider."""
        return self._entries.of(provider).kind

    def cancel(self, provider: str, batch_id: str) -> Batch:
        """Ask the provider to cancel a batch."""
        try:
            return self._call(
                provider, "cancel", lambda adapter: _check_id(batch_id, adapter.cancel(batch_id)), batch_id
            )
        finally:
            self._bridge.stop_sharing((provider, batch_id))

    def list(self, provider: str, *, after: str | None, limit: int) -> Page:
        """List what the provider has, newest first.

        Raises:
            ValidationFailed: The provider has no batch ``after``.
        """
        try:
            return self._call(provider, "list", lambda adapter: adapter.list(after, limit), after)
        except BatchNotFound:
            raise ValidationFailed.of("Not the id of a batch in this list.", "after") from None

    def page(self, provider: str, cursor: str | None, *, limit: int) -> tuple[Page, str | None]:
        """Return the page at a cursor (None: the first page), and the cursor of the next page."""
        return self._call(provider, "list", lambda adapter: adapter.page(cursor, limit))

    def rows(self, batch: Batch, *, beat: float) -> Iterator[Sequence[Row] | None]:
        """Yield the rows of a batch that has ended, in groups; None after ``beat`` seconds without rows.

        Closing the generator ends the download.

        Raises:
            BatchNotComplete: any-llm returns no rows of a batch with this status.
            ResultsGone: The provider no longer has them.
        """
        try:
            found = self._entries.of(batch.provider)
            if not adapter_class(found.kind).streams_results:
                yield from _in_groups(
                    self._call_with_own_client(found, lambda adapter: adapter.results(batch))
                )
                return
            adapter = self._kept(found)
            download = self._bridge.iterate(
                lambda: adapter.download(batch), beat=beat, timeout=self._settings.transfer_timeout
            )
            with span("provider.results", current=False, provider=batch.provider), closing(download):
                yield from read_rows(download, adapter, batch, beat=beat)
        except Exception as error:  # noqa: BLE001  # a provider or an SDK may raise anything
            raise self._results_error(error, batch) from None

    def input(self, batch: Batch) -> Iterator[bytes]:
        """Yield the bytes of a batch's input file, in chunks that end anywhere.

        Raises:
            NotStored: The provider has no such file, or keeps none.
        """
        try:
            found = self._entries.of(batch.provider)
            if not adapter_class(found.kind).leaves_files or not batch.input_file_id:
                raise NotStored(batch.id)
            asked = replace(batch, output_file_id=batch.input_file_id, error_file_id=None)
            adapter = self._kept(found)
            download = self._bridge.iterate(
                lambda: adapter.download(asked), beat=1.0, timeout=self._settings.transfer_timeout
            )
            with closing(download):
                yield from (chunk for chunk in download if chunk is not None)
        except NotStored:
            raise
        except Exception as error:  # noqa: BLE001  # a provider or an SDK may raise anything
            ours = self._results_error(error, batch)
            if isinstance(ours, ResultsGone):
                raise NotStored(batch.id) from None
            raise ours from None

    def _results_error(self, error: Exception, batch: Batch) -> LLMBatchesError:
        provider, batch_id = batch.provider, batch.id
        if type(error).__name__ == "BatchNotCompleteError":
            status = str(getattr(error, "batch_status", "unknown"))
            return BatchNotComplete(batch_id, status=status, provider=provider)
        ours = to_our_error(error, provider=provider, call="results", redact=self._redact, batch_id=batch_id)
        # The batch existed a moment ago, so it is its results that are gone.
        return ResultsGone(batch_id, provider=provider) if isinstance(ours, BatchNotFound) else ours

    def _call(
        self,
        provider: str,
        call: str,
        ask: Callable[[Adapter], Coroutine[Any, Any, T]],
        batch_id: str | None = None,
        *,
        shared: bool = False,
    ) -> T:
        try:
            adapter = self._kept(self._entries.of(provider))
            with span(f"provider.{call}", provider=provider):
                if shared:
                    return self._bridge.run_shared(
                        (provider, batch_id), lambda: ask(adapter), self._settings.timeout
                    )
                return self._bridge.run(ask(adapter), self._settings.timeout)
        except Exception as error:  # noqa: BLE001  # a provider or an SDK may raise anything
            raise to_our_error(
                error, provider=provider, call=call, redact=self._redact, batch_id=batch_id
            ) from None

    def _call_with_own_client(
        self, provider: ProviderSettings, work: Callable[[Adapter], Coroutine[Any, Any, T]]
    ) -> T:
        async def with_own_client() -> T:
            adapter = self._entries.adapter(provider)
            try:
                return await work(adapter)
            finally:
                await adapter.close()

        return self._bridge.run_apart(with_own_client, self._settings.transfer_timeout)

    def _kept(self, provider: ProviderSettings) -> Adapter:
        return self._bridge.keep(provider.name, lambda: self._entries.adapter(provider), Adapter.close)


async def _check_id(batch_id: str, answer: Awaitable[Batch]) -> Batch:
    """Return the answer if its id is ``batch_id``.

    Raises:
        BatchNotFound: The ids differ only in case.
        ValueError: The answer is another batch.
    """
    batch = await answer
    if batch.id == batch_id:
        return batch
    if batch.id.casefold() == batch_id.casefold():
        raise BatchNotFound(f"Batch '{batch_id}' not found")
    raise ValueError(f"the answer is batch {batch.id}")


def _in_groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), _ROWS_PER_GROUP):
        yield rows[start : start + _ROWS_PER_GROUP]
