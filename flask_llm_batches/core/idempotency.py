"""``Idempotency-Key``: a create that is repeated with the same key makes one batch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

from flask_llm_batches.batch import Batch, own_id
from flask_llm_batches.core.adoption import is_submitting
from flask_llm_batches.core.reconcile import Reconciler
from flask_llm_batches.errors import IdempotencyInProgress, IdempotencyMismatch, ValidationFailed
from flask_llm_batches.providers.adapters import Submission
from flask_llm_batches.store.batches import UNSETTLED_STATES, Batches
from flask_llm_batches.store.idempotency import IdempotencyKeys, KeyUsed
from flask_llm_batches.store.models import Record
from flask_llm_batches.untrusted import SMALL

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[!-~]{1,255}")
_ATTEMPTS = 3

_encode = msgspec.json.Encoder(order="sorted").encode
# Numbers are compared as digits: different digits may be the same float in Python.
_decode = msgspec.json.Decoder(float_hook=lambda digits: {"float": digits}).decode


class Fingerprint:
    """A hash of a create that ignores white space and the order of keys.

    Requests of more than 1 MiB are hashed as bytes: as Python objects they might take gigabytes.
    """

    def __init__(self, provider: str, submission: Submission, *then: str | None) -> None:
        self._digest = hashlib.sha256(_encode([provider, submission, *then]))

    def add(self, line: bytes) -> None:
        """Add a request, as a line of the spool."""
        if len(line) <= SMALL:
            # what cannot be decoded is hashed as written, such as an integer of 5,000 digits
            with suppress(msgspec.DecodeError, RecursionError):
                line = _encode(_decode(line))
        self._digest.update(line)
        self._digest.update(b"\n")

    def __str__(self) -> str:
        return self._digest.hexdigest()


class Idempotency:
    """The keys of one app. A key lives as long as the record of its batch.

    Args:
        keys: Where they are kept.
        batches: The batches that they stand for.
        reconciler: Looks for unsettled batches.
    """

    def __init__(self, keys: IdempotencyKeys, batches: Batches, reconciler: Reconciler) -> None:
        self._keys = keys
        self._batches = batches
        self._reconciler = reconciler

    @staticmethod
    def check(key: str) -> None:
        """Check a key.

        Raises:
            ValidationFailed: It is not a valid key.
        """
        given: object = key  # hosts without a type checker pass the integer id of what the batch is for
        if not isinstance(given, str) or not _KEY.fullmatch(given):
            raise ValidationFailed.of("Not 1 to 255 visible ASCII characters.", HEADER)

    def is_used(self, key: Mapping[str, str]) -> bool:
        """Return whether a key, as ``begin`` passes it on, was used before."""
        return self._keys.find(key["key_hash"]) is not None

    def begin(self, key: str, fingerprint: str, owner: str, begin: Callable[..., Record]) -> Record | Batch:
        """Record a new batch, or return the one that was made with the same key.

        Raises:
            IdempotencyMismatch: The key was used for something else.
            IdempotencyInProgress: The first create is still running, or its batch is being looked for.
        """
        hashed = hashlib.sha256(f"{owner}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
        for _ in range(_ATTEMPTS):
            try:
                return begin(key={"key_hash": hashed, "fingerprint": fingerprint})
            except KeyUsed:
                batch = self._first_answer(hashed, fingerprint)
            if batch is not None:
                return batch
        raise IdempotencyInProgress

    def _first_answer(self, hashed: str, fingerprint: str) -> Batch | None:
        """Return the first answer; None if the key is free or its state has just changed: look again."""
        used = self._keys.find(hashed)
        if used is None:
            return None
        record = self._batches.by_uid(used.batch_uid)
        same = used.fingerprint == fingerprint
        # A batch that was not found is searched for once more before a second one is made and paid for.
        # Another create needs no search, unless the batch has failed and its key is about to be free.
        if record is not None and (record.state == "failed" or (same and record.state in UNSETTLED_STATES)):
            record = self._reconciler.settled(record)
        if record is None or (record.state == "failed" and record.input_file is None):
            self._keys.forget(used)
            return None
        if not same:
            raise IdempotencyMismatch
        if record.is_queued:
            return record.shown(record.last_seen())
        if used.answer is not None:
            return record.shown(Batch.from_dict(used.answer, record.provider))
        if record.state == "accepted":
            return None
        if is_submitting(record):
            raise IdempotencyInProgress
        raise IdempotencyInProgress(
            sought=own_id(record.uid), retry_after=self._reconciler.retry_after(record)
        )
