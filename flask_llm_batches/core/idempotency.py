"""``Idempotency-Key``: the same create is done once, however often it is asked for."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from flask_llm_batches.batch import Batch
from flask_llm_batches.errors import (
    IdempotencyInProgress,
    IdempotencyMismatch,
    LLMBatchesError,
    ValidationFailed,
)
from flask_llm_batches.providers.adapters import Submission
from flask_llm_batches.store.idempotency import KeyUsed, Uses
from flask_llm_batches.store.records import SETTLED, Record, Records

HEADER = "Idempotency-Key"

_KEY = re.compile(r"[!-~]{1,255}")
_ATTEMPTS = 3

_encode = msgspec.json.Encoder(order="sorted").encode
# Of numbers, the digits count: a float that Python reads may stand for others, too.
_decode = msgspec.json.Decoder(float_hook=lambda digits: {"float": digits}).decode


class Fingerprint:
    """Sums up what is asked for, whatever its white space is and the order of its keys."""

    def __init__(self, provider: str, submission: Submission) -> None:
        self._digest = hashlib.sha256(_encode([provider, submission]))

    def add(self, line: bytes) -> None:
        """Take in a request, as a line of the spool."""
        with suppress(msgspec.DecodeError, RecursionError):  # as written: an integer of 5,000 digits, say
            line = _encode(_decode(line))
        self._digest.update(line + b"\n")

    def __str__(self) -> str:
        return self._digest.hexdigest()


class Idempotency:
    """The keys of one app.

    Args:
        uses: Where they are kept.
        records: Where the batches are that they stand for.
        settle: Finds out how a batch stands of which nobody knows.
        ttl: Seconds after which a key may be used anew.
    """

    def __init__(self, uses: Uses, records: Records, settle: Callable[[Record], str], ttl: float) -> None:
        self._uses = uses
        self._records = records
        self._settle = settle
        self._ttl = ttl

    @staticmethod
    def check(key: str) -> None:
        """Check a key.

        Raises:
            ValidationFailed: It is none.
        """
        if not _KEY.fullmatch(key):
            raise ValidationFailed({HEADER: ["Not 1 to 255 visible ASCII characters."]})

    def begin(self, key: str, fingerprint: str, owner: str, begin: Callable[..., Record]) -> Record | Batch:
        """Note the intent to make a batch, or give the one that was made.

        Raises:
            IdempotencyMismatch: The key was used for something else.
            IdempotencyInProgress: The first one is still being made, or nobody knows yet.
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
        """Give what was answered; None when it is worth another look: the key is free, or has an answer."""
        use = self._uses.find(hashed)
        if use is None:
            return None
        record = self._records.by_uid(use.batch_uid)
        expired = use.created_at <= time.time() - self._ttl
        if record is None or (expired and record.state in SETTLED):
            self._uses.forget(use)
            return None
        if use.fingerprint != fingerprint:
            raise IdempotencyMismatch
        if use.answer is not None:
            return Batch.from_dict(use.answer, record.provider)
        try:
            state = self._settle(record)
        except LLMBatchesError:
            raise IdempotencyInProgress from None
        if state not in SETTLED:
            raise IdempotencyInProgress
        return None
