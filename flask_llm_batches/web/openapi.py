"""The OpenAPI document, made from the schemas."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask, Response, request

from flask_llm_batches.core.idempotency import HEADER
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.jsonl import NDJSON
from flask_llm_batches.web.files import files_beside
from flask_llm_batches.web.responses import json_response
from flask_llm_batches.web.schemas.batches import (
    BatchListSchema,
    BatchQuerySchema,
    BatchSchema,
    CheckedSchema,
    CreateBatchSchema,
    CreateQuerySchema,
    ListQuerySchema,
    RetrieveQuerySchema,
)
from flask_llm_batches.web.schemas.detail import DetailSchema
from flask_llm_batches.web.schemas.errors import ErrorSchema
from flask_llm_batches.web.schemas.files import (
    DeletedFileSchema,
    FileListSchema,
    FileSchema,
    FilesQuerySchema,
    ModelListSchema,
    ModelSchema,
)
from flask_llm_batches.web.schemas.results import ResultsQuerySchema, ResultsSchema
from flask_llm_batches.web.schemas.usage import UsageQuerySchema, UsageSchema

_PATH = "/openapi.json"

_ERRORS = {
    400: "`invalid_model`, `unknown_provider` or `provider_rejected`, the last in the provider's words",
    401: "`unauthenticated`: missing or wrong credentials",
    403: "`forbidden`",
    404: "`not_found`: no such batch or file, or someone else's",
    405: "`method_not_allowed`: this path has other methods",
    409: "`batch_not_complete`, `idempotency_in_progress`: repeat after `Retry-After`; `batch_failed`",
    410: "`results_gone`, `requests_gone`: they are kept for some time only",
    413: "`too_large`",
    415: "`unsupported_media_type`",
    416: "`range_not_satisfiable`: the file has no such bytes",
    422: "`validation_error`, `invalid_json`, `unsupported_provider`, `unsupported_parameters` or "
    "`idempotency_mismatch`",
    429: "`rate_limited`: the provider's own limit, or the app's; `owner_limit_reached`: `limit` has more",
    500: "`internal_error`",
    501: "`files_not_kept`: this server keeps no files",
    502: "`provider_error`: the provider failed; what it said is in the log",
    503: "`provider_not_configured`, `record_unavailable`, `spool_unavailable` or `storage_unavailable`: "
    "what to do is in the log",
    504: "`provider_timeout`: no answer in time",
}

_HEADERS = {
    401: {"WWW-Authenticate": "What credentials are taken"},
    405: {"Allow": "What methods this path has"},
    409: {"Retry-After": "Seconds", "X-Should-Retry": "`false`: repeating the call at once does not help"},
    429: {"Retry-After": "Seconds or an HTTP date"},
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
    "description": "The provider's id, or the one that a batch is listed with before it has one. "
    "Slashes in it may be raw or percent-encoded.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 512},
}

_PROVIDER = {
    "name": "provider",
    "in": "path",
    "required": True,
    "description": "The name of the provider in `LLM_BATCHES_PROVIDERS`.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
}


_FILE_ID = {"name": "file_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _of_lines(description: str) -> dict[str, Any]:
    return {kind: {"schema": {"type": "string", "description": description}} for kind in NDJSON}


_LINES = _of_lines("One request per line: `custom_id` and `body`, or OpenAI's form. Blank lines are skipped.")
_LINES_QUERY = [
    {
        "name": name,
        "in": "query",
        "description": f"Only with JSONL: the same as `{name}` in a JSON body{as_text}.",
        "schema": {"type": "string"},
    }
    for name, as_text in (
        ("model", ""),
        ("completion_window", ""),
        ("endpoint", ""),
        ("user", ""),
        ("on_results", ""),
        ("webhook", ""),
        ("retries", ""),
        ("metadata", ", as JSON text"),
    )
]
_EXAMPLE = {
    "model": "openai:gpt-4o-mini",
    "requests": [{"custom_id": "r1", "body": {"messages": [{"role": "user", "content": "Say hello."}]}}],
}
_TAGS = {"batch": "Batches", "file": "Files", "model": "Models"}
_IDEMPOTENCY_KEY = {
    "name": HEADER,
    "in": "header",
    "description": "The same create with the same key returns the same batch.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_ROWS = _of_lines("One `Row` per line, and blank lines. After an interruption, the last line is an `Error`.")


def openapi() -> Response:
    prefix = request.path.rstrip("/").removesuffix(_PATH)
    files = files_beside(current_llm_batches.settings.files_url_prefix, prefix)
    response = json_response(document(prefix, files, server=request.script_root or "/"))
    response.headers["Cache-Control"] = "public, max-age=300"
    return response


def mounted_at(app: Flask) -> Iterator[str]:
    """Yield the paths under which the endpoints of an app are, in the order of their registration."""
    for rule in app.url_map.iter_rules():
        if app.view_functions.get(rule.endpoint) is openapi:
            yield rule.rule.removesuffix(_PATH)


@lru_cache(maxsize=8)
def document(prefix: str, files: str | None, server: str = "/") -> dict[str, Any]:
    """Return the OpenAPI 3.1 document.

    Args:
        prefix: Where the endpoints are: ``/v1/batches``.
        files: Where the files are; None for nowhere.
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
    created = {
        "required": True,
        "description": "May be packed with gzip. With JSONL, the other fields are in the query.",
        "content": {
            "application/json": {"schema": CreateBatchSchema, "example": _EXAMPLE},
            **_LINES,
        },
    }
    spec.path(
        prefix,
        operations={
            "get": _operation(
                "list", "List batches, newest first", BatchListSchema, usual, parameters=[listed]
            )
            | {
                "description": "The caller's own. For an admin who names no `status` and no `owner`, what "
                "the provider has: `provider` is required then."
            },
            "post": _operation(
                "create",
                "Submit a batch",
                {"anyOf": [BatchSchema, CheckedSchema]},
                (*usual, 404, 409, 413, 415),
                parameters=[{"in": "query", "schema": CreateQuerySchema}, *_LINES_QUERY, _IDEMPOTENCY_KEY],
                requestBody=created,
            )
            | {"description": "Returns the batch. A dry run returns what it has found."},
        },
    )
    of_one = (*usual, 404)
    retrieve = _operation(
        "retrieve",
        "Retrieve a batch",
        DetailSchema,
        of_one,
        parameters=[_ID, {"in": "query", "schema": RetrieveQuerySchema}],
    )
    retry = _operation(
        "retry",
        "Submit failed requests again",
        BatchSchema,
        (*of_one, 409, 410),
        parameters=[*by_id, _IDEMPOTENCY_KEY],
    ) | {"description": "A new batch of the requests that failed in this one, which has ended."}
    cancel = _operation("cancel", "Cancel a batch", BatchSchema, of_one, parameters=by_id)
    results = _operation(
        "results",
        "Fetch the results",
        ResultsSchema,
        (*of_one, 409, 410),
        parameters=[_ID, {"in": "query", "schema": ResultsQuerySchema}],
    )
    results["responses"]["200"]["content"] |= _ROWS
    for path, method, operation in (
        ("", "get", retrieve),
        ("/cancel", "post", cancel),
        ("/retry", "post", retry),
        ("/results", "get", results),
    ):
        spec.path(f"{prefix}/{{batch_id}}{path}", operations={method: operation})
    usage = _operation(
        "usage",
        "Sum up the usage",
        UsageSchema,
        usual,
        parameters=[{"in": "query", "schema": UsageQuerySchema}],
    )
    usage["responses"]["200"]["content"]["text/csv"] = {"schema": {"type": "string"}}
    spec.path(f"{prefix}/usage", operations={"get": usage})
    webhook = _operation("webhook", "Take an event of a provider", {}, (401, 405, 413, 500, 503)) | {
        "description": "For OpenAI and Gemini, with no other credentials than their signature.",
        "parameters": [_PROVIDER],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "security": [],
    }
    webhook["responses"]["204"] = {"description": "The event was signed; a worker looks at its batch next"}
    del webhook["responses"]["200"]
    spec.path(f"{prefix}/webhooks/{{provider}}", operations={"post": webhook})
    if files is not None:
        _add_files(spec, files)
    made: dict[str, Any] = spec.to_dict()
    return made


def _add_files(spec: APISpec, files: str) -> None:
    usual = (401, 403, 405, 422, 429, 500, 503)
    of_one = (*usual, 404)
    form = {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary", "description": "JSONL, with any name."},
            "purpose": {"type": "string", "enum": ["batch"]},
            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
        },
    }
    upload = _operation("upload_file", "Upload a file", FileSchema, (*usual, 400, 413, 415, 501)) | {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    }
    listed = [{"in": "query", "schema": FilesQuerySchema}]
    spec.path(
        files,
        operations={
            "get": _operation("list_files", "List files", FileListSchema, usual, parameters=listed),
            "post": upload,
        },
    )
    # The size of results is counted by reading them, and that may fail as reading them does.
    read = (*of_one, 409, 410, 502, 504)
    content = _operation("file_content", "Fetch the bytes of a file", {}, (*read, 416), parameters=[_FILE_ID])
    lines = {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}}
    content["responses"]["200"]["content"] = lines
    content["responses"]["206"] = {"description": "The part that a `Range` asks for", "content": lines}
    spec.path(
        f"{files}/{{file_id}}",
        operations={
            "get": _operation("retrieve_file", "Retrieve a file", FileSchema, read, parameters=[_FILE_ID]),
            "delete": _operation(
                "delete_file", "Delete a file", DeletedFileSchema, of_one, parameters=[_FILE_ID]
            ),
        },
    )
    spec.path(f"{files}/{{file_id}}/content", operations={"get": content})
    models = files.rpartition("/")[0] + "/models"
    spec.path(
        models, operations={"get": _operation("list_models", "List the models", ModelListSchema, usual)}
    )
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    retrieve = _operation("retrieve_model", "Retrieve a model", ModelSchema, of_one, parameters=[model])
    spec.path(f"{models}/{{model}}", operations={"get": retrieve})


def _operation(name: str, summary: str, schema: Any, errors: tuple[int, ...], **more: Any) -> dict[str, Any]:
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
    tag = next((tag for tag in ("file", "model") if tag in name), "batch")
    return {
        "operationId": name,
        "tags": [_TAGS[tag]],
        "summary": summary,
        "responses": responses,
        **more,
    }


def _class_of(schema: Any) -> str:
    name: str = schema.__name__ if isinstance(schema, type) else type(schema).__name__
    return name
