"""The functions that take the results of batches."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from flask_llm_batches.batch import Batch
from flask_llm_batches.config import NAME
from flask_llm_batches.delivery import DeliveredRow
from flask_llm_batches.errors import ValidationFailed

Handler = Callable[[Sequence[DeliveredRow], Batch], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class _Registered:
    handler: Handler
    http: bool


class Handlers:
    """The handlers of one extension, by name."""

    def __init__(self) -> None:
        self._registered: dict[str, _Registered] = {}

    def __len__(self) -> int:
        return len(self._registered)

    def register(self, name: str, handler: Handler, *, http: bool) -> None:
        """Register a handler.

        Args:
            name: 1 to 64 letters, digits, dots, dashes and underscores.
            handler: Takes the rows.
            http: Whether a create over HTTP may name it.

        Raises:
            ValueError: The name is taken, or is not a valid name.
        """
        if not re.fullmatch(NAME, name):
            raise ValueError(f"{name!r} is not 1 to 64 letters, digits, dots, dashes and underscores")
        if name in self._registered:
            raise ValueError(f"There is a handler {name!r} already")
        self._registered[name] = _Registered(handler, http)

    def find(self, name: str) -> Handler | None:
        """Return the handler with a name; None if there is none."""
        found = self._registered.get(name)
        return None if found is None else found.handler

    def check(self, name: str, *, http: bool = False) -> None:
        """Check that a create may name a handler.

        Raises:
            ValidationFailed: There is no such handler, or it is not open to creates over HTTP.
        """
        known = [one for one, registered in self._registered.items() if registered.http or not http]
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ValidationFailed.of(f"Not the name of a handler; known are: {names}.", "on_results")
