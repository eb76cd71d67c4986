"""Loggers whose lines name the HTTP request that caused them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flask import has_request_context, request

MAX_REQUEST_ID = 128

_ID = re.compile(rf"[A-Za-z0-9._:/=+@-]{{1,{MAX_REQUEST_ID}}}")
_of_step: ContextVar[str | None] = ContextVar("llm_batches_request_id", default=None)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module."""
    logger = logging.getLogger(name)
    logger.addFilter(_add_request_id)
    return logger


def request_id() -> str | None:
    """Return the ``X-Request-ID`` of the current request, or of the create that a step is for.

    None if there is none, or if it is not 1 to 128 letters, digits and signs of ``._:/=+@-``.
    """
    if (found := _of_step.get()) is None and has_request_context():
        found = request.headers.get("X-Request-ID")
    return found if found is not None and _ID.fullmatch(found) else None


@contextmanager
def caused_by(request_id: str | None) -> Iterator[None]:
    """Add the id of a request to the lines that are logged in the block."""
    token = _of_step.set(request_id)
    try:
        yield
    finally:
        _of_step.reset(token)


def _add_request_id(record: logging.LogRecord) -> bool:
    if (found := request_id()) is not None:
        record.msg = f"{record.msg} (request {found})"
    return True
