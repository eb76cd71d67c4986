"""OpenAI's wire protocol: files and batches.

Shapes, limits and messages after OpenAI's API reference and its guide to the Batch API.
"""

from __future__ import annotations

import hmac
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Response, request

from flask_llm_batches.testing.simulator.batches import FINAL, SimulatedBatch

if TYPE_CHECKING:
    from flask_llm_batches.testing.simulator import Simulator

MAX_REQUESTS = 50_000
MAX_BYTES = 200 * 1024 * 1024
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/moderations", "/v1/responses")


_TIMES = [
    f"{moment}_at"
    for moment in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
]


class _Refused(Exception):
    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Response:
    """Make an error as OpenAI does."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return _json({"error": error}, status)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, mimetype="application/json")


def create_blueprint(simulator: Simulator) -> Blueprint:  # noqa: C901  # one function a route
    """Make the routes below the base URL."""
    blueprint = Blueprint("openai", __name__)

    @blueprint.before_request
    def authenticate() -> Response | None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and hmac.compare_digest(key.encode(), simulator.api_key.encode()):
            return None
        shown = key[:3] + "*" * 8 + key[-4:] if key else "none"
        return error_response(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")

    @blueprint.errorhandler(_Refused)
    def refused(error: _Refused) -> Response:
        return error_response(400, str(error), param=error.param, code=error.code)

    @blueprint.post("/files")
    def upload() -> Response:
        content = request.files.get("file")
        if content is None:
            raise _Refused("'file' is a required property", param="file")
        if request.form.get("purpose") != "batch":
            raise _Refused("Only the purpose 'batch' is simulated", param="purpose")
        if not (content.filename or "").endswith(".jsonl"):
            raise _Refused("Invalid file format for Batch API. Must be .jsonl", code="invalid_file_format")
        data = content.read()
        if len(data) > MAX_BYTES:
            raise _Refused(f"File is too large: at most {MAX_BYTES} bytes", param="file")
        return _json(_keep(simulator, data, content.filename or "", "batch"))

    @blueprint.get("/files/<file_id>")
    def file(file_id: str) -> Response:
        known = simulator.files.get(file_id)
        return _no_such("File", file_id) if known is None else _json(known)

    @blueprint.get("/files/<file_id>/content")
    def content(file_id: str) -> Response:
        data = simulator.contents.get(file_id)
        if data is None:
            return _no_such("File", file_id)
        return Response(data, mimetype="application/octet-stream")

    @blueprint.post("/batches")
    def create() -> Response:
        with simulator.lock:
            batch = _create(simulator, request.get_json())
            simulator.add(batch)
            return _json(_batch(simulator, batch))

    @blueprint.get("/batches/<path:batch_id>")
    def retrieve(batch_id: str) -> Response:
        batch = simulator.find(batch_id)
        return _no_such("Batch", batch_id) if batch is None else _json(_batch(simulator, batch))

    @blueprint.post("/batches/<path:batch_id>/cancel")
    def cancel(batch_id: str) -> Response:
        batch = simulator.find(batch_id)
        if batch is None:
            return _no_such("Batch", batch_id)
        if batch.status in FINAL:
            return error_response(409, f"Cannot cancel a batch with status '{batch.status}'.")
        batch.cancel()
        return _json(_batch(simulator, batch))

    @blueprint.get("/batches")
    def list_batches() -> Response:
        limit = request.args.get("limit", 20, int)
        if not 1 <= limit <= 100:
            raise _Refused("'limit' must be between 1 and 100", param="limit")
        newest_first = [batch.id for batch in reversed(simulator.batches)]
        after = request.args.get("after")
        if after is not None:
            if after not in newest_first:
                return _no_such("Batch", after)
            newest_first = newest_first[newest_first.index(after) + 1 :]
        page = newest_first[:limit]
        return _json(
            {
                "object": "list",
                "data": [_batch(simulator, batch) for id_ in page if (batch := simulator.find(id_))],
                "first_id": page[0] if page else None,
                "last_id": page[-1] if page else None,
                "has_more": len(newest_first) > limit,
            }
        )

    return blueprint


def _no_such(kind: str, id_: str) -> Response:
    return error_response(404, f"No such {kind} object: {id_}", param="id")


def _keep(simulator: Simulator, data: bytes, filename: str, purpose: str) -> dict[str, Any]:
    file: dict[str, Any] = {
        "id": f"file-{uuid.uuid4().hex[:24]}",
        "object": "file",
        "bytes": len(data),
        "created_at": int(time.time()),
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    }
    simulator.contents[file["id"]] = data
    simulator.files[file["id"]] = file
    return file


def _create(simulator: Simulator, asked: dict[str, Any]) -> SimulatedBatch:
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(asked.get(name), str):
            raise _Refused(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    if asked["input_file_id"] not in simulator.contents:
        raise _Refused(f"No such File object: {asked['input_file_id']}", param="input_file_id")
    if asked["endpoint"] not in ENDPOINTS:
        raise _Refused(f"Invalid value: '{asked['endpoint']}'.", param="endpoint", code="invalid_value")
    if asked["completion_window"] != "24h":
        raise _Refused("Invalid value: 'completion_window' must be '24h'.", param="completion_window")
    metadata = asked.get("metadata") or {}
    if len(metadata) > 16 or any(
        not isinstance(value, str) or len(key) > 64 or len(value) > 512 for key, value in metadata.items()
    ):
        raise _Refused("Invalid 'metadata': at most 16 pairs of 64 and 512 characters.", param="metadata")
    lines, errors = _validate(simulator.contents[asked["input_file_id"]], asked["endpoint"])
    batch_id, simulator.next_batch_id = simulator.next_batch_id or f"batch_{uuid.uuid4().hex}", None
    return SimulatedBatch(
        id=batch_id,
        endpoint=asked["endpoint"],
        completion_window=asked["completion_window"],
        input_file_id=asked["input_file_id"],
        requests=lines,
        metadata=metadata or None,
        errors=errors,
        respond=lambda line: simulator.respond(line),  # noqa: PLW0108  # it may be replaced at any time
        seconds=simulator.seconds,
    )


def _validate(data: bytes, endpoint: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Check every line as OpenAI does after a batch was created."""
    lines: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            line = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            errors.append(_problem(number, "invalid_json_line", "This line is not parseable as valid JSON."))
            continue
        problem = _problem_of(line, endpoint, seen, lines[0]["body"].get("model") if lines else None)
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


def _problem_of(
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


def _problem(line: int | None, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


def _batch(simulator: Simulator, batch: SimulatedBatch) -> dict[str, Any]:
    ended = batch.status in FINAL
    total = 0 if batch.errors else len(batch.requests)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.status == "failed" else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": _output(simulator, batch, "output") if ended and batch.output else None,
        "error_file_id": _output(simulator, batch, "error") if ended and batch.error_output else None,
        **dict.fromkeys(_TIMES),
        **batch.times,
        "request_counts": {"total": total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }


def _output(simulator: Simulator, batch: SimulatedBatch, kind: str) -> str:
    file_id = f"file-{kind}-{batch.id.replace('/', '-')}"
    if file_id not in simulator.files:
        lines = batch.output if kind == "output" else batch.error_output
        file = _keep(simulator, b"".join(lines), f"{batch.id}_{kind}.jsonl", "batch_output")
        simulator.files[file_id] = {**file, "id": file_id}
        simulator.contents[file_id] = simulator.contents.pop(file["id"])
        del simulator.files[file["id"]]
    return file_id
