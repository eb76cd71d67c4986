"""The OpenAPI document, made from the schemas."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from flask_llm_batches.web.schemas import (
    BatchListSchema,
    BatchQuerySchema,
    BatchSchema,
    CreateBatchSchema,
    ErrorSchema,
    ListQuerySchema,
    ResultsSchema,
)

_ERRORS = {
    400: "`invalid_model`, `unknown_provider` or `provider_rejected`, the last in the provider's words",
    401: "`unauthenticated`: missing or wrong credentials",
    403: "`forbidden`",
    404: "`not_found`: no such batch, or someone else's",
    405: "`method_not_allowed`: this path has other methods",
    409: "`batch_not_complete`: come back after `Retry-After`; or `batch_failed`: it never will be",
    413: "`too_large`",
    415: "`unsupported_media_type`",
    422: "`validation_error`, `invalid_json` or `unsupported_provider`",
    429: "`rate_limited`: the provider's own limit, or the app's",
    500: "`internal_error`",
    502: "`provider_error`: the provider failed; what it said is in the log",
    503: "`provider_not_configured` or `record_unavailable`: what to do is in the log",
    504: "`provider_timeout`: no answer in time",
}

_HEADERS = {
    401: {"WWW-Authenticate": "What credentials are taken"},
    405: {"Allow": "What methods this path has"},
    409: {"Retry-After": "Seconds", "X-Should-Retry": "`false`: repeating at once is no use"},
    429: {"Retry-After": "Seconds or an HTTP date, as the provider gave it"},
    502: {"X-Should-Retry": "`false` for a create: there may be a batch"},
    504: {"X-Should-Retry": "`false` for a create: there may be a batch"},
}

_SCHEMES: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "otari_key": {"type": "apiKey", "in": "header", "name": "Otari-Key"},
    "anyllm_key": {"type": "apiKey", "in": "header", "name": "AnyLLM-Key"},
}

_ID = {
    "name": "batch_id",
    "in": "path",
    "required": True,
    "description": "The provider's id. Slashes in it may be raw or percent-encoded.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 512},
}


@lru_cache(maxsize=8)
def document(prefix: str, server: str = "/") -> dict[str, Any]:
    """Give the OpenAPI 3.1 document.

    Args:
        prefix: Where the endpoints are: ``/v1/batches``.
        server: The path that a proxy puts before it.
    """
    spec = APISpec(
        title="Batches for large language models",
        version=version("flask-llm-batches"),
        openapi_version="3.1.0",
        plugins=[
            MarshmallowPlugin(schema_name_resolver=lambda schema: _class_of(schema).removesuffix("Schema"))
        ],
        info={"description": "Compatible with the batch endpoints of Mozilla's any-llm gateway."},
        servers=[{"url": server}],
        security=[{name: []} for name in _SCHEMES],
    )
    for name, scheme in _SCHEMES.items():
        spec.components.security_scheme(name, scheme)
    by_id = [_ID, {"in": "query", "schema": BatchQuerySchema}]
    usual = (400, 401, 403, 405, 422, 429, 500, 502, 503, 504)
    listed = {"in": "query", "schema": ListQuerySchema}
    created = {"required": True, "content": {"application/json": {"schema": CreateBatchSchema}}}
    spec.path(
        prefix,
        operations={
            "get": _operation(
                "list", "List batches, newest first", BatchListSchema, usual, parameters=[listed]
            )
            | {"description": "The caller's own; for an admin what the provider has, and it must be named."},
            "post": _operation(
                "create", "Hand in a batch", BatchSchema, (*usual, 413, 415), requestBody=created
            ),
        },
    )
    for path, method, name, summary, schema, errors in (
        ("", "get", "retrieve", "Ask after a batch", BatchSchema, (*usual, 404)),
        ("/cancel", "post", "cancel", "Ask for a batch to be cancelled", BatchSchema, (*usual, 404)),
        ("/results", "get", "results", "Fetch the results", ResultsSchema, (*usual, 404, 409)),
    ):
        operation = _operation(name, summary, schema, errors, parameters=by_id)
        spec.path(f"{prefix}/{{batch_id}}{path}", operations={method: operation})
    made: dict[str, Any] = spec.to_dict()
    return made


def _operation(name: str, summary: str, schema: type, errors: tuple[int, ...], **more: Any) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {"description": summary, "content": {"application/json": {"schema": schema}}}
    }
    for status in sorted(errors):
        responses[str(status)] = {
            "description": _ERRORS[status],
            "content": {"application/json": {"schema": ErrorSchema}},
            "headers": {
                header: {"description": text, "schema": {"type": "string"}}
                for header, text in _HEADERS.get(status, {}).items()
            },
        }
    return {"operationId": name, "summary": summary, "responses": responses, **more}


def _class_of(schema: Any) -> str:
    name: str = schema.__name__ if isinstance(schema, type) else type(schema).__name__
    return name
