"""What any-llm and the SDKs raise, into our errors; and how it is logged without giving keys away."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from flask_llm_batches.config import Settings
from flask_llm_batches.errors import (
    BatchNotFound,
    LLMBatchesError,
    ProviderFailed,
    ProviderNotConfigured,
    ProviderRejected,
    ProviderTimeout,
    RateLimited,
)

logger = logging.getLogger(__name__)

REDACTED = "[redacted]"

# The status that stands for an exception of any-llm's where the SDK's own has none (Bedrock, Gemini).
_STATUS_OF = {
    "RateLimitError": 429,
    "AuthenticationError": 401,
    "InvalidRequestError": 400,
    "ContentFilterError": 400,
    "ContextLengthExceededError": 400,
    "UnsupportedParameterError": 400,
    "GatewayTimeoutError": 504,
}

_KEY_SHAPED = re.compile(
    r"""\b(?:sk|pk|rk|gsk|xai|ghp|hf)[-_][-_.*A-Za-z0-9]{8,}
    | \bAIza[-_A-Za-z0-9]{16,} | \bAKIA[A-Z0-9]{12,} | \bya29\.\S+
    | \beyJ[-_A-Za-z0-9]+\.[-_A-Za-z0-9]+(?:\.[-_A-Za-z0-9]+)?
    | (?<=Bearer\s)\S+
    # Any other long run of letters and digits, but for the ids of batches, files, requests and UUIDs.
    | \b(?!(?:batch|msgbatch|file|req|resp)[-_])(?![0-9a-f]{8}-[0-9a-f]{4}-)
      (?=[A-Za-z_-]*[0-9])(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_-]{32,}
    """,
    re.VERBOSE,
)

# A proxy's error page is no message.
_LONGEST_TEXT = 2000

# Shorter values are words ("eu", "test"): taking them out would tell where they stand.
_SHORTEST_SECRET = 6


class Redactor:
    """Takes keys out of text: every configured value, and whatever is shaped like a key."""

    def __init__(self, settings: Settings) -> None:
        secrets = set(_strings(settings.master_key))
        for provider in (settings.providers or {}).values():
            secrets.update(_strings(provider.api_key))
            secrets.update(_strings(provider.client_args))
        self._configured = secrets
        self._from_environment: set[str] = set()

    def learn(self, variable: str) -> None:
        """Take out the value of an environment variable, too."""
        self._from_environment.update(_strings(os.environ.get(variable)))

    def __call__(self, text: str) -> str:
        for secret in sorted(self._configured | self._from_environment, key=len, reverse=True):
            text = text.replace(secret, REDACTED)
        return _KEY_SHAPED.sub(REDACTED, text)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= _SHORTEST_SECRET:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            yield from _strings(item)


def as_ours(
    error: Exception, *, provider: str, call: str, redact: Redactor, batch_id: str | None = None
) -> LLMBatchesError:
    """Say in our errors what a call to a provider raised, and log what is not for the caller.

    Args:
        error: What any-llm or an SDK raised.
        provider: The provider's name.
        call: What was being done, for the log: ``"retrieve"``.
        redact: Takes the keys out.
        batch_id: Whose batch it was about; a 404 is then that batch's.
    """
    if isinstance(error, LLMBatchesError):
        return error
    original = getattr(error, "original_exception", None) or error
    status = status_of(error)
    text = redact(_text(original))[:_LONGEST_TEXT]
    kind = f"{status} {type(original).__name__}" if status else type(original).__name__
    logger.warning("%s at provider %r failed: %s: %s", call, provider, kind, text)
    if isinstance(error, TimeoutError) or "Timeout" in type(original).__name__:
        return ProviderTimeout(f"Provider '{provider}' did not answer in time")
    if isinstance(error, ImportError) or type(error).__name__ == "MissingApiKeyError":
        return ProviderNotConfigured(f"Provider '{provider}' is not configured on this server")
    if status == 404 and batch_id is not None:
        return BatchNotFound(f"Batch '{batch_id}' not found")
    if status in (400, 409, 413, 422):
        return ProviderRejected(text)
    if status == 429:
        return RateLimited(
            f"Provider '{provider}' has reached its rate limit", retry_after=_retry_after(error, original)
        )
    return ProviderFailed("LLM provider error")


def status_of(error: Exception) -> int | None:
    """Give the HTTP status that a provider answered; None if it gave no answer."""
    original = getattr(error, "original_exception", None) or error
    return _status(original) or _STATUS_OF.get(type(error).__name__)


def _status(error: object) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "code", "http_status"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    response = getattr(error, "response", None)  # botocore's is a dict
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    return None


def _text(error: BaseException) -> str:
    body = getattr(error, "body", None)
    if isinstance(body, str):  # Mistral's SDK leaves it unread
        with suppress(ValueError):
            body = msgspec.json.decode(body)
    if isinstance(body, dict):
        inner = body.get("error")
        message = inner.get("message") if isinstance(inner, dict) else body.get("message")
        if isinstance(message, str):
            return message
    return str(error)


def _retry_after(*errors: Any) -> str | None:
    for error in errors:
        value = getattr(error, "retry_after", None)
        if value is None:
            # Mistral's SDK has the headers at the error itself.
            headers = getattr(getattr(error, "response", error), "headers", None)
            value = headers.get("retry-after") if isinstance(headers, Mapping) else None
        # Nothing but digits or an HTTP date goes on into a header of ours.
        if value is not None and re.fullmatch(r"[\w ,:.+-]{1,64}", str(value)):
            return str(value)
    return None
