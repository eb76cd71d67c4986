"""Who is calling."""

from __future__ import annotations

from dataclasses import dataclass

MAX_OWNER_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whom an authenticator has recognised.

    Attributes:
        owner: Names the caller for good; batches and usage are kept under it. 1 to 255 characters
            other than U+0000 (PostgreSQL has none), such as the primary key of the host's user as a string.
        admin: Sees and touches everybody's batches, and the provider's own list.

    Raises:
        ValueError: ``owner`` is no such string.
    """

    owner: str
    admin: bool = False

    def __post_init__(self) -> None:
        owner: object = self.owner  # hosts without a type checker pass the integer that their users' ids are
        if not isinstance(owner, str) or not 0 < len(owner) <= MAX_OWNER_LENGTH or "\0" in owner:
            raise ValueError(
                f"Principal(owner=...) must be a string of 1 to {MAX_OWNER_LENGTH} characters, not U+0000 "
                f"(for a numeric user id: str(user.id)), not {type(self.owner).__name__}"
            )
