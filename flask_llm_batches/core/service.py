"""The service: all that the endpoints, the commands and the host's own code call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from flask_llm_batches.batch import Batch
from flask_llm_batches.config import Settings
from flask_llm_batches.core.adoption import Adopter
from flask_llm_batches.core.archive import Archive
from flask_llm_batches.core.checkup import Checkup
from flask_llm_batches.core.create import Creator
from flask_llm_batches.core.detail import Detail, Details
from flask_llm_batches.core.estimates import Estimates
from flask_llm_batches.core.files import Files
from flask_llm_batches.core.handlers import Handlers
from flask_llm_batches.core.heartbeat import Heartbeat
from flask_llm_batches.core.idempotency import Idempotency
from flask_llm_batches.core.inspections import Inspections
from flask_llm_batches.core.keys import Keys
from flask_llm_batches.core.lanes import Dispatcher
from flask_llm_batches.core.limits import Limiter
from flask_llm_batches.core.lists import Lists
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.models import Models
from flask_llm_batches.core.operations import Operations
from flask_llm_batches.core.parts import Parts
from flask_llm_batches.core.queue import FileBatches
from flask_llm_batches.core.reconcile import Reconciler
from flask_llm_batches.core.results import ResultReader, Results
from flask_llm_batches.core.retry import Retrier
from flask_llm_batches.core.sources import Sources
from flask_llm_batches.core.submissions import Submissions
from flask_llm_batches.core.waiting import Waiting
from flask_llm_batches.core.webhooks import Events, Targets
from flask_llm_batches.core.worker.alive import WorkerAlive
from flask_llm_batches.core.worker.archive import ArchiveResults
from flask_llm_batches.core.worker.deliver import Deliver
from flask_llm_batches.core.worker.expire import Expire
from flask_llm_batches.core.worker.notify import Notify
from flask_llm_batches.core.worker.refresh import Refresh
from flask_llm_batches.core.worker.run import Runner
from flask_llm_batches.core.worker.steps import Step
from flask_llm_batches.core.worker.submit import Submit
from flask_llm_batches.core.worker.tick import Ticker
from flask_llm_batches.log import get_logger
from flask_llm_batches.principal import Owner, owner_name, owner_or_everyone
from flask_llm_batches.providers.adapters import Page
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.storage.backends import backend_at
from flask_llm_batches.storage.storage import Storage
from flask_llm_batches.store.api_keys import ApiKeys
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.chunks import Chunks
from flask_llm_batches.store.database import Database
from flask_llm_batches.store.deliveries import Deliveries
from flask_llm_batches.store.files import Files as FileRecords
from flask_llm_batches.store.health import Health
from flask_llm_batches.store.idempotency import IdempotencyKeys
from flask_llm_batches.store.lanes import Lanes
from flask_llm_batches.store.manifests import Manifests
from flask_llm_batches.store.parts import Parts as PartRecords
from flask_llm_batches.store.purge import Purge
from flask_llm_batches.store.queue import Queue
from flask_llm_batches.store.searches import Searches
from flask_llm_batches.store.tasks import Tasks, Workers
from flask_llm_batches.store.usage import UsageSum, UsageSums
from flask_llm_batches.store.webhooks import Webhooks

logger = get_logger(__name__)


class Service(Submissions, Operations, Inspections):
    """The batches of one app; ``current_llm_batches`` is the current app's.

    Every call names the ``owner`` whose batches it is about: a string, the ``Principal`` who calls, or
    ``EVERYONE``. Every call needs an app context, and raises ``LLMBatchesError``s and nothing else, except
    for an ``owner`` that names nobody: None is a ``TypeError``, a bad name is a ``ValueError``.

    Attributes:
        settings: The app's ``LLM_BATCHES_*``.
        keys: The built-in API keys.
        files: The files of OpenAI's API.
        models: The names of models that callers use.
        handlers: The functions that take results, by name.
        webhooks: The targets of webhooks, by name.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        providers: Providers,
        handlers: Handlers,
        limiter: Limiter,
    ) -> None:
        self.settings = settings
        self.handlers = handlers
        self.webhooks = Targets(settings.webhooks)
        self.keys = Keys(ApiKeys(database))
        self._database = database
        self._usage = UsageSums(database)
        self._purge = Purge(database)
        self._storage = Storage(backend_at(settings.storage, settings.spool_dir) or Chunks(database))
        self._checkup = Checkup(settings, providers, handlers, self._storage, Health(database))
        retention = settings.retention
        self._providers = providers
        batches, heartbeat = Batches(database), Heartbeat()
        self._adopter = Adopter(batches, providers)
        self._reconciler = Reconciler(
            settings, batches, Searches(database), providers, heartbeat, self._adopter
        )
        idempotency = Idempotency(IdempotencyKeys(database), batches, self._reconciler)
        self.models = Models(settings, providers)
        workers, queue, lanes = Workers(database), Queue(database), Lanes(database)
        file_records = FileRecords(database)
        self._worker_alive = WorkerAlive(workers)
        self._sources = sources = Sources(settings, self._storage, file_records, providers)
        estimates = Estimates(providers)
        waiting = Waiting(batches, queue, sources, self._worker_alive)
        self._creator = Creator(
            settings,
            batches,
            providers,
            self.models,
            idempotency,
            heartbeat,
            sources,
            waiting,
            limiter,
            estimates,
        )
        part_records = PartRecords(database)
        self._parts = Parts(
            batches,
            part_records,
            queue,
            lanes,
            sources,
            providers,
            self.webhooks,
            retention=retention,
        )
        self._batches = batches
        self._lookup = Lookup(
            settings,
            batches,
            queue,
            providers,
            self._reconciler,
            self._adopter,
            self._parts,
            self._worker_alive,
            self._advance,
        )
        self._archive = Archive(self._storage)
        self._lists = Lists(batches, providers, self._reconciler, self._adopter, self._lookup)
        self._results = ResultReader(
            batches, Manifests(database), providers, self._archive, self._lookup, self._parts
        )
        self.files = Files(
            file_records, self._storage, batches, self._lookup, self._results, retention=retention
        )
        self._details = Details(self._lookup, batches, part_records)
        self._retrier = Retrier(
            self._lookup,
            self._results,
            self._parts,
            sources,
            providers,
            batches,
            idempotency,
            limiter,
            estimates,
        )
        self._file_batches = FileBatches(
            self._creator,
            batches,
            queue,
            self.files,
            self.models,
            providers,
            idempotency,
            waiting,
            limiter,
            estimates,
            max_requests=settings.max_requests,
        )
        self._deliveries = Deliveries(database)
        self._deliver = Deliver(handlers, self._archive, self._deliveries, retention=retention)
        self._webhooks, tasks = Webhooks(database), Tasks(database)
        self._events = Events(settings.providers, batches, tasks)
        dispatcher = Dispatcher(self._creator, batches, queue, lanes, self._parts, sources, heartbeat)
        steps: dict[str, Step] = {
            "submit": Submit(self._file_batches, batches, dispatcher, self.webhooks),
            "refresh": Refresh(self._lookup, self._reconciler, self._parts, self.webhooks),
            "archive": ArchiveResults(self._lookup, self._results, self._parts, retention=retention),
            "deliver": self._deliver,
            "expire": Expire(self._results),
            "notify": Notify(self.webhooks, self._webhooks),
        }
        self._ticker = Ticker(tasks, batches, heartbeat, steps)
        self._runner = Runner(self._ticker, workers, self.files)

    def retrieve(self, batch_id: str, *, owner: Owner, provider: str | None = None) -> Batch:
        """Return a batch as it is now. A batch that has ended is read from the record.

        If its provider is not in the settings any more, it is returned as it was last seen.

        Args:
            batch_id: The provider's id. A batch whose create got no answer is listed with an id of ours,
                which stays valid.
            owner: Whose batch it must be.
            provider: Whose id it is; may be left out for a batch that was made here.
        """
        return self._lookup.last_known(batch_id, owner=owner_or_everyone(owner), provider=provider)

    def detail(self, batch_id: str, *, owner: Owner, provider: str | None = None) -> Detail:
        """Return the parts of a batch, and the batches that it is linked to by ``retry``."""
        return self._details.of(batch_id, owner=owner_or_everyone(owner), provider=provider)

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
        a status, the provider lists its own. Running batches of the record are refreshed, unless that was
        done in the last two seconds.

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

    def browse(
        self,
        *,
        owner: Owner,
        provider: str | None = None,
        status: str | None = None,
        search: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> Page:
        """List batches of the record, newest first, as they were last seen. No provider is called.

        Args:
            owner: Whose batches; ``EVERYONE`` for all.
            provider: Only batches at this provider.
            status: Only batches with this status.
            search: The id of a batch; or the name of an owner; or ``key=value``, for batches with this pair
                of metadata among the newest 50,000.
            after: The id of the last batch of the previous page.
            limit: The length of the page, 1 to 100.
        """
        return self._lists.browse(
            owner=owner_or_everyone(owner),
            provider=provider,
            status=status,
            search=search,
            after=after,
            limit=limit,
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
        """Read the results of a batch. When all are read for the first time, their usage is recorded.

        A batch that expired or was cancelled has the results that were finished before, and an error for
        every other request.

        Args:
            batch_id: The provider's id.
            owner: Whose batch it must be.
            provider: Whose id it is; may be left out for a batch that was made here.
            status: Only the rows that have a result, or only those that have an error.
            requested_by: Who asks, for the usage; the owner by default.
            keep_waiting: Called while the provider sends nothing; returns whether to keep waiting for the
                first rows. If not, an error before them is raised when the rows are read.

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
            group_by: What to group by; by default, there is one sum. By batch, at most some 10,000 batches.
        """
        return self._usage.sums(group_by=group_by, owner=owner_or_everyone(owner), since=since, until=until)

    def release_connection(self) -> None:
        """Release the connection on which the host's ``db.session`` has only read.

        The endpoints do this before every provider call, which may take minutes. A session that has changed
        something, or may have, is left alone. The methods above leave every session alone.
        """
        self._database.release_connection()
