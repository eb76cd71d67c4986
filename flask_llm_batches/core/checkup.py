"""Finds out what does not work, and says what to do about it."""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.request import url2pathname

from flask_llm_batches.config import Settings
from flask_llm_batches.core.handlers import Handlers
from flask_llm_batches.errors import (
    LLMBatchesError,
    NotStored,
    ProviderFailed,
    ProviderNotConfigured,
    ProviderTimeout,
    RateLimited,
    RecordUnavailable,
    UnsupportedProvider,
)
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.storage.storage import Storage
from flask_llm_batches.store.health import Health, Load
from flask_llm_batches.store.models import Lane

_LATE = 300  # seconds after which a step that is due is late, although a worker is alive
_CLOCK = 10  # seconds by which a clock may be wrong: leases last 15, signatures of webhooks five minutes
_MIB = 1024 * 1024


class Finding(NamedTuple):
    """What was found out about one thing.

    Attributes:
        subject: What was looked at: ``database``, ``provider openai``.
        problem: What is wrong with it; None if nothing is.
        advice: What to do about the problem; None if there is none.
        fact: What is worth knowing about it.
    """

    subject: str
    problem: str | None = None
    advice: str | None = None
    fact: str = ""


class Checkup:
    """Looks at everything that batches of one app need."""

    def __init__(
        self, settings: Settings, providers: Providers, handlers: Handlers, storage: Storage, health: Health
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._handlers = handlers
        self._storage = storage
        self._health = health

    def findings(self, *, live: bool) -> Iterator[Finding]:
        """Look at one thing after the other. With ``live``, providers are called, which costs nothing."""
        database = self._database()
        yield database
        if database.problem is None:
            yield self._stored()
        yield from self._disk()
        if self._settings.providers is None:
            yield Finding("providers", fact="all of any-llm's, as LLM_BATCHES_PROVIDERS is not set")
        lanes = self._health.token_limits() if database.problem is None else ()
        for name in self._settings.providers or ():
            yield self._provider(name, [one for one in lanes if one.provider == name], live=live)
        if database.problem is None:
            yield from self._load(self._health.load())

    def _database(self) -> Finding:
        try:
            missing = self._health.missing_tables()
            kind = "" if missing else self._health.write()
        except RecordUnavailable:
            return Finding(
                "database",
                "It does not answer, or cannot be written to; the log says why.",
                "Check SQLALCHEMY_DATABASE_URI, the server behind it, and the rights of its user.",
            )
        if missing:
            return Finding(
                "database",
                f"Tables are missing, or lack columns: {', '.join(missing)}.",
                "Run: flask db migrate, then flask db upgrade. Without Flask-Migrate, call db.create_all(), "
                "which makes new tables, but adds no columns.",
            )
        return Finding("database", fact=f"{kind}, with all tables")

    def _stored(self) -> Finding:
        key, began = f"checkup/{uuid.uuid4().hex}", time.monotonic()
        subject = f"storage ({self._settings.storage.partition(':')[0]})"
        try:
            with self._storage.write(key) as writer:
                writer.write(b"checkup")
            for _ in self._storage.read(key):
                pass
            self._storage.delete(key)
        except (LLMBatchesError, NotStored) as error:
            return Finding(
                subject,
                f"It cannot be written to and read: {error}",
                "Check LLM_BATCHES_STORAGE, its free space and its permissions; the log says more.",
            )
        return Finding(subject, fact=f"written and read in {(time.monotonic() - began) * 1000:.0f} ms")

    def _disk(self) -> Iterator[Finding]:
        folders = [("temporary files", self._settings.spool_dir, "LLM_BATCHES_SPOOL_DIR")]
        if self._settings.storage.startswith("file://"):
            folder = url2pathname(self._settings.storage.removeprefix("file://"))
            folders.append(("folder of the storage", folder, "LLM_BATCHES_STORAGE"))
        for subject, named, setting in folders:
            folder = named or "The folder of temporary files"
            try:
                folder = named or tempfile.gettempdir()  # which fails if it can write to none
                free = shutil.disk_usage(folder).free
                with tempfile.TemporaryFile(dir=folder) as file:
                    file.write(b"checkup")
            except OSError as error:
                yield Finding(
                    subject,
                    f"{folder} cannot be written to: {error.strerror}.",
                    f"Free space there, fix its permissions, or set {setting} to another folder.",
                )
                continue
            fact = f"{free // _MIB:,} MiB free in {folder}"
            if free < self._settings.max_content_length:
                yield Finding(
                    subject,
                    f"Only {fact}; one create may need {self._settings.max_content_length // _MIB:,} MiB.",
                    f"Free space there, or set {setting} to another folder.",
                )
            else:
                yield Finding(subject, fact=fact)

    def _provider(self, name: str, lanes: Sequence[Lane], *, live: bool) -> Finding:
        subject = f"provider {name}"
        try:
            self._providers.check(name)
            offset = self._providers.clock_offset(name) if live else None
        except LLMBatchesError as error:
            return Finding(subject, *_diagnosis(error, name, f"LLM_BATCHES_PROVIDERS[{name!r}]"))
        if offset is not None and abs(offset) > _CLOCK:
            way = "behind" if offset > 0 else "ahead of"
            return Finding(
                subject,
                f"The clock of this machine is {abs(offset):.0f} seconds {way} the provider's.",
                "Set the clock, for example with NTP: leases and signatures of webhooks depend on it.",
            )
        return Finding(subject, fact=self._limits(name, lanes, answered=live))

    def _limits(self, name: str, lanes: Sequence[Lane], *, answered: bool) -> str:
        adapter = self._providers.adapter_of(name)
        facts = ["answers" if answered else "has a key and its package; --live calls it"]
        if adapter.max_requests is not None:
            facts.append(f"{adapter.max_requests:,} requests a batch")
        if adapter.max_bytes is not None:
            facts.append(f"{adapter.max_bytes // 1_000_000} MB a batch")
        facts += [f"{one.model}: {one.token_limit:,} tokens may wait" for one in lanes]
        return ", ".join(facts)

    def _load(self, load: Load) -> Iterator[Finding]:
        yield self._worker(load)
        if load.failing:
            steps = ", ".join(f"{step} of {batch_id}" for batch_id, step in load.failing)
            yield Finding(
                "steps",
                f"These have failed three times or more in a row, and are tried again: {steps}.",
                "Run: flask llm-batches check --live. The log of the workers has the reason of each failure.",
            )
        if load.unsettled:
            yield Finding(
                "creates",
                f"{load.unsettled} got no answer, so it is not known whether the provider has their batches.",
                "Run: flask llm-batches reconcile",
            )
        if load.set_aside:
            yield Finding(
                "deliveries",
                f"A handler refuses rows, which were set aside: {load.set_aside}.",
                "Run: flask llm-batches deliveries; when the handler is fixed, add --again BATCH_ID.",
            )
        if load.given_up:
            yield Finding(
                "webhooks",
                f"{load.given_up} were given up, as their target did not take them.",
                "Run: flask llm-batches webhooks; when the target is fixed, add --again BATCH_ID.",
            )

    def _worker(self, load: Load) -> Finding:
        steps = "1 step is" if load.steps == 1 else f"{load.steps} steps are"
        due = f"{steps} due, the first for {load.waiting} seconds"
        if load.workers == 0 and (load.steps or len(self._handlers) or self._settings.webhooks):
            return Finding(
                "worker",
                f"None is alive; {due}."
                if load.steps
                else "None is alive, but handlers and webhooks need one.",
                'Run: flask llm-batches worker. Or set LLM_BATCHES_WORKER = "thread".',
            )
        if load.workers and load.waiting > _LATE:
            return Finding(
                "worker",
                f"{load.workers} alive, but {due}.",
                "Look into the log of the workers, and run more of them.",
            )
        return Finding("worker", fact=f"{load.workers} alive, {steps} due")


def _diagnosis(error: LLMBatchesError, name: str, setting: str) -> tuple[str, str]:
    """Return what is wrong with a provider, and what to do."""
    match error:
        case ProviderNotConfigured():
            return str(error), f"Set {setting}['api_key'], or install the package that the log names."
        case UnsupportedProvider():
            return str(error), f"Remove {setting}, or name a provider with a batch API."
        case RateLimited(is_final=True):
            return "The account has no money left.", "Add credit to the account at the provider."
        case RateLimited():
            return str(error), "Nothing: batches wait, and are submitted later."
        case ProviderTimeout():
            return str(error), f"Check the network, {setting}['api_base'] and the provider's status page."
        case ProviderFailed(upstream_status=401 | 403):
            return (
                f"Provider '{name}' refuses the key ({error.upstream_status}).",
                f"Set {setting}['api_key'] to a key that is valid and may use the batch API.",
            )
        case ProviderFailed(upstream_status=404):
            return (
                f"Provider '{name}' has no batch API at this address (404).",
                f"Check {setting}['api_base'].",
            )
        case ProviderFailed(upstream_status=int(status)):
            return (
                f"Provider '{name}' fails ({status}).",
                "Look at the provider's status page. Nothing is lost: calls are repeated later.",
            )
        case ProviderFailed():
            return (
                f"Provider '{name}' cannot be reached, or its answer makes no sense; the log says more.",
                f"Check the network, {setting}['api_base'] and the provider's status page.",
            )
    return str(error), "The log says more."
