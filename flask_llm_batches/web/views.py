"""The blueprint: authenticate, load, call the service, dump."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
from flask import Blueprint, Response, request
from marshmallow import Schema
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from flask_llm_batches.core.service import current_llm_batches
from flask_llm_batches.errors import Forbidden, LLMBatchesError, Unauthenticated, UnsupportedMediaType
from flask_llm_batches.web.auth import Hooks, authenticate, caller
from flask_llm_batches.web.schemas import (
    HTTP_CODES,
    BatchListSchema,
    BatchQuerySchema,
    BatchSchema,
    ListQuerySchema,
    ResultsSchema,
    dump_error,
    load,
    load_create,
)

# Made once: a schema copies all its fields when it is made.
BATCH, BATCH_LIST, RESULTS = BatchSchema(), BatchListSchema(), ResultsSchema()
BATCH_QUERY, LIST_QUERY = BatchQuerySchema(), ListQuerySchema()

METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}


def create() -> Response:
    body = request.get_data(cache=False)
    if body and not request.is_json:
        raise UnsupportedMediaType("The Content-Type of a create must be application/json")
    data = load_create(body)
    user = data.pop("user")
    principal = caller()
    if user not in (None, principal.owner) and not principal.admin:
        raise Forbidden("Only an admin may name another user than themselves", param="user")
    batch = current_llm_batches.create(owner=user or principal.owner, requested_by=principal.owner, **data)
    return _answer(BATCH, batch)


def list_batches() -> Response:
    query = load(LIST_QUERY, request.args.to_dict())
    return _answer(BATCH_LIST, current_llm_batches.list(owner=_owner(), **query))


def retrieve(batch_id: str) -> Response:
    query = load(BATCH_QUERY, request.args.to_dict())
    return _answer(
        BatchSchema(), current_llm_batches.retrieve(batch_id.removesuffix("/"), owner=_owner(), **query)
    )


def cancel(batch_id: str) -> Response:
    query = load(BATCH_QUERY, request.args.to_dict())
    return _answer(BATCH, current_llm_batches.cancel(batch_id, owner=_owner(), **query))


def results(batch_id: str) -> Response:
    query = load(BATCH_QUERY, request.args.to_dict())
    rows = current_llm_batches.results(batch_id, owner=_owner(), requested_by=caller().owner, **query)
    return _answer(RESULTS, {"results": rows})


# The paths with a slash at the end stand here for themselves: "<path:batch_id>" would take the slash,
# whatever strict_slashes says.
ROUTES: tuple[tuple[str, dict[str, Callable[..., Response]]], ...] = (
    ("", {"GET": list_batches, "POST": create}),
    ("/<path:batch_id>", {"GET": retrieve}),
    ("/<path:batch_id>/cancel", {"POST": cancel}),
    ("/<path:batch_id>/cancel/", {"POST": cancel}),
    ("/<path:batch_id>/results", {"GET": results}),
    ("/<path:batch_id>/results/", {"GET": results}),
)


def create_blueprint(hooks: Hooks) -> Blueprint:
    """Make the blueprint; the hooks are looked at when a request comes."""
    blueprint = Blueprint("llm_batches", __name__)

    @blueprint.before_request
    def _admit() -> None:
        settings = current_llm_batches.settings
        request.max_content_length = settings.max_content_length
        # A browser's preflight carries no credentials, and Flask's answer to it tells nothing.
        if request.method != "OPTIONS":
            authenticate(hooks.authenticator, settings.master_key)

    options: dict[str, Any] = {"strict_slashes": False, "merge_slashes": False}
    for number, (path, views) in enumerate(ROUTES):
        for method, view in views.items():
            blueprint.add_url_rule(path, view_func=view, methods=[method], **options)
        # Without this rule a wrong method would get the host's error page.
        blueprint.add_url_rule(
            path, f"method_not_allowed_{number}", _only(*views), methods=METHODS - views.keys(), **options
        )

    blueprint.register_error_handler(LLMBatchesError, _answer_error)
    # By status, not on HTTPException: the host's handler for a status would win over that.
    for status in HTTP_CODES:
        blueprint.register_error_handler(status, _answer_http_error)
    return blueprint


def _only(*allowed: str) -> Callable[..., NoReturn]:
    def method_not_allowed(**_: str) -> NoReturn:
        raise MethodNotAllowed(valid_methods=allowed)

    return method_not_allowed


def _answer_error(error: LLMBatchesError) -> Response:
    location = "body" if request.endpoint and request.endpoint.endswith(".create") else "query"
    response = _json(dump_error(error, location))
    response.status_code = error.status
    if error.retry_after is not None:
        response.headers["Retry-After"] = error.retry_after
    if not error.should_retry:
        response.headers["X-Should-Retry"] = "false"
    if error.status == Unauthenticated.status:
        response.headers["WWW-Authenticate"] = 'Bearer realm="llm-batches"'
    return response


def _answer_http_error(error: HTTPException) -> Response:
    """Say an error of Flask's, or of a host's ``abort``, as the wire does."""
    if error.code is None or error.response is not None:
        return error.get_response()  # type: ignore[return-value]  # what a host gave abort() is what it gets
    described = LLMBatchesError(error.description or error.name)
    if isinstance(error, RequestEntityTooLarge):
        described = LLMBatchesError(f"The body is larger than {request.max_content_length} bytes")
    response = _json(dump_error(described, "body", status=error.code, code=HTTP_CODES[error.code]))
    response.status_code = error.code
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers.add(name, value)
    return response


def _owner() -> str | None:
    principal = caller()
    return None if principal.admin else principal.owner


def _answer(schema: Schema, value: Any) -> Response:
    return _json(schema.dump(value))


def _json(value: Any) -> Response:
    # Not jsonify: what goes over the wire does not depend on the host's JSON provider.
    return Response(msgspec.json.encode(value), mimetype="application/json")
