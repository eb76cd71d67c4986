"""Mistral's wire protocol: files and batch jobs.

Shapes follow Mistral's API reference, and limits follow its guide to batch inference. Neither says where the
requests that a job did not execute are. Here they are in no file, and are not counted.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from flask import Blueprint, Response

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
    parse_body,
    query_number,
)

if TYPE_CHECKING:
    from flask_llm_batches.testing.simulator import Simulator

NAME = "mistral"
MAX_REQUESTS = 100_000
MAX_BYTES = 512 * 1024 * 1024
MAX_HOURS = 7 * 24
ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/fim/completions",
    "/v1/moderations",
    "/v1/chat/moderations",
    "/v1/ocr",
    "/v1/classifications",
    "/v1/chat/classifications",
    "/v1/conversations",
    "/v1/audio/transcriptions",
)
STATUSES = {
    "validating": "QUEUED",
    "in_progress": "RUNNING",
    "completed": "SUCCESS",
    "failed": "FAILED",
    "expired": "TIMEOUT_EXCEEDED",
    "cancelling": "CANCELLATION_REQUESTED",
    "cancelled": "CANCELLED",
}
SAMPLES = {"batch": "batch_request", "output": "batch_result", "error": "batch_error"}


def error_response(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Response:
    """Return an error in Mistral's form: validation errors as FastAPI has them, others in its own."""
    if status == 422:
        problem = {"type": code or "value_error", "loc": ["body", param or ""], "msg": message, "input": None}
        return json_response({"detail": [problem]}, status)
    kind = "internal_server_error" if status >= 500 else "invalid_request_error"
    error = {"object": "error", "message": message, "type": kind, "param": param, "code": code}
    return json_response(error, status)


def create_blueprint(simulator: Simulator) -> Blueprint:
    """Return a blueprint with the routes, without the base URL and version."""
    blueprint = guarded_blueprint(
        NAME,
        simulator,
        find_key=bearer_key,
        refuse_key=lambda _: json_response({"detail": "Unauthorized"}, 401),
        error_response=error_response,
    )
    files = Files(new_id=lambda: str(uuid.uuid4()), describe=_describe, max_bytes=MAX_BYTES)
    files.add_routes(blueprint)

    @blueprint.post("/batch/jobs")
    def create() -> Response:
        batch = _create(simulator, files, parse_body())
        simulator.add(batch)
        return json_response(_job(files, batch))

    @blueprint.get("/batch/jobs/<job_id>")
    def retrieve(job_id: str) -> Response:
        return json_response(_job(files, simulator.find(NAME, job_id)))

    @blueprint.post("/batch/jobs/<job_id>/cancel")
    def cancel(job_id: str) -> Response:
        batch = simulator.find(NAME, job_id)
        if batch.status in FINAL:
            raise Refused(f"Cannot cancel a job with status {STATUSES[batch.status]}.")
        batch.cancel()
        return json_response(_job(files, batch))

    @blueprint.get("/batch/jobs")
    def list_jobs() -> Response:
        page, size = query_number("page", 0, 0, 1 << 31), query_number("page_size", 100, 1, 1000)
        newest_first = simulator.newest_first(NAME)
        shown = newest_first[page * size : (page + 1) * size]
        data = [_job(files, simulator.find(NAME, id_)) for id_ in shown]
        return json_response({"object": "list", "data": data, "total": len(newest_first)})

    return blueprint


PROTOCOL = WireProtocol(NAME, "/mistral", "/mistral/v1", create_blueprint, error_response)


def _describe(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": len(file.data),
        "created_at": file.created_at,
        "filename": file.name,
        "purpose": "batch",
        "sample_type": SAMPLES[file.purpose],
        "source": "upload" if file.purpose == "batch" else "mistral",
        "num_lines": file.data.count(b"\n"),
        "mimetype": "application/jsonl",
        "signature": None,
        "deleted": False,
    }


def _create(simulator: Simulator, files: Files, asked: dict[str, Any]) -> SimulatedBatch:
    input_files = asked.get("input_files")
    if not isinstance(input_files, list) or not input_files:
        raise Refused("Only jobs with input files are simulated", status=422, param="input_files")
    if not isinstance(asked.get("model"), str):
        raise Refused("Field required", status=422, param="model", code="missing")
    if asked.get("endpoint") not in ENDPOINTS:
        raise Refused("Input should be an endpoint", status=422, param="endpoint", code="enum")
    asked["timeout_hours"] = hours = asked.get("timeout_hours", 24)
    if type(hours) is not int or not 1 <= hours <= MAX_HOURS:
        raise Refused(f"Input should be between 1 and {MAX_HOURS}", status=422, param="timeout_hours")
    if not is_metadata(asked.get("metadata") or {}):
        raise Refused("Input should be at most 16 pairs of text", status=422, param="metadata")
    lines, errors = _validate(b"\n".join(files[file_id].data for file_id in input_files), asked)
    return SimulatedBatch(
        protocol=NAME,
        id=simulator.new_id(str(uuid.uuid4())),
        asked=asked,
        requests=lines,
        metadata=asked.get("metadata") or None,
        errors=errors,
        write_row=_row,
        respond=lambda line: simulator.respond(line),  # noqa: PLW0108  # it may be replaced at any time
        seconds=simulator.seconds,
    )


def _validate(data: bytes, asked: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the valid lines and the errors of an input file, as Mistral validates it after a create."""
    lines: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in json_lines(data):
        problem = _find_problem(line, asked["model"], seen)
        if problem is not None:
            errors.append({"message": f"Line {number}: {problem}", "count": 1})
            continue
        seen.add(line["custom_id"])
        body = {"model": asked["model"], **line["body"]}
        lines.append(
            {"custom_id": line["custom_id"], "method": "POST", "url": asked["endpoint"], "body": body}
        )
    if not lines and not errors:
        errors.append({"message": "The input file is empty.", "count": 1})
    if len(lines) > MAX_REQUESTS:
        errors.append({"message": f"More than {MAX_REQUESTS} requests in one job.", "count": 1})
    return lines, errors


def _find_problem(line: Any, model: str, seen: set[str]) -> str | None:
    if not isinstance(line, dict):
        return "not a JSON object."
    if not isinstance(line.get("custom_id"), str) or not line["custom_id"]:
        return "'custom_id' is missing."
    if line["custom_id"] in seen:
        return f"the custom_id '{line['custom_id']}' is not unique."
    if not isinstance(body := line.get("body"), dict):
        return "'body' is missing."
    if body.get("model", model) != model:
        return f"a job has one model, and this one's is '{model}'."
    if body.get("stream"):
        return "batches do not stream."
    return None


def _row(custom_id: str, outcome: Outcome, status: int, body: object) -> bytes:
    if outcome not in ("succeeded", "errored"):
        return b""
    response = {"status_code": status, "body": body}
    row = {"id": f"batch-{custom_id}", "custom_id": custom_id, "response": response, "error": None}
    return msgspec.json.encode(row) + b"\n"


def _job(files: Files, batch: SimulatedBatch) -> dict[str, Any]:
    ended = batch.status in FINAL
    succeeded, errored = batch.outcomes["succeeded"], batch.outcomes["errored"]
    return {
        "id": batch.id,
        "object": "batch",
        "input_files": batch.asked["input_files"],
        "endpoint": batch.asked["endpoint"],
        "model": batch.asked["model"],
        "agent_id": None,
        "metadata": batch.metadata,
        "timeout_hours": batch.asked["timeout_hours"],
        "status": STATUSES[batch.status],
        "errors": [{"message": error["message"], "count": 1} for error in batch.errors],
        "output_file": _keep(files, batch, "output", batch.output) if ended else None,
        "error_file": _keep(files, batch, "error", batch.error_output) if ended else None,
        "outputs": None,
        "total_requests": len(batch.requests),
        "completed_requests": succeeded + errored,
        "succeeded_requests": succeeded,
        "failed_requests": errored,
        "created_at": batch.times["created_at"],
        "started_at": batch.times.get("in_progress_at"),
        "completed_at": batch.times[f"{batch.status}_at"] if ended else None,
    }


def _keep(files: Files, batch: SimulatedBatch, kind: str, rows: list[bytes]) -> str | None:
    if not any(rows):
        return None
    file_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{batch.id}/{kind}"))
    return files.keep(file_id, f"{batch.id}_{kind}.jsonl", kind, rows)
