"""The blueprint: the routes, and what comes before and after every view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, current_app, request
from flask.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import PathConverter

from flask_llm_batches.core.webhooks import MAX_EVENT
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.web.auth import KEY_HEADERS, ErrorHandler, Hooks, authenticate
from flask_llm_batches.web.batches import cancel, create, list_batches, results, retrieve, retry
from flask_llm_batches.web.docs import ASSETS, docs, docs_asset
from flask_llm_batches.web.errors import HTTP_CODES, answer_error, http_error
from flask_llm_batches.web.files import (
    delete_file,
    file_content,
    files_beside,
    list_files,
    list_models,
    retrieve_file,
    retrieve_model,
    upload_file,
)
from flask_llm_batches.web.openapi import openapi
from flask_llm_batches.web.usage import usage
from flask_llm_batches.web.webhooks import receive_webhook

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_DECIDING = ("Accept", "Authorization", "Cookie", *KEY_HEADERS)  # what an answer depends on besides its URL

METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class BatchIdConverter(PathConverter):
    """Matches any text, so that a wrong id gets our 404 and not the host's page."""

    part_isolating = False
    regex = "(?s:.+?)"


# Paths with a slash at the end are routes of their own. Otherwise the id would include the slash, even with
# strict_slashes=False.
ROUTES: tuple[tuple[str, dict[str, Callable[..., Response]]], ...] = (
    ("", {"GET": list_batches, "POST": create}),
    ("/openapi.json", {"GET": openapi}),
    ("/docs", {"GET": docs}),
    (f"/docs/<any({', '.join(map(repr, ASSETS))}):name>", {"GET": docs_asset}),
    ("/usage", {"GET": usage}),
    ("/webhooks/<provider>", {"POST": receive_webhook}),
    ("/<llm_batch_id:batch_id>", {"GET": retrieve}),
    ("/<llm_batch_id:batch_id>/cancel", {"POST": cancel}),
    ("/<llm_batch_id:batch_id>/cancel/", {"POST": cancel}),
    ("/<llm_batch_id:batch_id>/retry", {"POST": retry}),
    ("/<llm_batch_id:batch_id>/retry/", {"POST": retry}),
    ("/<llm_batch_id:batch_id>/results", {"GET": results}),
    ("/<llm_batch_id:batch_id>/results/", {"GET": results}),
)


# Beside the batches: the files and the models.
FILE_ROUTES: tuple[tuple[str, dict[str, Callable[..., Response]]], ...] = (
    ("", {"GET": list_files, "POST": upload_file}),
    ("/<llm_batch_id:file_id>", {"GET": retrieve_file, "DELETE": delete_file}),
    ("/<llm_batch_id:file_id>/content", {"GET": file_content}),
    ("/<llm_batch_id:file_id>/content/", {"GET": file_content}),
)
MODEL_ROUTES: tuple[tuple[str, dict[str, Callable[..., Response]]], ...] = (
    ("", {"GET": list_models}),
    ("/<llm_batch_id:model>", {"GET": retrieve_model}),
)

_OPTIONS: dict[str, Any] = {
    "strict_slashes": False,
    "merge_slashes": False,
    "provide_automatic_options": False,
}


def create_blueprint(hooks: Hooks) -> Blueprint:
    """Make the blueprint. The hooks are read when a request comes."""
    blueprint = Blueprint("llm_batches", __name__)

    @blueprint.record
    def _add_routes(state: BlueprintSetupState) -> None:
        state.app.url_map.converters["llm_batch_id"] = BatchIdConverter
        _add(state, "", ROUTES)
        service = state.app.extensions.get("llm_batches")
        setting = "beside" if service is None else service.settings.files_url_prefix
        prefix, files = state.url_prefix, files_beside(setting, state.url_prefix)
        if files is not None and (setting == "beside" or state.first_registration):
            state.url_prefix = files
            _add(state, "files_", FILE_ROUTES)
            state.url_prefix = files.rpartition("/")[0] + "/models"
            _add(state, "models_", MODEL_ROUTES)
            state.url_prefix = prefix

    @blueprint.before_request
    def _admit() -> None:
        limit = current_llm_batches.settings.max_content_length
        _limit_body(MAX_EVENT if _asks_for(receive_webhook) else limit)
        # A browser's preflight carries no credentials, and its answer reveals nothing. The credentials of
        # a webhook are its signature.
        if request.method != "OPTIONS" and not _asks_for(openapi, docs, docs_asset, receive_webhook):
            authenticate(hooks.authenticator)

    blueprint.after_request(_keep_private)

    def answer(error: LLMBatchesError) -> ResponseReturnValue:
        return _answer(error, hooks.error_handler)

    def answer_http(error: HTTPException) -> ResponseReturnValue:
        if error.code is None or error.response is not None:
            return error.get_response()  # the host called abort() with a response
        return answer(http_error(error))

    blueprint.register_error_handler(LLMBatchesError, answer)
    # By status, not on HTTPException: the host's handler for a status would win over that.
    for status in HTTP_CODES:
        blueprint.register_error_handler(status, answer_http)
    return blueprint


def _add(
    state: BlueprintSetupState, name: str, routes: tuple[tuple[str, dict[str, Callable[..., Response]]], ...]
) -> None:
    for number, (path, views) in enumerate(routes):
        for method, view in views.items():
            state.add_url_rule(path, view_func=view, methods=[method], **_OPTIONS)
        # Without this rule a wrong method would get the host's error page.
        others = METHODS - views.keys()
        state.add_url_rule(path, f"{name}others_{number}", _only(*views), methods=others, **_OPTIONS)


def _limit_body(limit: int) -> None:
    # Nothing else here reads a form, but an authenticator may.
    if request.mimetype in _FORMS and not _asks_for(upload_file):
        limit = min(limit, request.max_content_length or limit)
    request.max_content_length = limit


def _keep_private(response: Response) -> Response:
    """Forbid caches to store an answer: at the same URL, another caller gets another one."""
    if not (_asks_for(openapi, docs_asset) and response.status_code in (200, 304)):
        response.headers["Cache-Control"] = "no-store"
        response.vary.update(_DECIDING)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _answer(error: LLMBatchesError, handler: ErrorHandler | None) -> ResponseReturnValue:
    response = answer_error(error)
    if handler is None:
        return response
    answered: ResponseReturnValue = current_app.ensure_sync(handler)(error, response)
    return answered


def _asks_for(*views: Callable[..., Response]) -> bool:
    return (request.endpoint or "").endswith(tuple(f".{view.__name__}" for view in views))


def _only(*methods: str) -> Callable[..., Response]:
    allowed = [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]

    def others(**_: str) -> Response:
        if request.method == "OPTIONS":
            return Response(headers={"Allow": ", ".join(allowed)})
        raise MethodNotAllowed(valid_methods=allowed)

    return others
