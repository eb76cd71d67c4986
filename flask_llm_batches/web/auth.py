"""Finds out who is calling: by the host's authenticator, the master key, or a built-in key."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from flask import Response, current_app, g, request
from flask.typing import ResponseReturnValue

from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.errors import LLMBatchesError, Unauthenticated
from flask_llm_batches.principal import Principal

Authenticator = Callable[[], Principal | Awaitable[Principal | None] | None]

ErrorHandler = Callable[[LLMBatchesError, Response], ResponseReturnValue | Awaitable[ResponseReturnValue]]


@dataclass(slots=True)
class Hooks:
    """The host's own functions."""

    authenticator: Authenticator | None = None
    error_handler: ErrorHandler | None = None


MASTER_OWNER = "master-key"
"""The owner of what is made with the master key and names no ``user``."""

KEY_HEADERS = ("Otari-Key", "AnyLLM-Key", "X-AnyLLM-Key", "X-API-Key")
"""The headers of keys, besides ``Authorization``. The first one that is present counts."""


def authenticate(authenticator: Authenticator | None) -> None:
    """Find out who is calling, for ``caller``.

    Raises:
        Unauthenticated: The caller is not known.
    """
    principal = _by_host(authenticator)
    current_llm_batches.release_connection()
    g.llm_batches_principal = principal or _by_key()
    if g.llm_batches_principal is None:
        raise Unauthenticated("Missing or invalid credentials")


def caller() -> Principal:
    """Return the Principal of this request."""
    principal: Principal = g.llm_batches_principal
    return principal


def _by_host(authenticator: Authenticator | None) -> Principal | None:
    principal = None if authenticator is None else current_app.ensure_sync(authenticator)()
    if principal is not None and not isinstance(principal, Principal):
        raise TypeError(
            "the authenticator of flask-llm-batches must return a Principal or None, "
            f"not {type(principal).__name__}"
        )
    return principal


def _by_key() -> Principal | None:
    key = _presented_key()
    if key is None:
        return None
    master_key = current_llm_batches.settings.master_key
    if master_key is not None and hmac.compare_digest(_digest(key), _digest(master_key)):
        return Principal(owner=MASTER_OWNER, admin=True)
    return current_llm_batches.keys.verify(key)


def _presented_key() -> str | None:
    """Return the key in the headers. The first header that is present counts."""
    for name in KEY_HEADERS:
        if (value := request.headers.get(name)) is not None:
            scheme, _, key = value.partition(" ")
            return key.strip() if scheme.lower() == "bearer" and key else value
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
