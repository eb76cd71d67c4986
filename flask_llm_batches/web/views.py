"""The blueprint: authenticate, load, call the service, dump."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import msgspec
from flask import Blueprint, Response, request
from flask.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue
from marshmallow import Schema
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.routing import PathConverter

from flask_llm_batches.core.idempotency import HEADER as IDEMPOTENCY_KEY
from flask_llm_batches.core.service import current_llm_batches
from flask_llm_batches.core.usage import group_name, usage_csv
from flask_llm_batches.errors import (
    Forbidden,
    HTTPError,
    LLMBatchesError,
    UnsupportedMediaType,
    ValidationFailed,
)
from flask_llm_batches.jsonl import split_lines
from flask_llm_batches.web.auth import Hooks, authenticate, caller
from flask_llm_batches.web.body import read_body
from flask_llm_batches.web.openapi import document
from flask_llm_batches.web.schemas import (
    HTTP_CODES,
    BatchListSchema,
    BatchQuerySchema,
    BatchSchema,
    CheckedSchema,
    CreateQuerySchema,
    LinesQuerySchema,
    ListQuerySchema,
    ResultsQuerySchema,
    UsageQuerySchema,
    UsageSchema,
    dump_error,
    load,
    load_create,
)
from flask_llm_batches.web.stream import NDJSON, caller_waits, json_stream, ndjson_stream

# Made once: a schema copies all its fields when it is made.
BATCH, BATCH_LIST, CHECKED = BatchSchema(), BatchListSchema(), CheckedSchema()
CREATE_QUERY, LINES_QUERY = CreateQuerySchema(), LinesQuerySchema()
USAGE, USAGE_QUERY = UsageSchema(), UsageQuerySchema()
BATCH_QUERY, LIST_QUERY, RESULTS_QUERY = BatchQuerySchema(), ListQuerySchema(), ResultsQuerySchema()

USAGE_TYPES = ("application/json", "text/csv")
ROW_TYPES = ("application/json", *NDJSON)

METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def create() -> Response:
    body = read_body()
    if request.mimetype in NDJSON:
        data = load(LINES_QUERY, request.args.to_dict()) | {"requests": split_lines(body)}
    else:
        content = BytesIO()  # gives what it holds: a list of chunks and their sum would be twice the body
        for chunk in body:
            if not request.is_json:
                raise UnsupportedMediaType(f"The Content-Type of a create must be {' or '.join(ROW_TYPES)}")
            content.write(chunk)
        data = load_create(content.getvalue()) | load(CREATE_QUERY, request.args.to_dict())
    user, dry_run = data.pop("user"), data.pop("dry_run")
    principal = caller()
    if user not in (None, principal.owner) and not principal.admin:
        raise Forbidden("Only an admin may name another user than themselves", param="user")
    data |= {"owner": user or principal.owner, "idempotency_key": request.headers.get(IDEMPOTENCY_KEY)}
    if dry_run:
        return _answer(CHECKED, current_llm_batches.check(**data))
    created = current_llm_batches.create_once(requested_by=principal.owner, **data)
    response = _answer(BATCH, created.batch)
    if created.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def list_batches() -> Response:
    query = load(LIST_QUERY, request.args.to_dict())
    return _answer(BATCH_LIST, current_llm_batches.list(owner=_owner(), **query))


def retrieve(batch_id: str) -> Response:
    query = load(BATCH_QUERY, request.args.to_dict())
    batch = current_llm_batches.retrieve(batch_id.removesuffix("/"), owner=_owner(), **query)
    return _answer(BATCH, batch)


def cancel(batch_id: str) -> Response:
    query = load(BATCH_QUERY, request.args.to_dict())
    return _answer(BATCH, current_llm_batches.cancel(batch_id, owner=_owner(), **query))


def results(batch_id: str) -> Response:
    query = load(RESULTS_QUERY, request.args.to_dict())
    rows = current_llm_batches.results(
        batch_id,
        owner=_owner(),
        requested_by=caller().owner,
        keep_waiting=caller_waits(request.environ),
        **query,
    )
    mimetype = request.accept_mimetypes.best_match(ROW_TYPES, "application/json")
    response = Response((ndjson_stream if mimetype in NDJSON else json_stream)(rows), mimetype=mimetype)
    response.call_on_close(rows.close)
    return response


def usage() -> Response:
    query = load(USAGE_QUERY, request.args.to_dict())
    sums = current_llm_batches.usage(owner=_owner(), **query)
    group_by = query.get("group_by")
    if request.accept_mimetypes.best_match(USAGE_TYPES, "application/json") == "text/csv":
        return Response(usage_csv(sums, group_by), mimetype="text/csv")
    rows = [row._asdict() | {"group": group_name(row, group_by)} for row in sums]
    return _answer(USAGE, {"group_by": group_by, "data": rows})


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
    ("/usage", {"GET": usage}),
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
    response = _json(dump_error(error, _location(error)))
    response.status_code = error.status
    response.headers.extend(error.headers)
    if error.retry_after is not None:
        response.headers["Retry-After"] = error.retry_after
    if not error.should_retry:
        response.headers["X-Should-Retry"] = "false"
    return response


def _location(error: LLMBatchesError) -> str:
    """Say where the fields are that an error is about."""
    if not _asks_for(create):
        return "query"
    wrong = error.messages.keys() if isinstance(error, ValidationFailed) else set()
    if IDEMPOTENCY_KEY in (error.param, *wrong):
        return "header"
    query = LINES_QUERY if request.mimetype in NDJSON else CREATE_QUERY
    return "query" if wrong and wrong <= query.fields.keys() else "body"


def _http_error(error: HTTPException) -> HTTPError:
    """Say an error of Flask's, or of a host's ``abort``, as one of ours."""
    message = error.description or error.name
    if isinstance(error, RequestEntityTooLarge):
        message = f"The body is larger than {request.max_content_length} bytes, the limit of this server"
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
