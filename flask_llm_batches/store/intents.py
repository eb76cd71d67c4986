"""Records that batches are about to be submitted."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select, text, update

from flask_llm_batches.batch import FINISHED, Batch, own_id
from flask_llm_batches.errors import OwnerLimitReached
from flask_llm_batches.store import files, idempotency, limits, manifests, tasks
from flask_llm_batches.store.leases import new_lease
from flask_llm_batches.store.limits import Allowance
from flask_llm_batches.store.models import QUEUED, BatchRow, LaneRow, Record
from flask_llm_batches.store.queries import BatchQueries
from flask_llm_batches.store.store import CommitUnknown, transaction
from flask_llm_batches.store.usage import insert_usage

FIRST_REFRESH = 2
"""Seconds until a worker retrieves a new batch."""


class NewPart(NamedTuple):
    """A part of a batch that is about to be recorded.

    Attributes:
        uid: Our own id of it.
        provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
        model: The model of its requests.
        requests: How many it has.
        tokens: About how many tokens their prompts have.
        source: The uid of the file that has them; None if ``input_file_id`` has them.
        manifest: Their ``custom_id``s, as ``manifests.pack`` returns them.
        retries: How often they are submitted again if they fail for a temporary reason.
        input_file_id: The provider's file that has them.
        copies: The uid of a part with the same manifest, which is copied.
    """

    uid: str
    provider: str
    model: str
    requests: int
    tokens: int
    source: str | None
    manifest: Sequence[Mapping[str, Any]]
    retries: int = 0
    input_file_id: str | None = None
    copies: str | None = None


class Intents(BatchQueries):
    """The intents of one app."""

    def begin(
        self,
        *,
        provider: str,
        owner: str,
        model: str,
        custom_ids: Collection[str],
        asked_for: Mapping[str, Any],
        key: Mapping[str, str] | None = None,
        on_results: str | None = None,
        webhook: str | None = None,
        request_id: str | None = None,
        input_file: str | None = None,
        output_seconds: int | None = None,
        tokens: int | None = None,
        retries: int | None = None,
        retry_of: str | None = None,
        parts: Sequence[NewPart] = (),
        requested_by: str | None = None,
        allowance: Allowance | None = None,
        reserved: int | None = None,
    ) -> Record:
        """Record that a batch is about to be submitted, and its requests. The caller holds its lease.

        With an input file, it is queued: it has no requests yet, and nobody holds its lease. With parts, they
        are queued, and have the requests.

        Args:
            provider: The provider's name in ``LLM_BATCHES_PROVIDERS``.
            owner: The owner of the batch.
            model: The model of its requests, without the provider.
            custom_ids: The ``custom_id``s of its requests.
            asked_for: Its endpoint, window and metadata, for the first snapshot.
            key: ``key_hash`` and ``fingerprint`` of an ``Idempotency-Key``.
            on_results: The name of the handler that takes its rows.
            webhook: The name of the webhook that is sent when it has ended.
            request_id: The ``X-Request-ID`` of the create.
            input_file: The uid of the file that has its requests.
            output_seconds: Seconds for which the files of its results last.
            tokens: About how many tokens its prompts have.
            retries: How often failed requests are submitted again.
            retry_of: The uid of the batch whose failed requests it has.
            parts: Its parts, if it is not submitted as one batch.
            requested_by: Who asked for it; only with parts.
            allowance: What its owner may have; None for no limits.
            reserved: About what its prompts cost.

        Raises:
            OwnerLimitReached: It would be more than the owner may have.
            KeyUsed: The key was used before.
        """
        uid, now = uuid.uuid4().hex, int(time.time())
        state = "split" if parts else "submitting" if input_file is None else "queued"
        total = sum(part.requests for part in parts) or len(custom_ids)
        if len({part.model for part in parts}) > 1:
            model, asked_for = "", {**asked_for, "model": None}
        first = Batch(
            id=own_id(uid),
            provider=provider,
            status="validating",
            created_at=now,
            request_counts={"total": total, "completed": 0, "failed": 0},
        )
        values: dict[str, Any] = {
            "uid": uid,
            "state": state,
            "provider": provider,
            "owner": owner,
            "model": model,
            "requests": total,
            "status": first.status,
            "snapshot": first.remembering(asked_for).to_dict(),
            "created_at": now,
            "on_results": on_results,
            "webhook": webhook,
            "request_id": request_id,
            "delivered": 0,
            "input_file": input_file,
            "output_seconds": output_seconds,
            "tokens": tokens,
            "retries": retries,
            "reserved": reserved,
            "retry_of": retry_of,
            **(new_lease() if state == "submitting" else {"lease_token": None, "lease_until": None}),
        }
        # Outside of the transaction, which other calls with the same key wait for.
        manifest = () if parts else manifests.pack(uid, custom_ids)
        try:
            return self._begin(values, manifest, key, parts, requested_by, allowance)
        except CommitUnknown:
            if (record := self.by_uid(uid)) is None:
                raise
            return record

    @transaction
    def exceeded(
        self, connection: Connection, owner: str, allowance: Allowance, *, requests: int, cost: int | None
    ) -> OwnerLimitReached | None:
        """Return the limit that one more batch would exceed now; None if the owner may have it."""
        return limits.exceeded(connection, owner, allowance, requests=requests, cost=cost)

    @transaction
    def _begin(
        self,
        connection: Connection,
        values: dict[str, Any],
        manifest: Sequence[Mapping[str, Any]],
        key: Mapping[str, str] | None,
        parts: Sequence[NewPart],
        requested_by: str | None,
        allowance: Allowance | None,
    ) -> Record:
        if key is not None:
            idempotency.claim(connection, key, batch_uid=values["uid"], at=values["created_at"])
        if allowance is not None:
            requests, cost = values["requests"], values["reserved"]
            limits.reserve(connection, values["owner"], allowance, requests=requests, cost=cost)
        made = connection.execute(insert(BatchRow).values(values)).inserted_primary_key
        manifests.insert_manifest(connection, manifest)
        is_submitting = values["state"] == "submitting"
        tasks.insert_task(
            connection,
            values["uid"],
            "refresh" if is_submitting else "submit",
            due_at=values["created_at"] + (FIRST_REFRESH if is_submitting else 0),
        )
        unknown: dict[str, Any] = dict.fromkeys(name for name in Record.__slots__ if name not in values)
        record = Record(**(unknown | values | {"id": made[0] if made else 0}))
        if parts:
            insert_parts(connection, record, parts)
            insert_usage(
                connection,
                record,
                "create",
                requested_by=requested_by or record.owner,
                requests=record.requests,
            )
        return record


def insert_parts(
    connection: Connection,
    whole: Record,
    parts: Sequence[NewPart],
    *,
    turn: int | None = None,
    replaces: str | None = None,
) -> None:
    """Insert parts of a batch, which wait to be submitted.

    Owners take turns: the first part of an owner comes right after the part that was submitted last, the
    second one a turn later, and so on.

    Args:
        connection: The connection to use.
        whole: The batch.
        parts: Its parts.
        turn: The turn of all of them; by default they have the next ones of their owner.
        replaces: The uid of the part whose requests they submit again.
    """
    turns: dict[tuple[str, str], int] = {}
    for part in parts:
        lane = part.provider, part.model
        if turn is None:
            last = turns[lane] if lane in turns else _last_turn(connection, whole.owner, *lane)
            turns[lane] = last + 1
        first = Batch(
            id=own_id(part.uid),
            provider=part.provider,
            status="validating",
            created_at=int(time.time()),
            request_counts={"total": part.requests, "completed": 0, "failed": 0},
            input_file_id=part.input_file_id,
        )
        values: dict[str, Any] = {
            "uid": part.uid,
            "state": "queued",
            "provider": part.provider,
            "owner": whole.owner,
            "model": part.model,
            "requests": part.requests,
            "status": first.status,
            "snapshot": first.remembering(whole.snapshot | {"model": part.model}).to_dict(),
            "created_at": first.created_at,
            "request_id": whole.request_id,
            "delivered": 0,
            "part_of": whole.uid,
            "replaces": replaces,
            "source": part.source,
            "tokens": part.tokens,
            "turn": turns[lane] if turn is None else turn,
            "retries": part.retries,
        }
        connection.execute(insert(BatchRow).values(values))
        manifests.insert_manifest(connection, part.manifest)
        if part.copies is not None:
            manifests.copy_manifest(connection, part.copies, part.uid)
    files.keep(connection, [part.source for part in parts if part.source is not None])


def _last_turn(connection: Connection, owner: str, provider: str, model: str) -> int:
    """Return the turn of the last queued part of an owner, or of the part that was submitted last."""
    lane = select(LaneRow.turn).where(LaneRow.provider == provider, LaneRow.model == model)
    # As text: SQLite uses the partial index only for exactly this condition.
    queued = select(func.max(BatchRow.turn)).where(
        text(QUEUED), BatchRow.provider == provider, BatchRow.model == model, BatchRow.owner == owner
    )
    return max(connection.execute(lane).scalar() or 0, connection.execute(queued).scalar() or 0)


def split(
    connection: Connection, record: Record, values: Mapping[str, Any], parts: Sequence[NewPart]
) -> bool:
    """Turn a batch into a batch of parts; return False if its state has changed meanwhile."""
    this = update(BatchRow).where(
        BatchRow.id == record.id, BatchRow.state == record.state, BatchRow.status.not_in(FINISHED)
    )
    changed = {"state": "split", "lease_token": None, "lease_until": None, **values}
    if connection.execute(this.values(changed)).rowcount == 0:
        return False
    insert_parts(connection, record, parts)
    tasks.insert_task(connection, record.uid, "submit", due_at=int(time.time()))
    return True
