"""marshmallow schemas of every request, response and error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from flask_llm_batches.core.service import DEFAULT_ENDPOINT
from flask_llm_batches.errors import InvalidJSON, LLMBatchesError, ValidationFailed
from flask_llm_batches.principal import MAX_OWNER_LENGTH

MAX_METADATA = 15  # the providers take 16 pairs, and one is ours


class RawArray(fields.Field[msgspec.Raw]):
    """The bytes of a JSON array, which are handed on as they are: the spool checks what is in it."""

    default_error_messages = {"invalid": "Not a valid list."}  # noqa: RUF012  # as marshmallow declares it

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> msgspec.Raw:
        if not (isinstance(value, msgspec.Raw) and bytes(memoryview(value)[:1]) == b"["):
            raise self.make_error("invalid")
        return value


class RequestSchema(Schema):
    """Unknown keys are ignored: clients of this API send some that only other gateways know."""

    class Meta:
        unknown = EXCLUDE


class CreateBatchSchema(RequestSchema):
    model = fields.String(required=True, validate=validate.Length(min=1, max=255))
    requests = RawArray(required=True)
    completion_window = fields.String(load_default="24h", validate=validate.Length(min=1, max=64))
    metadata = fields.Dict(
        keys=fields.String(validate=validate.Length(min=1, max=64)),
        values=fields.String(validate=validate.Length(max=512)),
        load_default=None,
        allow_none=True,
        validate=validate.Length(max=MAX_METADATA),
    )
    endpoint = fields.String(
        load_default=DEFAULT_ENDPOINT,
        validate=validate.Regexp(
            r"/[A-Za-z0-9_./-]{1,255}\Z", error="Not a path such as /v1/chat/completions."
        ),
    )
    user = fields.String(
        load_default=None, allow_none=True, validate=validate.Length(min=1, max=MAX_OWNER_LENGTH)
    )


class BatchQuerySchema(RequestSchema):
    provider = fields.String(load_default=None, validate=validate.Length(min=1))


class ListQuerySchema(BatchQuerySchema):
    after = fields.String(load_default=None, validate=validate.Length(min=1, max=512))
    limit = fields.Integer(load_default=20, validate=validate.Range(min=1, max=100))


class BatchSchema(Schema):
    """OpenAI's batch object, every field always present, and ``provider``."""

    id = fields.String()
    object = fields.String()
    provider = fields.String()
    endpoint = fields.String()
    model = fields.String()
    errors = fields.Raw()
    input_file_id = fields.String()
    completion_window = fields.String()
    status = fields.String()
    output_file_id = fields.String()
    error_file_id = fields.String()
    created_at = fields.Integer()
    in_progress_at = fields.Integer()
    expires_at = fields.Integer()
    finalizing_at = fields.Integer()
    completed_at = fields.Integer()
    failed_at = fields.Integer()
    expired_at = fields.Integer()
    cancelling_at = fields.Integer()
    cancelled_at = fields.Integer()
    request_counts = fields.Raw()
    metadata = fields.Raw()
    usage = fields.Raw()


class BatchListSchema(Schema):
    object = fields.Constant("list")
    data = fields.List(fields.Nested(BatchSchema), attribute="batches")
    first_id = fields.Function(lambda page: page.batches[0].id if page.batches else None)
    last_id = fields.Function(lambda page: page.batches[-1].id if page.batches else None)
    has_more = fields.Boolean()


class RowErrorSchema(Schema):
    code = fields.String()
    message = fields.String()


class RowSchema(Schema):
    """One request's outcome; exactly one of ``result`` and ``error`` is null."""

    custom_id = fields.String()
    result = fields.Raw()
    error = fields.Nested(RowErrorSchema)


class ResultsSchema(Schema):
    results = fields.List(fields.Nested(RowSchema))


class ErrorDetailsSchema(Schema):
    """What OpenAI's SDKs read of an error."""

    message = fields.String()
    type = fields.String()
    code = fields.String()
    param = fields.String()


class ErrorSchema(Schema):
    """An error; ``detail`` is what the otari family of clients reads: a string, or a list of fields."""

    detail = fields.Raw()
    error = fields.Nested(ErrorDetailsSchema)
    status = fields.String()


ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "api_error",
    504: "api_error",
}
"""OpenAI's ``type`` of an error by status; any other is an ``invalid_request_error``."""

HTTP_CODES = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}
"""Our code for the errors that Flask or the host raises."""


_CREATE, _ERROR = CreateBatchSchema(), ErrorSchema()


def load_create(body: bytes) -> dict[str, Any]:
    """Read the body of a create; its requests stay bytes.

    Raises:
        InvalidJSON: It is not JSON.
        ValidationFailed: Fields are missing or wrong.
    """
    if not body.strip():
        raise ValidationFailed({"_schema": ["The body is empty: send a JSON object."]})
    try:
        raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        requests = raw.pop("requests", None)
        data = {name: msgspec.json.decode(value) for name, value in raw.items()}
    except msgspec.ValidationError:
        raise ValidationFailed({"_schema": ["The body must be a JSON object."]}) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJSON(f"The body is not valid JSON: {error}") from None
    return load(_CREATE, data if requests is None else {**data, "requests": requests})


def load(schema: Schema, data: Mapping[str, Any]) -> dict[str, Any]:
    """Check data against a schema.

    Raises:
        ValidationFailed: It does not fit.
    """
    try:
        loaded: dict[str, Any] = schema.load(data)
    except ValidationError as error:
        raise ValidationFailed(error.normalized_messages()) from None  # type: ignore[no-untyped-call]
    return loaded


def dump_error(
    error: LLMBatchesError, location: str, *, status: int | None = None, code: str | None = None
) -> dict[str, Any]:
    """Say an error as the wire does.

    Args:
        error: What was raised.
        location: Where its fields are: ``body`` or ``query``.
        status: Another status than the error's own.
        code: Another code than the error's own.
    """
    detail: Any = str(error)
    message, param = str(error), error.param
    if isinstance(error, ValidationFailed):
        detail = list(_details(error.messages, (location,)))
        message = "; ".join(
            f"{'.'.join(map(str, item['loc'][1:])) or location}: {item['msg']}" for item in detail[:5]
        )
        param = next((str(item["loc"][1]) for item in detail if len(item["loc"]) > 1), None)
    elif isinstance(error, InvalidJSON):
        detail = [{"type": "json_invalid", "loc": [location], "msg": message}]
    kind = ERROR_TYPES.get(status or error.status, "invalid_request_error")
    described = {"message": message, "type": kind, "code": code or error.code, "param": param}
    dumped: dict[str, Any] = _ERROR.dump({"detail": detail, "error": described, **error.extra})
    return dumped


def _details(messages: Any, loc: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    if isinstance(messages, Mapping):
        for key, inner in messages.items():
            # Neither is a name of the caller's: "_schema" is the whole, and for a dict marshmallow tells
            # what is wrong with a key from what is wrong with its value.
            unnamed = key == "_schema" or (
                key in ("key", "value") and loc[1:2] == ("metadata",) and len(loc) > 2
            )
            yield from _details(inner, loc if unnamed else (*loc, key))
        return
    for message in messages if isinstance(messages, list) else [messages]:
        kind = "missing" if message == fields.Field.default_error_messages["required"] else "value_error"
        yield {"type": kind, "loc": list(loc), "msg": str(message)}
