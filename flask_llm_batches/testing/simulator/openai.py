"""OpenAI's wire protocol: files and batches.

Shapes, limits and messages follow OpenAI's API reference and its guide to the Batch API.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Response, request

from flask_llm_batches.testing.simulator.batches import FINAL, Outcome, SimulatedBatch
from flask_llm_batches.testing.simulator.protocol import (
    File,
    Files,
    Refused,
    WireProtocol,
    bearer_key,
    guarded_blueprint,
    is_metadata,
    json_lines,
    json_response,
    no_such,
    parse_body,
    query_number,
)

if TYPE_CHECKING:
    from flask_llm_batches.testing.simulator import Simulator

NAME = "openai"
MAX_REQUESTS = 50_000
MAX_BYTES = 200 * 1024 * 1024
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/moderations", "/v1/responses")
GIVEN_UP = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was cancelled before it was executed."),
}


_TIMES = [
    f"{moment}_at"
    for moment in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
]


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Response:
    """Return an error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json_response({"error": error}, status)


def _refuse_key(key: str) -> Response:
    shown = key[:3] + "*" * 8 + key[-4:] if key else "none"
    return error_response(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")


def create_blueprint(simulator: Simulator) -> Blueprint:
    """Return a blueprint with the routes, without the base URL."""
    blueprint = guarded_blueprint(
        NAME, simulator, find_key=bearer_key, refuse_key=_refuse_key, error_response=error_response
    )
    files = Files(new_id=lambda: f"file-{uuid.uuid4().hex[:24]}", describe=_describe, max_bytes=MAX_BYTES)
    files.add_routes(blueprint)

    @blueprint.post("/batches")
    def create() -> Response:
        batch = _create(simulator, files, parse_body())
        simulator.add(batch)
        return json_response(_batch(files, batch))

    @blueprint.get("/batches/<path:batch_id>")
    def retrieve(batch_id: str) -> Response:
        return json_response(_batch(files, simulator.find(NAME, batch_id)))

    @blueprint.post("/batches/<path:batch_id>/cancel")
    def cancel(batch_id: str) -> Response:
        batch = simulator.find(NAME, batch_id)
        if batch.status in FINAL:
            raise Refused(f"Cannot cancel a batch with status '{batch.status}'.", status=409)
        batch.cancel()
        return json_response(_batch(files, batch))

    @blueprint.get("/batches")
    def list_batches() -> Response:
        limit = query_number("limit", 20, 1, 100)
        newest_first = simulator.newest_first(NAME)
        after = request.args.get("after")
        if after is not None:
            if after not in newest_first:
                raise no_such("Batch", after)
            newest_first = newest_first[newest_first.index(after) + 1 :]
        page = newest_first[:limit]
        return json_response(
            {
                "object": "list",
                "data": [_batch(files, simulator.find(NAME, id_)) for id_ in page],
                "first_id": page[0] if page else None,
                "last_id": page[-1] if page else None,
                "has_more": len(newest_first) > limit,
            }
        )

    return blueprint


PROTOCOL = WireProtocol(NAME, "/v1", "/v1", create_blueprint, error_response)


def _describe(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": len(file.data),
        "created_at": file.created_at,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def _create(simulator: Simulator, files: Files, asked: dict[str, Any]) -> SimulatedBatch:
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(asked.get(name), str):
            raise Refused(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    if asked["input_file_id"] not in files:
        raise Refused(f"No such File object: {asked['input_file_id']}", param="input_file_id")
    if asked["endpoint"] not in ENDPOINTS:
        raise Refused(f"Invalid value: '{asked['endpoint']}'.", param="endpoint", code="invalid_value")
    if asked["completion_window"] != "24h":
        raise Refused("Invalid value: 'completion_window' must be '24h'.", param="completion_window")
    if not is_metadata(asked.get("metadata") or {}):
        raise Refused("Invalid 'metadata': at most 16 pairs of 64 and 512 characters.", param="metadata")
    lines, errors = _validate(files[asked["input_file_id"]].data, asked["endpoint"])
    return SimulatedBatch(
        protocol=NAME,
        id=simulator.new_id(f"batch_{uuid.uuid4().hex}"),
        asked=asked,
        requests=lines,
        metadata=asked.get("metadata") or None,
        errors=errors,
        write_row=_row,
        respond=lambda line: simulator.respond(line),  # noqa: PLW0108  # it may be replaced at any time
        seconds=simulator.seconds,
    )


def _validate(data: bytes, endpoint: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the valid lines and the errors of an input file, as OpenAI validates it after a create."""
    lines: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in json_lines(data):
        if line is None:
            errors.append(_problem(number, "invalid_json_line", "This line is not parseable as valid JSON."))
            continue
        problem = _find_problem(line, endpoint, seen, lines[0]["body"].get("model") if lines else None)
        if problem is not None:
            errors.append(_problem(number, *problem))
        else:
            seen.add(line["custom_id"])
            lines.append(line)
    if not lines and not errors:
        errors.append(_problem(None, "empty_file", "The input file is empty."))
    if len(lines) > MAX_REQUESTS:
        errors.append(_problem(None, "too_many_tasks", f"More than {MAX_REQUESTS} requests in one batch."))
    return lines, errors


def _find_problem(
    line: Any, endpoint: str, seen: set[str], model: str | None
) -> tuple[str, str, str | None] | None:
    if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        return "missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id"
    if line["custom_id"] in seen:
        text = f"The custom_id '{line['custom_id']}' for this request is a duplicate of another request."
        return "duplicate_custom_id", text, "custom_id"
    if line.get("method") != "POST":
        return "invalid_method", "The HTTP method provided for this request is invalid.", "method"
    if line.get("url") != endpoint:
        return "mismatched_url", "The URL provided does not match the batch's endpoint.", "url"
    if not isinstance(body := line.get("body"), dict):
        return "invalid_type", "Invalid type for 'body': expected an object.", "body"
    if not isinstance(body.get("model"), str):
        return "missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model"
    if model is not None and body["model"] != model:
        return "mismatched_model", "The model does not match the rest of the batch.", "body.model"
    if body.get("stream"):
        return "invalid_request", "Streaming is not supported in the Batch API.", "body.stream"
    return None


def no_room(model: str, limit: int) -> dict[str, Any]:
    """Return the error of a batch that has too many tokens, together with other batches.

    The words are those of https://github.com/openai/openai-python/issues/2084.
    """
    message = (
        f"Enqueued token limit reached for {model} in organization org-simulated. Limit: {limit:,} enqueued "
        "tokens. Please try again once some in_progress batches have been completed."
    )
    return _problem(None, "token_limit_exceeded", message)


def _problem(line: int | None, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


def _row(custom_id: str, outcome: Outcome, status: int, body: object) -> bytes:
    response = error = None
    if outcome in GIVEN_UP:
        code, message = GIVEN_UP[outcome]
        error = {"code": code, "message": message}
    else:
        response = {"status_code": status, "request_id": f"req_{custom_id}", "body": body}
    row = {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(row) + b"\n"


def _batch(files: Files, batch: SimulatedBatch) -> dict[str, Any]:
    ended = batch.status in FINAL
    total = 0 if batch.errors else len(batch.requests)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.asked["endpoint"],
        "errors": {"object": "list", "data": batch.errors} if batch.status == "failed" else None,
        "input_file_id": batch.asked["input_file_id"],
        "completion_window": batch.asked["completion_window"],
        "status": batch.status,
        "output_file_id": _keep(files, batch, "output", batch.output) if ended else None,
        "error_file_id": _keep(files, batch, "error", batch.error_output) if ended else None,
        **dict.fromkeys(_TIMES),
        **batch.times,
        "request_counts": {"total": total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }


def _keep(files: Files, batch: SimulatedBatch, kind: str, rows: list[bytes]) -> str | None:
    if not rows:
        return None
    file_id = f"file-{kind}-{batch.id.replace('/', '-')}"
    return files.keep(file_id, f"{batch.id}_{kind}.jsonl", "batch_output", rows)
