"""Turns errors of backends into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flask_llm_batches.errors import StorageUnavailable
from flask_llm_batches.log import get_logger

logger = get_logger(__name__)


@contextmanager
def unavailable(*errors: type[Exception]) -> Iterator[None]:
    """Log errors, and raise ``StorageUnavailable`` instead."""
    try:
        yield
    except errors as error:
        raise _unavailable(error) from None


def _unavailable(error: Exception) -> StorageUnavailable:
    # The further lines of an object store's error have its request and its response.
    logger.error("the storage is unavailable: %s: %s", type(error).__name__, str(error).partition("\n")[0])
    return StorageUnavailable("The storage is unavailable. Try again later.")
