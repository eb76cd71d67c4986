"""The searches in providers' lists of batches: who searches, and when it was last done."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from flask_llm_batches.store.leases import extend_lease, is_free, new_lease
from flask_llm_batches.store.models import ProviderRow
from flask_llm_batches.store.store import Store, transaction


class _Taken(Exception):
    """Another process has claimed the search."""


class Searches(Store):
    """The searches of one app."""

    @transaction
    def searched_at(self, connection: Connection, provider: str) -> int | None:
        """Return when the last search of a provider's list began; None if there was none."""
        query = select(ProviderRow.searched_at).where(ProviderRow.name == provider)
        return connection.execute(query).scalar()

    def claim(self, provider: str, *, searched_at: int | None) -> str | None:
        """Claim the next search of a provider's list.

        Args:
            provider: The provider's name.
            searched_at: What ``searched_at`` returned to the caller.

        Returns:
            The token of the lease; None if another process is searching, or has searched since then.
        """
        try:
            return self._claim(provider, searched_at)
        except _Taken:
            return None

    @transaction
    def _claim(self, connection: Connection, provider: str, searched_at: int | None) -> str:
        lease = new_lease()
        token: str = lease["lease_token"]
        this = ProviderRow.name == provider
        claim = update(ProviderRow).where(
            this, ProviderRow.searched_at.is_not_distinct_from(searched_at), is_free(ProviderRow)
        )
        if connection.execute(claim.values(lease)).rowcount == 1:
            return token
        if connection.execute(select(ProviderRow.name).where(this)).first() is not None:
            raise _Taken
        try:
            connection.execute(insert(ProviderRow).values(name=provider, **lease))
        except IntegrityError:
            raise _Taken from None
        return token

    @transaction
    def extend_lease(self, connection: Connection, provider: str, token: str) -> bool:
        """Extend the lease on a search; return False if it was lost."""
        return extend_lease(connection, ProviderRow, ProviderRow.name == provider, token)

    @transaction
    def ended(self, connection: Connection, provider: str, token: str, *, began_at: int) -> None:
        """Record that a search has ended, unless its lease was lost."""
        held = update(ProviderRow).where(ProviderRow.name == provider, ProviderRow.lease_token == token)
        connection.execute(held.values(searched_at=began_at, lease_token=None, lease_until=None))
