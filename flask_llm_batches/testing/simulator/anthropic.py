"""Anthropic's wire protocol: message batches.

Shapes, limits and messages follow Anthropic's API reference and its guide to batch processing.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Response, request, url_for

from flask_llm_batches.testing.simulator.batches import FINAL, Answer, Outcome, SimulatedBatch
from flask_llm_batches.testing.simulator.protocol import (
    Refused,
    WireProtocol,
    guarded_blueprint,
    json_response,
    no_such,
    parse_body,
    query_number,
)

if TYPE_CHECKING:
    from flask_llm_batches.testing.simulator import Simulator

NAME = "anthropic"
MAX_REQUESTS = 100_000
MAX_BYTES = 256 * 1024 * 1024
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
STATUSES = {"validating": "in_progress", "in_progress": "in_progress", "cancelling": "canceling"}


def error_response(
    status: int,
    message: str,
    *,
    param: str | None = None,  # noqa: ARG001  # Anthropic's errors have no param and no code
    code: str | None = None,  # noqa: ARG001
) -> Response:
    """Return an error in Anthropic's form."""
    return json_response({**_error(status, message), "request_id": f"req_{uuid.uuid4().hex[:24]}"}, status)


def _error(status: int, message: str) -> dict[str, Any]:
    kind = ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def create_blueprint(simulator: Simulator) -> Blueprint:  # noqa: C901  # one function for each route
    """Return a blueprint with the routes, without the base URL and version."""
    blueprint = guarded_blueprint(
        NAME,
        simulator,
        find_key=lambda: request.headers.get("x-api-key", ""),
        refuse_key=lambda _: error_response(401, "invalid x-api-key"),
        error_response=error_response,
    )

    @blueprint.before_request
    def require_version() -> None:
        if "anthropic-version" not in request.headers:
            raise Refused("anthropic-version: header is required")

    @blueprint.post("/messages/batches")
    def create() -> Response:
        if len(request.get_data()) > MAX_BYTES:
            raise Refused(f"Request exceeds the maximum size of {MAX_BYTES} bytes", status=413)
        batch = _create(simulator, parse_body().get("requests"))
        simulator.add(batch)
        return json_response(_batch(batch))

    @blueprint.get("/messages/batches/<batch_id>")
    def retrieve(batch_id: str) -> Response:
        return json_response(_batch(simulator.find(NAME, batch_id)))

    @blueprint.post("/messages/batches/<batch_id>/cancel")
    def cancel(batch_id: str) -> Response:
        batch = simulator.find(NAME, batch_id)
        if batch.status in FINAL:
            raise Refused(f"Batch {batch_id} cannot be canceled because it has ended.")
        batch.cancel()
        return json_response(_batch(batch))

    @blueprint.get("/messages/batches/<batch_id>/results")
    def results(batch_id: str) -> Response:
        batch = simulator.find(NAME, batch_id)
        if batch.status not in FINAL:
            raise Refused(f"Batch {batch_id} has no available results.", status=404)
        return Response(b"".join(batch.error_output + batch.output), mimetype="application/x-jsonl")

    @blueprint.get("/messages/batches")
    def list_batches() -> Response:
        return json_response(_page(simulator))

    return blueprint


PROTOCOL = WireProtocol(NAME, "/anthropic", "/anthropic/v1", create_blueprint, error_response)


def _page(simulator: Simulator) -> dict[str, Any]:
    limit = query_number("limit", 20, 1, 1000)
    newest_first = simulator.newest_first(NAME)
    after, before = request.args.get("after_id"), request.args.get("before_id")
    for cursor in filter(None, (after, before)):
        if cursor not in newest_first:
            raise no_such("Batch", cursor)
    if before:
        found = newest_first[: newest_first.index(before)]
        page = found[-limit:]
    else:
        found = newest_first[newest_first.index(after) + 1 :] if after else newest_first
        page = found[:limit]
    return {
        "data": [_batch(simulator.find(NAME, id_)) for id_ in page],
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
        "has_more": len(found) > limit,
    }


def _create(simulator: Simulator, requests: Any) -> SimulatedBatch:
    if not isinstance(requests, list) or not 1 <= len(requests) <= MAX_REQUESTS:
        raise Refused(f"requests: List should have at least 1 and at most {MAX_REQUESTS} items")
    seen: set[str] = set()
    for number, item in enumerate(requests):
        if not isinstance(item, dict) or not isinstance(item.get("params"), dict):
            raise Refused(f"requests.{number}.params: Field required")
        custom_id = item.get("custom_id")
        if not isinstance(custom_id, str) or not CUSTOM_ID.fullmatch(custom_id):
            raise Refused(f"requests.{number}.custom_id: String should match pattern '^{CUSTOM_ID.pattern}$'")
        if custom_id in seen:
            raise Refused(f"requests.{number}.custom_id: '{custom_id}' is not unique")
        seen.add(custom_id)
    return SimulatedBatch(
        protocol=NAME,
        id=simulator.new_id(f"msgbatch_{uuid.uuid4().hex[:24]}"),
        asked={},
        requests=[
            {"custom_id": it["custom_id"], "method": "POST", "url": "/v1/messages", "body": it["params"]}
            for it in requests
        ],
        metadata=None,
        errors=[],
        write_row=_row,
        respond=lambda line: _answer(simulator, line),
        seconds=simulator.seconds,
    )


def _answer(simulator: Simulator, line: Mapping[str, Any]) -> Answer:
    """Answer a request, or refuse its params: Anthropic checks them when the request runs."""
    problem = _find_problem(line["body"])
    return simulator.respond(line) if problem is None else (400, _error(400, problem))


def _find_problem(params: Mapping[str, Any]) -> str | None:
    for name, kind in (("model", str), ("max_tokens", int), ("messages", list)):
        if name not in params:
            return f"{name}: Field required"
        if type(params[name]) is not kind or not params[name]:
            return f"{name}: Input is not valid"
    for number, message in enumerate(params["messages"]):
        if not isinstance(message, dict) or "content" not in message:
            return f"messages.{number}.content: Field required"
        if message.get("role") == "system":
            return (
                'messages: Unexpected role "system". The Messages API accepts a top-level `system` '
                'parameter, not "system" as an input message role.'
            )
        if message.get("role") not in ("user", "assistant"):
            return f"messages.{number}.role: Input should be 'user' or 'assistant'"
    if params.get("stream"):
        return "stream: Streaming is not supported in batches"
    return None


def _row(custom_id: str, outcome: Outcome, status: int, body: Any) -> bytes:
    result: dict[str, Any] = {"type": "canceled" if outcome == "cancelled" else outcome}
    if outcome == "succeeded":
        result["message"] = body
    elif outcome == "errored":
        said = _error(status, "") | {"request_id": f"req_{custom_id}"}
        said["error"] |= body["error"]
        result["error"] = said
    return msgspec.json.encode({"custom_id": custom_id, "result": result}) + b"\n"


def _batch(batch: SimulatedBatch) -> dict[str, Any]:
    ended = batch.status in FINAL
    counts = batch.outcomes if ended else {}
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": STATUSES.get(batch.status, "ended"),
        "request_counts": {
            "processing": 0 if ended else len(batch.requests),
            "succeeded": counts.get("succeeded", 0),
            "errored": counts.get("errored", 0),
            "canceled": counts.get("cancelled", 0),
            "expired": counts.get("expired", 0),
        },
        "created_at": _moment(batch, "created_at"),
        "expires_at": _moment(batch, "expires_at"),
        "ended_at": _moment(batch, f"{batch.status}_at") if ended else None,
        "cancel_initiated_at": _moment(batch, "cancelling_at"),
        "archived_at": None,
        "results_url": url_for(".results", batch_id=batch.id, _external=True) if ended else None,
    }


def _moment(batch: SimulatedBatch, name: str) -> str | None:
    seconds = batch.times.get(name)
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
