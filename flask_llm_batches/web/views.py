"""The blueprint: authenticate, load, call the service, dump."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from flask import Blueprint, Response, request
from flask.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue
from marshmallow import Schema
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.routing import PathConverter

from flask_llm_batches.core.service import current_llm_batches
from flask_llm_batches.errors import Forbidden, HTTPError, LLMBatchesError, UnsupportedMediaType
from flask_llm_batches.web.auth import Hooks, authenticate, caller
from flask_llm_batches.web.openapi import document
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

METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


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


def openapi() -> Response:
    return _json(document(request.path.removesuffix("/openapi.json"), server=request.script_root or "/"))


class BatchIdConverter(PathConverter):
    """Takes whatever stands there, so that what is no id gets our 404 and not the host's page."""

    part_isolating = False
    regex = "(?s:.+?)"


# The paths with a slash at the end stand here for themselves: the id would take the slash, whatever
# strict_slashes says.
ROUTES: tuple[tuple[str, dict[str, Callable[..., Response]]], ...] = (
    ("", {"GET": list_batches, "POST": create}),
    ("/openapi.json", {"GET": openapi}),
    ("/<llm_batch_id:batch_id>", {"GET": retrieve}),
    ("/<llm_batch_id:batch_id>/cancel", {"POST": cancel}),
    ("/<llm_batch_id:batch_id>/cancel/", {"POST": cancel}),
    ("/<llm_batch_id:batch_id>/results", {"GET": results}),
    ("/<llm_batch_id:batch_id>/results/", {"GET": results}),
)


def create_blueprint(hooks: Hooks) -> Blueprint:
    """Make the blueprint; the hooks are looked at when a request comes."""
    blueprint = Blueprint("llm_batches", __name__)

    @blueprint.record
    def _add_converter(state: BlueprintSetupState) -> None:
        state.app.url_map.converters["llm_batch_id"] = BatchIdConverter

    @blueprint.before_request
    def _admit() -> None:
        request.max_content_length = current_llm_batches.settings.max_content_length
        # A browser's preflight carries no credentials, and the answer to it tells nothing.
        if request.method != "OPTIONS" and not _asks_for(openapi):
            authenticate(hooks.authenticator)

    options: dict[str, Any] = {
        "strict_slashes": False,
        "merge_slashes": False,
        "provide_automatic_options": False,
    }
    for number, (path, views) in enumerate(ROUTES):
        for method, view in views.items():
            blueprint.add_url_rule(path, view_func=view, methods=[method], **options)
        # Without this rule a wrong method would get the host's error page.
        others = METHODS - views.keys()
        blueprint.add_url_rule(path, f"others_{number}", _only(*views), methods=others, **options)

    def answer(error: LLMBatchesError) -> ResponseReturnValue:
        response = _answer_error(error)
        return response if hooks.error_handler is None else hooks.error_handler(error, response)

    def answer_http(error: HTTPException) -> ResponseReturnValue:
        if error.code is None or error.response is not None:
            return error.get_response()  # what a host gave abort() it gets
        return answer(_http_error(error))

    blueprint.register_error_handler(LLMBatchesError, answer)
    # By status, not on HTTPException: the host's handler for a status would win over that.
    for status in HTTP_CODES:
        blueprint.register_error_handler(status, answer_http)
    return blueprint


def _asks_for(view: Callable[..., Response]) -> bool:
    return (request.endpoint or "").endswith(f".{view.__name__}")


def _only(*methods: str) -> Callable[..., Response]:
    allowed = [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]

    def others(**_: str) -> Response:
        if request.method == "OPTIONS":
            return Response(headers={"Allow": ", ".join(allowed)})
        raise MethodNotAllowed(valid_methods=allowed)

    return others


def _answer_error(error: LLMBatchesError) -> Response:
    response = _json(dump_error(error, "body" if _asks_for(create) else "query"))
    response.status_code = error.status
    response.headers.extend(error.headers)
    if error.retry_after is not None:
        response.headers["Retry-After"] = error.retry_after
    if not error.should_retry:
        response.headers["X-Should-Retry"] = "false"
    return response


def _http_error(error: HTTPException) -> HTTPError:
    """Say an error of Flask's, or of a host's ``abort``, as one of ours."""
    message = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        message = f"The body is larger than {request.max_content_length} bytes"
    status = error.code or 500
    headers = [(name, value) for name, value in error.get_headers() if name.lower() != "content-type"]
    return HTTPError(message, status=status, code=HTTP_CODES[status], headers=headers)


def _owner() -> str | None:
    principal = caller()
    return None if principal.admin else principal.owner


def _answer(schema: Schema, value: Any) -> Response:
    return _json(schema.dump(value))


def _json(value: Any) -> Response:
    # Not jsonify: what goes over the wire does not depend on the host's JSON provider.
    return Response(msgspec.json.encode(value), mimetype="application/json")
