"""The service: all that the endpoints, the commands and the host's own code call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from flask_llm_batches.batch import Batch
from flask_llm_batches.config import Settings
from flask_llm_batches.core.adoption import Adopter
from flask_llm_batches.core.archive import Archive
from flask_llm_batches.core.create import DEFAULT_ENDPOINT, Asked, Checked, Creator
from flask_llm_batches.core.handlers import Handlers
from flask_llm_batches.core.heartbeat import Heartbeat
from flask_llm_batches.core.idempotency import Idempotency
from flask_llm_batches.core.keys import Keys
from flask_llm_batches.core.lists import Lists
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.operations import Operations
from flask_llm_batches.core.reconcile import Reconciler
from flask_llm_batches.core.requests import Incoming, Requests
from flask_llm_batches.core.results import ResultReader, Results
from flask_llm_batches.core.webhooks import Events, Targets
from flask_llm_batches.core.worker.alive import WorkerAlive
from flask_llm_batches.core.worker.archive import ArchiveResults
from flask_llm_batches.core.worker.deliver import Deliver
from flask_llm_batches.core.worker.expire import Expire
from flask_llm_batches.core.worker.notify import Notify
from flask_llm_batches.core.worker.refresh import Refresh
from flask_llm_batches.core.worker.run import Runner
from flask_llm_batches.core.worker.steps import Step
from flask_llm_batches.core.worker.tick import Ticker
from flask_llm_batches.log import get_logger
from flask_llm_batches.principal import Owner, Principal, owner_name, owner_or_everyone
from flask_llm_batches.providers.adapters import Page
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.storage.backends import backend_at
from flask_llm_batches.storage.storage import Storage
from flask_llm_batches.store.api_keys import ApiKeys
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.chunks import Chunks
from flask_llm_batches.store.database import Database
from flask_llm_batches.store.deliveries import Deliveries
from flask_llm_batches.store.idempotency import IdempotencyKeys
from flask_llm_batches.store.manifests import Manifests
from flask_llm_batches.store.purge import Purge
from flask_llm_batches.store.searches import Searches
from flask_llm_batches.store.tasks import Tasks, Workers
from flask_llm_batches.store.usage import UsageSum, UsageSums
from flask_llm_batches.store.webhooks import Webhooks

logger = get_logger(__name__)

NO_WORKER = "No worker is alive: on_results and webhooks need one, such as flask llm-batches worker."


class Service(Operations):
    """The batches of one app; ``current_llm_batches`` is the current app's.

    Every call names the ``owner`` whose batches it is about: a string, the ``Principal`` who calls, or
    ``EVERYONE``. Every call needs an app context, and raises ``LLMBatchesError``s and nothing else, except
    for an ``owner`` that names nobody: None is a ``TypeError``, a bad name is a ``ValueError``.

    Attributes:
        settings: The app's ``LLM_BATCHES_*``.
        keys: The built-in API keys.
        handlers: The functions that take results, by name.
        webhooks: The targets of webhooks, by name.
    """

    def __init__(
        self, settings: Settings, database: Database, providers: Providers, handlers: Handlers
    ) -> None:
        self.settings = settings
        self.handlers = handlers
        self.webhooks = Targets(settings.webhooks)
        self.keys = Keys(ApiKeys(database))
        self._database = database
        self._usage = UsageSums(database)
        self._purge = Purge(database)
        self._storage = Storage(backend_at(settings.storage, settings.spool_dir) or Chunks(database))
        self._providers = providers
        batches, heartbeat = Batches(database), Heartbeat()
        self._adopter = Adopter(batches, providers)
        self._reconciler = Reconciler(
            settings, batches, Searches(database), providers, heartbeat, self._adopter
        )
        idempotency = Idempotency(IdempotencyKeys(database), batches, self._reconciler)
        self._creator = Creator(settings, batches, providers, idempotency, heartbeat)
        workers = Workers(database)
        self._worker_alive = WorkerAlive(workers)
        self._lookup = Lookup(
            settings, batches, providers, self._reconciler, self._adopter, self._worker_alive
        )
        self._archive = Archive(self._storage)
        self._lists = Lists(batches, providers, self._reconciler, self._adopter, self._lookup)
        self._results = ResultReader(batches, Manifests(database), providers, self._archive)
        self._deliveries = Deliveries(database)
        self._deliver = Deliver(handlers, self._archive, self._deliveries, retention=settings.retention)
        self._webhooks, tasks = Webhooks(database), Tasks(database)
        self._events = Events(settings.providers, batches, tasks)
        steps: dict[str, Step] = {
            "refresh": Refresh(self._lookup, self._reconciler, self.webhooks),
            "archive": ArchiveResults(self._lookup, self._results, retention=settings.retention),
            "deliver": self._deliver,
            "expire": Expire(self._results),
            "notify": Notify(self.webhooks, self._webhooks),
        }
        self._ticker = Ticker(tasks, batches, heartbeat, steps)
        self._runner = Runner(self._ticker, workers)

    def create(
        self,
        *,
        owner: str | Principal,
        requests: Requests,
        model: str | None = None,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        requested_by: str | None = None,
        idempotency_key: str | None = None,
        on_results: str | None = None,
        webhook: str | None = None,
    ) -> Batch:
        """Submit a batch, once.

        Args:
            owner: Whose the batch will be.
            requests: A ``{"custom_id": ..., "body": {...}}`` each; or JSONL, as a ``pathlib.Path``, a file
                that is open for reading bytes, or lines of bytes; or the bytes of a JSON array.
            model: ``provider:model``; it goes into the body of every request, which may name no other. May
                be left out if every request names it, as ``provider:model``.
            completion_window: How long the provider may take.
            metadata: At most 15 pairs, which providers with metadata keep with the batch.
            endpoint: The endpoint that every request is for.
            requested_by: Who asks, for the usage; the owner by default.
            idempotency_key: A create that is repeated with the same key returns the first batch.
            on_results: The name of a handler that a worker calls with the rows.
            webhook: The name of a webhook in ``LLM_BATCHES_WEBHOOKS`` that a worker sends when it has ended.

        Returns:
            The batch. Its ``replayed`` is true if an earlier create with the same key made it.
        """
        name = owner_name(owner)
        if idempotency_key is not None:
            Idempotency.check(idempotency_key)
        incoming = Incoming(requests, limit=self.settings.max_requests)
        asked = self._ask(model, endpoint, completion_window, metadata, incoming, on_results, webhook)
        by = owner_name(requested_by or name)
        return self._creator.create(asked, incoming, owner=name, requested_by=by, key=idempotency_key)

    def check(
        self,
        *,
        owner: str | Principal,
        requests: Requests,
        model: str | None = None,
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        idempotency_key: str | None = None,
        on_results: str | None = None,
        webhook: str | None = None,
    ) -> Checked:
        """Check a batch as ``create`` does. Nothing is submitted or kept."""
        owner_name(owner)
        if idempotency_key is not None:
            Idempotency.check(idempotency_key)
        incoming = Incoming(requests, limit=self.settings.max_requests)
        asked = self._ask(model, endpoint, completion_window, metadata, incoming, on_results, webhook)
        checked = self._creator.check(asked, incoming)
        warnings = [*checked.warnings, *([NO_WORKER] if self._lacks_worker(asked) else [])]
        return checked._replace(warnings=warnings)

    def _ask(
        self,
        model: str | None,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None,
        requests: Incoming,
        on_results: str | None,
        webhook: str | None,
    ) -> Asked:
        if on_results is not None:
            self.handlers.check(on_results)
        if webhook is not None:
            self.webhooks.check(webhook)
        asked = self._creator.ask(model, endpoint, completion_window, metadata, requests)
        asked = asked._replace(on_results=on_results, webhook=webhook)
        if self._lacks_worker(asked):
            logger.warning(NO_WORKER)
        return asked

    def _lacks_worker(self, asked: Asked) -> bool:
        return (asked.on_results, asked.webhook) != (None, None) and not self._worker_alive()

    def retrieve(self, batch_id: str, *, owner: Owner, provider: str | None = None) -> Batch:
        """Return a batch as it is now. A batch that has ended is read from the record.

        If its provider is not in the settings any more, that is a batch as it was last seen.

        Args:
            batch_id: The provider's id. A batch whose create got no answer is listed with an id of ours,
                which leads to it for good.
            owner: Whose batch it must be.
            provider: Whose id it is; may be left out for a batch that was made here.
        """
        return self._lookup.last_known(batch_id, owner=owner_or_everyone(owner), provider=provider)

    def cancel(self, batch_id: str, *, owner: Owner, provider: str | None = None) -> Batch:
        """Ask the provider to cancel a batch. Requests that it has finished by then are billed.

        Raises:
            BatchNotComplete: The batch is being submitted, or looked for at the provider.
        """
        return self._lookup.cancel(batch_id, owner=owner_or_everyone(owner), provider=provider)

    def list(
        self,
        *,
        owner: Owner,
        provider: str | None = None,
        status: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page:
        """List batches, newest first.

        An owner's batches are from the record, and so are all batches with a status. For ``EVERYONE`` without
        a status, it is what the provider has. Running batches of the record are refreshed, unless another
        list did so two seconds ago.

        Args:
            owner: Whose batches.
            provider: Only batches at this provider; required for ``EVERYONE`` without a status.
            status: Only batches with this status.
            after: The id of the last batch of the previous page.
            limit: The length of the page, 1 to 100.
        """
        return self._lists.list(
            owner=owner_or_everyone(owner), provider=provider, status=status, after=after, limit=limit
        )

    def results(
        self,
        batch_id: str,
        *,
        owner: Owner,
        provider: str | None = None,
        status: Literal["succeeded", "failed"] | None = None,
        requested_by: str | None = None,
        keep_waiting: Callable[[], bool] = lambda: True,
    ) -> Results:
        """Read the results of a batch. The first time that all are read, they are accounted for.

        A batch that expired or was cancelled has the results that were finished before, and an error for
        every other request.

        Args:
            batch_id: The provider's id.
            owner: Whose batch it must be.
            provider: Whose id it is; may be left out for a batch that was made here.
            status: Only the rows that have a result, or only those that have an error.
            requested_by: Who asks, for the usage; the owner by default.
            keep_waiting: Called while the provider is silent: whether to keep waiting for the first rows.
                If not, what goes wrong before them is raised when they are read.

        Raises:
            BatchNotComplete: The batch still runs, or is being submitted or looked for at the provider.
            BatchFailed: The batch failed before any request ran.
            ResultsGone: The provider no longer has the results.
        """
        name = owner_or_everyone(owner)
        batch, record = self._lookup.ended(batch_id, owner=name, provider=provider)
        by = owner_name(requested_by or name or (record.owner if record is not None else "everyone"))
        return self._results.read(batch, record, status=status, requested_by=by, keep_waiting=keep_waiting)

    def check_results(self, batch_id: str, *, owner: Owner, provider: str | None = None) -> None:
        """Raise what ``results`` raises if a batch has no results, without fetching anything."""
        self._lookup.ended(batch_id, owner=owner_or_everyone(owner), provider=provider)

    def usage(
        self,
        *,
        owner: Owner,
        since: int | None = None,
        until: int | None = None,
        group_by: Literal["owner", "model", "provider", "day", "batch"] | None = None,
    ) -> Sequence[UsageSum]:
        """Sum up the usage. Batches count when they are created, tokens and cost when results are first read.

        Args:
            owner: Whose usage.
            since: Only what happened at this time or later, as Unix seconds.
            until: Only what happened before this time, as Unix seconds.
            group_by: One sum for each of them; by default one sum. At most 10,000 batches.
        """
        return self._usage.sums(group_by=group_by, owner=owner_or_everyone(owner), since=since, until=until)

    def release_connection(self) -> None:
        """Release the connection on which the host's ``db.session`` has only read.

        The endpoints do this before every provider call, which may take minutes. A session that has changed
        something, or may have, is left alone. The methods above leave every session alone.
        """
        self._database.release_connection()
