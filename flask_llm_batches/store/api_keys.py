"""The built-in API keys. Only their hashes are stored."""

from __future__ import annotations

import time

from sqlalchemy import Connection, bindparam, insert, select, update

from flask_llm_batches.store.models import ApiKey, ApiKeyRow
from flask_llm_batches.store.store import Store, transaction

_API_KEY = select(*(getattr(ApiKeyRow, name) for name in ApiKey.__slots__))
_FIND_API_KEY = _API_KEY.where(ApiKeyRow.key_hash == bindparam("key_hash"))


class ApiKeys(Store):
    """The built-in keys of one app."""

    @transaction
    def add(self, connection: Connection, *, key_hash: str, prefix: str, owner: str, admin: bool) -> None:
        """Keep a new built-in key."""
        made = insert(ApiKeyRow).values(
            key_hash=key_hash, prefix=prefix, owner=owner, admin=admin, created_at=int(time.time())
        )
        connection.execute(made)

    @transaction
    def find(self, connection: Connection, key_hash: str) -> ApiKey | None:
        """Return a built-in key, revoked or not; None if there is none with this hash."""
        row = connection.execute(_FIND_API_KEY, {"key_hash": key_hash}).first()
        return None if row is None else ApiKey(*row)

    @transaction
    def revoke(self, connection: Connection, key_id: int) -> bool:
        """Revoke a key; return False if no valid key has that id."""
        revoked = (
            update(ApiKeyRow)
            .where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
            .values(revoked_at=int(time.time()))
        )
        return connection.execute(revoked).rowcount == 1

    @transaction
    def every(self, connection: Connection) -> list[ApiKey]:
        """Return every built-in key, oldest first."""
        return [ApiKey(*row) for row in connection.execute(_API_KEY.order_by(ApiKeyRow.id))]
