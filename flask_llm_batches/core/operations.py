"""What operators, commands and workers call: the other half of the service."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from flask_llm_batches.batch import Batch
from flask_llm_batches.config import Settings
from flask_llm_batches.core.adoption import Adopter
from flask_llm_batches.core.archive import Archive
from flask_llm_batches.core.checkup import Checkup, Finding
from flask_llm_batches.core.files import Files
from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.reconcile import Reconciler, Settled
from flask_llm_batches.core.temporary import sweep
from flask_llm_batches.core.webhooks import Events
from flask_llm_batches.core.worker.deliver import Deliver
from flask_llm_batches.core.worker.run import Runner
from flask_llm_batches.core.worker.tick import Ticker
from flask_llm_batches.errors import StorageUnavailable
from flask_llm_batches.storage.storage import Storage
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.deliveries import Deliveries
from flask_llm_batches.store.models import SetAside, Webhook
from flask_llm_batches.store.purge import Purge
from flask_llm_batches.store.webhooks import Webhooks


class Operations:
    """The calls that are about all batches of an app, whoever owns them. ``Service`` has them, too."""

    settings: Settings
    files: Files
    _adopter: Adopter
    _archive: Archive
    _batches: Batches
    _checkup: Checkup
    _deliver: Deliver
    _deliveries: Deliveries
    _events: Events
    _lookup: Lookup
    _purge: Purge
    _reconciler: Reconciler
    _runner: Runner
    _storage: Storage
    _ticker: Ticker
    _webhooks: Webhooks

    def checkup(self, *, live: bool = False) -> Iterator[Finding]:
        """Look at everything that batches need, one thing after the other, and yield what was found out.

        Args:
            live: Whether to call every provider, too, which costs nothing.
        """
        return self._checkup.findings(live=live)

    def reconcile(self, *, older_than: float | None = None) -> Sequence[Settled]:
        """Look for all unsettled batches at their providers now, and delete files that crashes left.

        Args:
            older_than: Seconds after which a batch that its provider does not list has failed, at least
                120; ``LLM_BATCHES_SEARCH_WINDOW`` by default.
        """
        settled = self._reconciler.settle_every(older_than=older_than)
        silent = self.settings.transfer_timeout + 60
        sweep(self.settings.spool_dir, older_than=silent)
        self._storage.sweep(older_than=silent)
        self.files.delete_expired()
        return settled

    def purge(self, *, before: int, usage: bool = False, dry_run: bool = False) -> int:
        """Delete the record of batches that have ended and were created before a time.

        Their archived results are deleted, their ``Idempotency-Key``s can be used again, and only an admin
        can still read what the provider has of them; with ``LLM_BATCHES_UNTRACKED = "allow"``, every caller
        who knows the id can, as nothing tells them from batches that were not made here. Sums of the usage
        include them, unless their usage is deleted, too. Input files of that time that no batch waits for
        are deleted as well.

        Args:
            before: Unix seconds.
            usage: Whether to delete their usage.
            dry_run: Whether to count them only.

        Returns:
            The number of batches.
        """
        if dry_run:
            return self._purge.count(before=before)
        deleted = 0
        while uids := self._purge.oldest(before=before):
            for uid in (*uids, *self._purge.archived_parts(uids)):
                self._archive.delete(uid)
            self._purge.delete(uids, usage=usage)
            deleted += len(uids)
        self._purge.expire_inputs(before=before)
        self.files.delete_expired()
        return deleted

    def tick(self, *, budget: float | None = None, worker: str | None = None) -> int:
        """Do what a worker would do now, and return the number of steps that this took.

        Args:
            budget: Seconds after which no further step begins; None for no limit.
            worker: The name of a worker, which is recorded to be alive. Only for a caller that ticks
                regularly.
        """
        if worker is not None:
            self._runner.seen(worker)
        with suppress(StorageUnavailable):  # which is logged, and holds up nothing else
            self.files.delete_expired()
        return self._ticker.tick(budget=budget, stop=lambda: False)

    def work(self, stop: threading.Event, *, concurrency: int = 1) -> None:
        """Run as a worker until ``stop`` is set and the steps that are running then have ended.

        Args:
            stop: Ends the worker.
            concurrency: How many steps run at the same time.
        """
        self._runner.work(stop, concurrency=concurrency)

    def set_aside(self, *, batch_id: str | None = None, limit: int = 1000) -> Sequence[SetAside]:
        """Return rows that a handler refuses, oldest first.

        Args:
            batch_id: Only rows of this batch.
            limit: The most rows to return.
        """
        uid = None if batch_id is None else self._lookup.record_of(batch_id).uid
        return self._deliveries.all_set_aside(batch_uid=uid, limit=limit)

    def shown_ids(self, uids: Iterable[str]) -> Mapping[str, str]:
        """Return the ids of batches that callers see, by our own ids of them."""
        return {record.uid: record.shown_id for record in self._batches.by_uids(set(uids))}

    def deliver_again(self, batch_id: str, *, limit: int = 100_000) -> tuple[int, int]:
        """Deliver again the rows of a batch that were set aside, one by one.

        Args:
            batch_id: The id.
            limit: The most rows to deliver, oldest first.

        Returns:
            How many were delivered, and how many are still refused.
        """
        record = self._lookup.record_of(batch_id)
        rows = self._deliveries.all_set_aside(batch_uid=record.uid, limit=limit)
        done = self._deliver.again(record, rows)
        return done, len(rows) - done

    def sent_webhooks(self, *, batch_id: str | None = None, limit: int = 1000) -> Sequence[Webhook]:
        """Return webhooks that were sent, are due, or were given up, newest first.

        Args:
            batch_id: Only those of this batch.
            limit: The most webhooks to return.
        """
        uid = None if batch_id is None else self._lookup.record_of(batch_id).uid
        return self._webhooks.all(batch_uid=uid, limit=limit)

    def send_again(self, batch_id: str) -> int:
        """Make all webhooks of a batch due again, so that a worker sends them, and return their number."""
        return self._webhooks.again(self._lookup.record_of(batch_id).uid)

    def receive_event(self, provider: str, headers: Mapping[str, str], body: bytes) -> None:
        """Take a webhook of a provider: a worker then looks at its batch at once.

        Args:
            provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
            headers: The headers of the request.
            body: Its body, unchanged.

        Raises:
            Unauthenticated: It is not signed with that provider's ``webhook_secret``, or is old.
        """
        self._events.receive(provider, headers, body)

    def adopt(self, uid: str, batch_id: str) -> Batch:
        """Record that an unsettled batch is the one with a provider's id.

        Providers that keep no metadata, such as Anthropic, cannot tell which create made a batch, so
        an operator decides.

        Args:
            uid: Our own id of the unsettled batch.
            batch_id: The provider's id.

        Raises:
            AdoptionRefused: The batch is recorded for somebody, has another number of requests, or ``uid`` is
                not that of an unsettled batch.
            BatchNotFound: The provider has no such batch.
        """
        return self._adopter.adopt(uid, batch_id)

    def give_up(self, uid: str) -> None:
        """Record that the provider does not have an unsettled batch. Its ``Idempotency-Key`` is free again.

        Args:
            uid: Our own id of the unsettled batch.

        Raises:
            AdoptionRefused: No batch with this id is being looked for.
        """
        self._adopter.give_up(uid)
