"""The blueprint of the dashboard: its routes, and what comes before and after every page."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from flask_llm_batches.dashboard import shown, views
from flask_llm_batches.dashboard.forms import FIELD, check_form, form_token, keep_token
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.web.auth import Hooks, authenticate
from flask_llm_batches.web.errors import HTTP_CODES

_LONGEST_FORM = 64 * 1024

# head.html configures htmx so that it adds no styles to a page and runs no code from it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

_TITLES = {
    401: "Please log in",
    403: "Not allowed",
    404: "Not found",
    409: "Not yet",
    410: "Not there any more",
    429: "Too much",
}


def create_dashboard(hooks: Hooks) -> Blueprint:
    """Make the blueprint. The hooks are read when a request comes."""
    blueprint = Blueprint(
        "llm_batches_dashboard",
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path="/assets",
    )
    for path, view in (
        ("/", views.overview),
        ("/list", views.batches),
        ("/results", views.results),
        ("/usage", views.usage),
        ("/usage.csv", views.usage_file),
    ):
        blueprint.add_url_rule(path, view_func=view)
    for path, view in (("/batch", views.batch), ("/keys", views.keys), ("/health", views.health)):
        blueprint.add_url_rule(path, view_func=view, methods=["GET", "POST"])

    @blueprint.before_request
    def _admit() -> None:
        if _is_asset():
            return
        request.max_content_length = _LONGEST_FORM
        authenticate(hooks.authenticator)
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            check_form()

    blueprint.after_request(_protect)
    blueprint.context_processor(_context)
    blueprint.register_error_handler(LLMBatchesError, _answer)
    # By status, not on HTTPException: the host's handler for a status would win over that.
    for status in HTTP_CODES:
        blueprint.register_error_handler(status, _answer_http)
    return blueprint


def _protect(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    if _is_asset():
        return response
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "no-store"
    return keep_token(response)


def _context() -> dict[str, Any]:
    return {
        "me": g.get("llm_batches_principal"),
        "done": views.DONE.get(request.args.get("done", "")),
        "form_field": FIELD,
        "form_token": form_token,
        "shown": shown,
    }


def _answer(error: LLMBatchesError) -> ResponseReturnValue:
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = error.retry_after
    return _page(error.status, str(error)), error.status, headers


def _answer_http(error: HTTPException) -> ResponseReturnValue:
    if error.code is None or error.response is not None:
        return error.get_response()  # the host called abort() with a response
    own = ("content-type", "content-length")
    headers = [(name, value) for name, value in error.get_headers() if name.lower() not in own]
    return _page(error.code, error.description or error.name), error.code, headers


def _page(status: int, message: str) -> str:
    title = _TITLES.get(status, "That did not work")
    return render_template("llm_batches/error.html", title=title, message=message, status=status)


def _is_asset() -> bool:
    return (request.endpoint or "").endswith(".static")
