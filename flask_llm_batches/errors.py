"""The errors of the package, each with its HTTP status and its code.

``str(error)`` is for the caller: it never holds a key, or text of a provider that is not meant for callers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Self

REQUIRED = "Missing data for required field."
"""The message for a field that is missing, in marshmallow's words."""


SOUGHT = "is being looked for at the provider"
"""The part of a message that says that it is not known whether the provider has a batch."""


_WHEN_BATCHES_END = 60  # seconds after which some batches may have ended


class ConfigurationError(ValueError):
    """A ``LLM_BATCHES_*`` setting cannot be used; raised by ``init_app``."""


class NotStored(LookupError):
    """The storage has no object with this key. Callers get another error, which ``core`` raises."""


class LLMBatchesError(Exception):
    """The base class of all errors that a call raises.

    Attributes:
        status: The HTTP status of the answer.
        code: The name of the error, for programs.
        param: The wrong field, if there is one.
        retry_after: ``Retry-After`` of the answer: seconds or an HTTP date.
        should_retry: False if repeating the call would do harm or be useless; OpenAI's SDKs obey it.
        headers: Further headers of the answer.
        extra: Further top-level fields of the answer.
    """

    status: int = 500
    code: str = "internal_error"
    headers: Sequence[tuple[str, str]] = ()

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: str | None = None,
        should_retry: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after = retry_after
        self.should_retry = should_retry
        self.extra = dict(extra or {})

    @property
    def passes(self) -> bool:
        """Whether the cause may pass by itself, so that the same call may succeed later."""
        return self.status >= 500


class HTTPError(LLMBatchesError):
    """An error that Flask or the host raised in our endpoints."""

    def __init__(self, message: str, *, status: int, code: str, headers: Sequence[tuple[str, str]]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


class InvalidModel(LLMBatchesError):
    """``model`` is not ``provider:model``, nor a name that stands for one."""

    status, code = 400, "invalid_model"


class UnknownProvider(LLMBatchesError):
    """No provider has that name."""

    status, code = 400, "unknown_provider"


class ProviderRejected(LLMBatchesError):
    """The provider refused the request; the message is the provider's, without keys."""

    status, code = 400, "provider_rejected"


class Unauthenticated(LLMBatchesError):
    """The caller is not known."""

    status, code = 401, "unauthenticated"
    headers = (("WWW-Authenticate", 'Bearer realm="llm-batches"'),)


class Forbidden(LLMBatchesError):
    """The caller is known, but may not do this."""

    status, code = 403, "forbidden"


class BatchNotFound(LLMBatchesError):
    """There is no such batch, or it is someone else's."""

    status, code = 404, "not_found"


class NoSuchFile(LLMBatchesError):
    """There is no such file, or it is someone else's, or it has expired."""

    status, code = 404, "not_found"

    def __init__(self, file_id: str, *, param: str | None = None) -> None:
        super().__init__(f"No such File object: {file_id}", param=param)


class NoSuchModel(LLMBatchesError):
    """The list of models has no such name."""

    status, code = 404, "not_found"


class FilesNotKept(LLMBatchesError):
    """This server keeps no files, as ``LLM_BATCHES_RETENTION`` is 0."""

    status, code = 501, "files_not_kept"

    def __init__(self) -> None:
        super().__init__(
            "This server keeps no files, as LLM_BATCHES_RETENTION is 0: submit the requests themselves.",
            should_retry=False,
        )


class DocsNotInstalled(LLMBatchesError):
    """The package that the interactive page of the OpenAPI document needs is not installed."""

    status, code = 501, "docs_not_installed"

    def __init__(self) -> None:
        super().__init__(
            "This page needs a package on the server: pip install 'flask-llm-batches[swagger]'",
            should_retry=False,
        )


class UnsupportedMediaType(LLMBatchesError):
    """The body has a media type that is not supported."""

    status, code = 415, "unsupported_media_type"


class BatchNotComplete(LLMBatchesError):
    """The batch has no results yet, because it has not ended."""

    status, code = 409, "batch_not_complete"

    def __init__(
        self, batch_id: str, *, status: str, provider: str, why: str = "", retry_after: int = 30
    ) -> None:
        # Existing clients read the status out of these words.
        super().__init__(
            f"Batch '{batch_id}' is not yet complete (status: {status}). "
            f"Call GET /v1/batches/{batch_id}?provider={provider} to check the current status. {why}".strip(),
            retry_after=str(retry_after),
            should_retry=False,
            extra={"status": status},
        )


class BatchFailed(LLMBatchesError):
    """The batch has no results, because it failed before any request ran."""

    status, code = 409, "batch_failed"

    def __init__(self, batch_id: str, *, reasons: str, status: str = "failed") -> None:
        super().__init__(
            f"Batch '{batch_id}' is not yet complete (status: {status}). {reasons}".strip(),
            should_retry=False,
            extra={"status": status},
        )


class ResultsGone(LLMBatchesError):
    """The provider no longer has the results: it keeps files only for some time."""

    status, code = 410, "results_gone"

    def __init__(self, batch_id: str, *, provider: str) -> None:
        super().__init__(f"Provider '{provider}' no longer has the results of batch '{batch_id}'")


class RequestsGone(LLMBatchesError):
    """The requests of the batch are not kept any more, so they cannot be submitted again."""

    status, code = 410, "requests_gone"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"The requests of batch '{batch_id}' are not kept any more", should_retry=False)


class IdempotencyInProgress(LLMBatchesError):
    """The first create with this ``Idempotency-Key`` has no answer yet.

    Either it is still running, or its batch is being looked for at the provider. The message then has the id.
    """

    status, code = 409, "idempotency_in_progress"

    def __init__(self, *, sought: str | None = None, retry_after: int = 2) -> None:
        super().__init__(
            "The first request with this Idempotency-Key "
            + ("is still running." if sought is None else f"got no answer. Its batch '{sought}' {SOUGHT}.")
            + " Send it again later.",
            retry_after=str(retry_after),
        )


class IdempotencyMismatch(LLMBatchesError):
    """An ``Idempotency-Key`` was used for another create before."""

    status, code = 422, "idempotency_mismatch"

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used for another request. Use a new key for a new batch.",
            param="Idempotency-Key",
        )


class AdoptionRefused(LLMBatchesError):
    """An operator cannot adopt or give up this batch."""

    status, code = 409, "adoption_refused"


class Problem(NamedTuple):
    """One thing that is wrong with a request.

    Attributes:
        path: The path of the field: ``("requests", 3, "custom_id")``; empty for the whole request.
        message: What is wrong with it.
        code: OpenAI's code for it, where it has one.
    """

    path: tuple[str | int, ...]
    message: str
    code: str = "invalid_request"


class ValidationFailed(LLMBatchesError):
    """Fields of the request are wrong.

    Attributes:
        problems: What is wrong, and where.
        in_query: Whether the fields are known to be in the query of a URL.
    """

    status, code = 422, "validation_error"

    def __init__(self, problems: Iterable[Problem], *, in_query: bool = False) -> None:
        self.problems = tuple(problems)
        self.in_query = in_query
        found = (f"{'.'.join(map(str, one.path)) or 'body'}: {one.message}" for one in self.problems[:5])
        super().__init__("; ".join(found))

    @classmethod
    def of(cls, message: str, *path: str | int) -> Self:
        """Return the error of one wrong field."""
        return cls([Problem(path, message)])


class UnsupportedParameters(ValidationFailed):
    """Requests have parameters that the provider would not receive."""

    code = "unsupported_parameters"


class TooLarge(LLMBatchesError):
    """The body, or the requests, have more bytes than a limit allows."""

    status, code = 413, "too_large"


class InvalidJSON(LLMBatchesError):
    """The body is not JSON."""

    status, code = 422, "invalid_json"


class UnsupportedProvider(LLMBatchesError):
    """The provider has no batch API."""

    status, code = 422, "unsupported_provider"


class RateLimited(LLMBatchesError):
    """The rate limit of the provider was reached.

    Attributes:
        is_final: Whether waiting does not help, as the account has no money left.
    """

    status, code = 429, "rate_limited"
    is_final = False

    @property
    def passes(self) -> bool:
        return not self.is_final


class OwnerLimitReached(LLMBatchesError):
    """The owner would have more than the app allows."""

    status, code = 429, "owner_limit_reached"

    def __init__(
        self,
        name: str,
        *,
        limit: int | Decimal,
        used: int | Decimal,
        asked: int | Decimal,
        resets_at: int | None = None,
    ) -> None:
        left = max(limit - used, 0)
        when = "batches end" if resets_at is None else "the next month begins, in UTC"
        what = f"{name} at once" if resets_at is None else f"{name} a month"
        super().__init__(
            f"Your limit is {limit:,} {what}: {left:,} are left, and this batch needs {asked:,}. "
            f"More are available when {when}.",
            retry_after=str(_WHEN_BATCHES_END if resets_at is None else max(1, resets_at - int(time.time()))),
            should_retry=False,
            extra={
                "limit": {
                    "name": name,
                    "limit": float(limit),
                    "used": float(used),
                    "left": float(left),
                    "resets_at": resets_at,
                }
            },
        )


class ProviderFailed(LLMBatchesError):
    """The provider failed, or refused our credentials.

    Attributes:
        upstream_status: The HTTP status of its answer; None if there was no answer, or it could not be read.
    """

    status, code = 502, "provider_error"
    upstream_status: int | None = None


class ProviderNotConfigured(LLMBatchesError):
    """The provider has no key or no package here, or is no longer in the settings."""

    status, code = 503, "provider_not_configured"


class RecordUnavailable(LLMBatchesError):
    """The record of batches could not be read or written."""

    status, code = 503, "record_unavailable"


class SpoolUnavailable(LLMBatchesError):
    """The requests of a create could not be written to disk."""

    status, code = 503, "spool_unavailable"


class StorageUnavailable(LLMBatchesError):
    """The storage could not be read or written."""

    status, code = 503, "storage_unavailable"


class ProviderTimeout(LLMBatchesError):
    """The provider did not answer in time."""

    status, code = 504, "provider_timeout"
