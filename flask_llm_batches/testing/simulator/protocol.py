"""The base of the simulated providers: errors, answers in JSON, and files."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from flask import Blueprint, Response, request

if TYPE_CHECKING:
    from flask_llm_batches.testing.simulator import Simulator


class Refused(Exception):
    """A call that the provider refuses. Every protocol has its own form of it."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


def no_such(kind: str, id_: str) -> Refused:
    return Refused(f"No such {kind} object: {id_}", status=404, param="id")


class ErrorResponse(Protocol):
    """Returns an error response of a provider."""

    def __call__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> Response: ...


@dataclass(frozen=True, slots=True)
class WireProtocol:
    """A provider's protocol.

    Attributes:
        name: The provider's name in any-llm.
        base: The path of an SDK's base URL: ``/mistral``.
        prefix: The prefix of its routes, which is the base and the version: ``/mistral/v1``.
        create_blueprint: Returns the routes for a simulator.
        error_response: Returns an error in the protocol's shape.
    """

    name: str
    base: str
    prefix: str
    create_blueprint: Callable[[Simulator], Blueprint]
    error_response: ErrorResponse


@dataclass(frozen=True, slots=True)
class File:
    """A file that was uploaded, or that a batch wrote."""

    id: str
    name: str
    purpose: str
    data: bytes = field(repr=False)
    rows: Iterable[bytes] = field(default=(), repr=False)
    created_at: int = field(default_factory=lambda: int(time.time()))


def json_response(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, mimetype="application/json")


def parse_body() -> dict[str, Any]:
    """Return the body of the request, a JSON object."""
    try:
        body = msgspec.json.decode(request.get_data())
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused("The body of your request is not valid JSON.") from None
    if not isinstance(body, dict):
        raise Refused("The body of your request is not a JSON object.")
    return body


def json_lines(data: bytes) -> Iterable[tuple[int, Any]]:
    """Yield every line that is not blank, with its number; None for a line that is not JSON."""
    for number, text in enumerate(data.split(b"\n"), 1):
        if text.strip():
            try:
                yield number, msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield number, None


def query_number(name: str, default: int, least: int, most: int) -> int:
    try:
        number = int(request.args.get(name, default))
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise Refused(f"'{name}' must be between {least} and {most}", param=name)
    return number


def guarded_blueprint(
    name: str,
    simulator: Simulator,
    *,
    find_key: Callable[[], str],
    refuse_key: Callable[[str], Response],
    error_response: ErrorResponse,
) -> Blueprint:
    """Make a blueprint that refuses calls without the key, and renders errors."""
    blueprint = Blueprint(name, __name__)

    @blueprint.before_request
    def authenticate() -> Response | None:
        key = find_key()
        known = hmac.compare_digest(key.encode(), simulator.api_key.encode())
        return None if known else refuse_key(key)

    @blueprint.errorhandler(Refused)
    def refused(error: Refused) -> Response:
        return error_response(error.status, str(error), param=error.param, code=error.code)

    return blueprint


def bearer_key() -> str:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key if scheme == "Bearer" else ""


class Files:
    """The files of one provider.

    Args:
        new_id: Returns an id for an uploaded file.
        describe: Returns a file as the provider's JSON object.
        max_bytes: No uploaded file may be larger.
    """

    def __init__(
        self, *, new_id: Callable[[], str], describe: Callable[[File], dict[str, Any]], max_bytes: int
    ) -> None:
        self._files: dict[str, File] = {}
        self._new_id = new_id
        self._describe = describe
        self._max_bytes = max_bytes

    def __contains__(self, file_id: str) -> bool:
        return file_id in self._files

    def __getitem__(self, file_id: str) -> File:
        if file_id not in self._files:
            raise no_such("File", file_id)
        return self._files[file_id]

    def keep(self, file_id: str, name: str, purpose: str, rows: Iterable[bytes]) -> str:
        """Store the output of a batch, once, and return its id. A new batch with the same id replaces it."""
        if file_id not in self._files or self._files[file_id].rows is not rows:
            self._files[file_id] = File(file_id, name, purpose, b"".join(rows), rows)
        return file_id

    def add_routes(self, blueprint: Blueprint) -> None:
        blueprint.post("/files")(self._upload)
        blueprint.get("/files/<file_id>")(self._retrieve)
        blueprint.get("/files/<file_id>/content")(self._download)

    def _upload(self) -> Response:
        content = request.files.get("file")
        if content is None:
            raise Refused("'file' is a required property", param="file")
        if request.form.get("purpose") != "batch":
            raise Refused("Only the purpose 'batch' is simulated", param="purpose")
        name = content.filename or ""
        if not name.endswith(".jsonl"):
            raise Refused("Invalid file format for Batch API. Must be .jsonl", code="invalid_file_format")
        data = content.read()
        if len(data) > self._max_bytes:
            raise Refused(f"File is too large: at most {self._max_bytes} bytes", param="file")
        file = File(self._new_id(), name, "batch", data)
        self._files[file.id] = file
        return json_response(self._describe(file))

    def _retrieve(self, file_id: str) -> Response:
        return json_response(self._describe(self[file_id]))

    def _download(self, file_id: str) -> Response:
        return Response(self[file_id].data, mimetype="application/octet-stream")


def is_metadata(value: object) -> bool:
    """Return whether a value is at most 16 pairs of text, of 64 and 512 characters."""
    return (
        isinstance(value, Mapping)
        and len(value) <= 16
        and all(isinstance(text, str) and len(key) <= 64 and len(text) <= 512 for key, text in value.items())
    )
