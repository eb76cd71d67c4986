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
from flask_llm_batches.web.batches import cancel, create, list_batches, results, retrieve
from flask_llm_batches.web.errors import HTTP_CODES, answer_error, http_error
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
    ("/usage", {"GET": usage}),
    ("/webhooks/<provider>", {"POST": receive_webhook}),
    ("/<llm_batch_id:batch_id>", {"GET": retrieve}),
    ("/<llm_batch_id:batch_id>/cancel", {"POST": cancel}),
    ("/<llm_batch_id:batch_id>/cancel/", {"POST": cancel}),
    ("/<llm_batch_id:batch_id>/results", {"GET": results}),
    ("/<llm_batch_id:batch_id>/results/", {"GET": results}),
)


def create_blueprint(hooks: Hooks) -> Blueprint:
    """Make the blueprint. The hooks are read when a request comes."""
    blueprint = Blueprint("llm_batches", __name__)

    @blueprint.record
    def _add_converter(state: BlueprintSetupState) -> None:
        state.app.url_map.converters["llm_batch_id"] = BatchIdConverter

    @blueprint.before_request
    def _admit() -> None:
        limit = current_llm_batches.settings.max_content_length
        _limit_body(MAX_EVENT if _asks_for(receive_webhook) else limit)
        # A browser's preflight carries no credentials, and the answer to it tells nothing. The credentials of
        # a webhook are its signature.
        if request.method != "OPTIONS" and not _asks_for(openapi) and not _asks_for(receive_webhook):
            authenticate(hooks.authenticator)

    blueprint.after_request(_keep_private)

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


def _limit_body(limit: int) -> None:
    if request.mimetype in _FORMS:  # nothing here reads a form, but an authenticator may
        limit = min(limit, request.max_content_length or limit)
    request.max_content_length = limit


def _keep_private(response: Response) -> Response:
    """Forbid caches to store an answer: another caller gets another one at the same URL."""
    if not (_asks_for(openapi) and response.status_code == 200):
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


def _asks_for(view: Callable[..., Response]) -> bool:
    return (request.endpoint or "").endswith(f".{view.__name__}")


def _only(*methods: str) -> Callable[..., Response]:
    allowed = [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]

    def others(**_: str) -> Response:
        if request.method == "OPTIONS":
            return Response(headers={"Allow": ", ".join(allowed)})
        raise MethodNotAllowed(valid_methods=allowed)

    return others
