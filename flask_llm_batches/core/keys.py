"""Built-in API keys: make, verify, list, revoke."""

from __future__ import annotations

import hashlib
import secrets

from flask_llm_batches.principal import Principal
from flask_llm_batches.store.api_keys import ApiKeys
from flask_llm_batches.store.models import ApiKey

PREFIX = "llmb_"
_SHOWN = len(PREFIX) + 6


class Keys:
    """The built-in keys of one app."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    def create(self, *, owner: str, admin: bool = False) -> str:
        """Create a key of 256 random bits and return it. Only its hash is stored.

        Raises:
            ValueError: ``owner`` is not a valid name.
        """
        Principal(owner, admin)
        key = PREFIX + secrets.token_urlsafe(32)
        self._keys.add(key_hash=_hash(key), prefix=key[:_SHOWN], owner=owner, admin=admin)
        return key

    def verify(self, key: str) -> Principal | None:
        """Return the ``Principal`` of a key; None if it is not one of ours, or is revoked.

        Keys are looked up by their hash, so the time of the look-up reveals nothing about the key.
        """
        if not key.startswith(PREFIX):
            return None
        found = self._keys.find(_hash(key))
        if found is None or found.revoked_at is not None:
            return None
        return Principal(found.owner, found.admin)

    def list(self) -> list[ApiKey]:
        """Return all keys, oldest first, including revoked ones."""
        return self._keys.every()

    def revoke(self, key_id: int) -> bool:
        """Revoke a key; return False if no valid key has that id."""
        # A larger number fits into no column, and is an OverflowError with SQLite.
        return 0 < key_id < 1 << 63 and self._keys.revoke(key_id)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
