"""Turns what any-llm and the SDKs raise into our errors, and logs it without keys."""

from __future__ import annotations

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
from flask_llm_batches.log import get_logger

logger = get_logger(__name__)

REDACTED = "[redacted]"

# The HTTP status of an any-llm exception, if the SDK's exception has none (Bedrock, Gemini).
_STATUS_OF = {
    "RateLimitError": 429,
    "AuthenticationError": 401,
    "InvalidRequestError": 400,
    "ContentFilterError": 400,
    "ContextLengthExceededError": 400,
    "UnsupportedParameterError": 400,
    "GatewayTimeoutError": 504,
}

# After one of these statuses there is no batch. After any other answer, or none, there may be one.
_REFUSALS = frozenset({400, 401, 403, 404, 413, 415, 422, 429})

# A run of letters, digits, dashes and underscores is matched only from its beginning. In a long run, a match
# from every dash would take hours.
_KEY_SHAPED = re.compile(
    r"""\b(?:sk|pk|rk|gsk|xai|ghp|hf)[-_][-_.*A-Za-z0-9]{8,}
    | \bAIza[-_A-Za-z0-9]{16,} | \bAKIA[A-Z0-9]{12,} | \bya29\.\S+
    | (?<![-_A-Za-z0-9])eyJ[-_A-Za-z0-9]+\.[-_A-Za-z0-9]+(?:\.[-_A-Za-z0-9]+)?
    | (?<=Bearer\s)\S+
    # Any other long run of letters and digits, except the ids of batches, files, requests and UUIDs.
    | (?<![-_A-Za-z0-9])(?!(?:batch|msgbatch|file|req|resp)[-_])(?![0-9a-f]{8}-[0-9a-f]{4}-)
      (?=[A-Za-z_-]*[0-9])(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_-]{32,}
    """,
    re.VERBOSE,
)

# Longer texts, such as the error page of a proxy, are cut.
_MAX_TEXT = 2000

# A key that is cut would not be recognised. So the search goes this much further, or by the length of the
# longest secret.
_MARGIN = 4000

# OpenAI's code of a 429 that does not pass: https://developers.openai.com/api/docs/guides/error-codes
_NO_MONEY = "insufficient_quota"

# Only digits or an HTTP date are copied to the ``Retry-After`` of our response.
_RETRY_AFTER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?|[A-Z][a-z]{2,8}, [A-Za-z0-9: -]{8,40}")

# Shorter values are words ("eu", "test"). Redacting them in a sentence would reveal them.
_MIN_SECRET = 6


class Redactor:
    """Removes keys from text: all configured values, and everything that looks like a key.

    Only the beginning of a long text is returned.
    """

    def __init__(self, settings: Settings) -> None:
        secrets = set(_strings(settings.master_key))
        for provider in (settings.providers or {}).values():
            secrets.update(_strings(provider.api_key))
            secrets.update(_strings(provider.client_args))
        self._secrets = secrets

    def learn(self, variable: str) -> None:
        """Remove the value of an environment variable, too."""
        self._secrets.update(_strings(os.environ.get(variable)))

    def __call__(self, text: str) -> str:
        secrets = tuple(self._secrets)  # other threads may learn one meanwhile
        text = text[: _MAX_TEXT + max([_MARGIN, *map(len, secrets)])]
        kept, at = [], 0
        for start, end in sorted(_key_spans(text, secrets)):
            if start >= _MAX_TEXT:
                break
            if start >= at:
                kept += [text[at:start], REDACTED]
            at = max(at, end)
        kept.append(text[at:_MAX_TEXT])
        return "".join(kept)


def _key_spans(text: str, secrets: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield where keys begin and end."""
    for secret in secrets:
        start = text.find(secret)
        while start >= 0:
            yield start, start + len(secret)
            start = text.find(secret, start + 1)
    for match in _KEY_SHAPED.finditer(text):
        yield match.span()


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= _MIN_SECRET:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        for item in value:
            yield from _strings(item)


def to_our_error(
    error: Exception, *, provider: str, call: str, redact: Redactor, batch_id: str | None = None
) -> LLMBatchesError:
    """Return our error for what a call to a provider raised, and log the details.

    Args:
        error: What any-llm or an SDK raised.
        provider: The provider's name.
        call: The name of the call, for the log: ``"retrieve"``.
        redact: Removes the keys.
        batch_id: The id of the batch; a 404 means that it does not exist.
    """
    if isinstance(error, LLMBatchesError):
        return error
    original = getattr(error, "original_exception", None) or error
    status = status_of(error)
    text = redact(_text(original))
    _forget_frames(error)
    kind = f"{status} {type(original).__name__}" if status else type(original).__name__
    cause = original.__cause__
    reason = text if cause is None else redact(f"{text} ({type(cause).__name__}: {cause})")
    # The provider's text is quoted: a line feed in it would start a new line of the log.
    logger.warning("%s at provider %r failed: %s: %r", call, provider, kind, reason)
    if isinstance(error, TimeoutError) or "Timeout" in type(original).__name__:
        return ProviderTimeout(f"Provider '{provider}' did not answer in time")
    if isinstance(error, ImportError):
        return ProviderNotConfigured(
            f"Provider '{provider}' cannot be called from this server: its package is not installed"
        )
    if type(error).__name__ == "MissingApiKeyError":
        return ProviderNotConfigured(
            f"Provider '{provider}' cannot be called from this server: it has no key"
        )
    if status == 404 and batch_id is not None:
        return BatchNotFound(f"Batch '{batch_id}' not found")
    if status in (400, 409, 413, 422):
        return ProviderRejected(text)
    if status == 429:
        limited = RateLimited(
            f"Provider '{provider}' has reached its rate limit", retry_after=_retry_after(error, original)
        )
        limited.is_final = getattr(original, "code", None) == _NO_MONEY
        return limited
    failed = ProviderFailed("LLM provider error")
    failed.upstream_status = status
    return failed


def _forget_frames(error: BaseException) -> None:
    """Delete the tracebacks of an exception and of its causes.

    A frame that has the exception in a variable is in a reference cycle with it. It keeps connections and
    rows until the garbage collector runs.
    """
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and one not in seen:
            seen.append(one)
            one.__traceback__ = None
            left += (one.__cause__, one.__context__, getattr(one, "original_exception", None))


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of a provider's answer; None if there was no answer."""
    original = getattr(error, "original_exception", None) or error
    if isinstance(original, TypeError):  # a wrong argument in the settings, which no provider has seen
        return None
    return _status(original) or _STATUS_OF.get(type(error).__name__)


def is_refusal(error: Exception) -> bool:
    """Return whether an error of a create means for certain that there is no batch."""
    original = getattr(error, "original_exception", None)
    status = _status(original or error)
    if status is not None:
        return status in _REFUSALS
    # Raised by any-llm itself. The class of a converted error is a guess from its message.
    return original is None and type(error).__name__ in ("InvalidRequestError", "UnsupportedParameterError")


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
    if isinstance(body, str):  # Mistral's SDK does not parse it
        with suppress(ValueError, RecursionError):
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
            # In Mistral's SDK, the error itself has the headers.
            headers = getattr(getattr(error, "response", error), "headers", None)
            value = headers.get("retry-after") if isinstance(headers, Mapping) else None
        if value is not None and _RETRY_AFTER.fullmatch(str(value)):
            return str(value)
    return None
