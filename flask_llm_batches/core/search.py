"""A walk over a provider's list of batches, which always ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from flask_llm_batches.batch import Batch
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers

logger = get_logger(__name__)

MARGIN = 3 * 3600
"""Seconds by which a list may be out of order, and the provider's clock wrong."""

_PAGE = 100
_MAX_PAGES, _MAX_SECONDS = 1000, 60.0


class Walk:
    """The batches of a provider, newest first, page by page.

    Args:
        providers: The providers of the app.
        provider: Whose batches.
        back_to: The time, as Unix seconds, before which no batch is of interest.

    Attributes:
        complete: Whether the walk came to the end of the list, or to batches that are all much older than
            ``back_to``. False if the provider's list is endless or repeats itself.
    """

    def __init__(self, providers: Providers, provider: str, *, back_to: float) -> None:
        self.complete = False
        self._providers = providers
        self._provider = provider
        self._too_old = back_to - MARGIN

    def pages(self) -> Iterator[Sequence[Batch]]:
        """Yield the batches of each page that no earlier page had.

        Raises:
            LLMBatchesError: The provider returns no list.
        """
        deadline = time.monotonic() + _MAX_SECONDS
        seen: set[int] = set()
        cursor = None
        old = 0
        for _ in range(_MAX_PAGES):
            page, cursor = self._providers.page(self._provider, cursor, limit=_PAGE)
            new = [batch for batch in page.batches if hash(batch.id) not in seen]
            seen.update(hash(batch.id) for batch in new)
            yield new
            # A single old batch proves nothing: lists may be out of order.
            old = old + len(new) if all(batch.created_at < self._too_old for batch in new) else 0
            if not page.has_more or old >= _PAGE:
                self.complete = True
                return
            if not new or time.monotonic() > deadline:
                break
        logger.warning(
            "the list of provider %r has no end: %d batches were read, and what is missing stays unknown",
            self._provider,
            len(seen),
        )
