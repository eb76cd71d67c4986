"""The caller, and the owner whose batches a call is about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from flask_llm_batches.fields import is_whole

MAX_OWNER_LENGTH = 255


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller that an authenticator has recognised.

    Attributes:
        owner: The permanent name of the caller; batches and usage are kept under it. It has 1 to 255
            characters, none of which is a control character. The primary key of the host's user, as a
            string, is a good one.
        admin: Whether the caller may see and change the batches of all owners, and list what a provider has.

    Raises:
        ValueError: ``owner`` is not such a string.
    """

    owner: str
    admin: bool = False

    def __post_init__(self) -> None:
        owner: object = self.owner  # hosts without a type checker pass the integer id of their user
        if not isinstance(owner, str) or not is_owner(owner):
            raise ValueError(
                f"owner must be a string of 1 to {MAX_OWNER_LENGTH} characters without "
                f"control characters (for a numeric user id: str(user.id)), not {type(self.owner).__name__}"
            )


class _Everyone(Enum):
    EVERYONE = "EVERYONE"

    def __repr__(self) -> str:
        return self.value


EVERYONE: Final = _Everyone.EVERYONE
"""The ``owner`` of a call that is about the batches of all owners, as an admin's is."""

Owner = str | Principal | Literal[_Everyone.EVERYONE]
"""Whose batches a call is about: an owner's name, the caller, or ``EVERYONE``."""


def has_control_characters(text: str) -> bool:
    """Return whether text has control characters, which could forge lines of a log or a table."""
    return any(c < " " or "\x7f" <= c <= "\x9f" for c in text)


def is_owner(name: str) -> bool:
    """Return whether a string can be the name of an owner."""
    return 0 < len(name) <= MAX_OWNER_LENGTH and not has_control_characters(name) and is_whole(name)


def owner_or_everyone(owner: Owner) -> str | None:
    """Return the name of the owner that a call is about, or None if it is about everyone's batches.

    Raises:
        TypeError: ``owner`` is None. A missing user id must not make the caller an admin.
        ValueError: ``owner`` is not the name of an owner.
    """
    if owner is EVERYONE:
        return None
    if isinstance(owner, Principal):
        return None if owner.admin else owner.owner
    return owner_name(owner)


def owner_name(owner: str | Principal) -> str:
    """Return the name of one owner.

    Raises:
        TypeError: ``owner`` is None or ``EVERYONE``.
        ValueError: ``owner`` is not the name of an owner.
    """
    given: object = owner
    if given is None or given is EVERYONE:
        raise TypeError(
            f"owner must name an owner, not {given!r}. "
            "To see the batches of all owners, pass owner=flask_llm_batches.EVERYONE "
            "(not to create: a batch has one owner)."
        )
    return owner.owner if isinstance(owner, Principal) else Principal(owner).owner
