"""Turns our own errors, Flask's and marshmallow's into answers."""

from __future__ import annotations

from typing import Any

from flask import Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from flask_llm_batches.core.idempotency import HEADER as IDEMPOTENCY_KEY
from flask_llm_batches.errors import REQUIRED, HTTPError, InvalidJSON, LLMBatchesError, ValidationFailed
from flask_llm_batches.jsonl import NDJSON
from flask_llm_batches.web.responses import json_response
from flask_llm_batches.web.schemas.batches import LinesQuerySchema
from flask_llm_batches.web.schemas.errors import ErrorSchema

_ERROR, _LINES_QUERY = ErrorSchema(), LinesQuerySchema()

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "api_error",
    501: "api_error",
    502: "api_error",
    503: "api_error",
    504: "api_error",
}
"""OpenAI's ``type`` of an error by status; any other is an ``invalid_request_error``."""

HTTP_CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}
"""Our code for the errors that Flask or the host raises."""


def dump_error(error: LLMBatchesError, location: str) -> dict[str, Any]:
    """Return the body of the answer for an error.

    Args:
        error: What was raised.
        location: Where its fields are: ``body``, ``query`` or ``header``.
    """
    detail: Any = str(error)
    message, param = str(error), error.param
    if isinstance(error, ValidationFailed):
        detail = [
            {
                "type": "missing" if text.startswith(REQUIRED) else "value_error",
                "loc": [location, *path],
                "msg": text,
            }
            for path, text, _ in error.problems
        ]
        param = next((str(item["loc"][1]) for item in detail if len(item["loc"]) > 1), None)
    elif isinstance(error, InvalidJSON):
        detail = [{"type": "json_invalid", "loc": [location], "msg": message}]
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    described = {"message": message, "type": kind, "code": error.code, "param": param}
    dumped: dict[str, Any] = _ERROR.dump({"detail": detail, "error": described, **error.extra})
    return dumped


def answer_error(error: LLMBatchesError) -> Response:
    response = json_response(dump_error(error, _location(error)))
    response.status_code = error.status
    response.headers.extend(error.headers)
    if error.retry_after is not None:
        response.headers["Retry-After"] = error.retry_after
    if not error.should_retry:
        response.headers["X-Should-Retry"] = "false"
    return response


def _location(error: LLMBatchesError) -> str:
    """Return where the fields are that an error is about: ``body``, ``query`` or ``header``."""
    if not (request.endpoint or "").endswith((".create", ".upload_file")):
        return "query"
    wrong: set[str | int] = set()
    if isinstance(error, ValidationFailed):
        if error.in_query:
            return "query"
        wrong = {path[0] for path, *_ in error.problems if path}
    if IDEMPOTENCY_KEY in (error.param, *wrong):
        return "header"
    return "query" if request.mimetype in NDJSON and wrong and wrong <= _LINES_QUERY.fields.keys() else "body"


def http_error(error: HTTPException) -> HTTPError:
    """Return our error for one of Flask's, or for a host's ``abort``."""
    message = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        message = f"The body is larger than {request.max_content_length} bytes, the limit of this server"
    status = error.code or 500
    headers = [(name, value) for name, value in error.get_headers() if name.lower() != "content-type"]
    ours = HTTPError(message, status=status, code=HTTP_CODES[status], headers=headers)
    # An unexpected error may have happened after the submit.
    ours.should_retry = not (status == 500 and (request.endpoint or "").endswith(".create"))
    return ours
