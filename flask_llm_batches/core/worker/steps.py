"""The types of a step and of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from flask_llm_batches.store.models import Record


class Next(NamedTuple):
    """What comes after a step.

    Attributes:
        note: How it went, for the log.
        after: Seconds until the step is run again; None if it is done.
        then: The steps that come after it, if it is done, each with the seconds until it is due.
    """

    note: str
    after: float | None = None
    then: Mapping[str, float] = MappingProxyType({})


Step = Callable[[Record, int], Next]
"""Does something small for a batch. It may be killed anywhere, run twice, and raise anything.

Its arguments are the batch, and how often the step has failed since it was last done.
"""
