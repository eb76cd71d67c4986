"""marshmallow schemas of every request, response and error."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from flask_llm_batches.batch import STATUSES
from flask_llm_batches.core.service import DEFAULT_ENDPOINT
from flask_llm_batches.core.spool import REQUIRED
from flask_llm_batches.errors import InvalidJSON, LLMBatchesError, ValidationFailed, flatten
from flask_llm_batches.principal import MAX_OWNER_LENGTH

MAX_METADATA = 15  # the providers take 16 pairs, and one is ours


class RawArray(fields.Field[msgspec.Raw]):
    """The bytes of a JSON array, which are handed on as they are: the spool checks what is in it."""

    default_error_messages = {"invalid": "Not a valid list."}  # noqa: RUF012  # as marshmallow declares it

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> msgspec.Raw:
        if not (isinstance(value, msgspec.Raw) and bytes(memoryview(value)[:1]) == b"["):
            raise self.make_error("invalid")
        return value


class JSONObject(fields.Dict):
    """An object as JSON text, in a query."""

    default_error_messages = {"invalid": 'Not JSON such as {{"team": "search"}}.'}  # noqa: RUF012  # see above

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        try:
            pairs = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            raise self.make_error("invalid") from None
        return super()._deserialize(pairs, attr, data, **kwargs)  # type: ignore[no-untyped-call]


_ID_OR_NULL = {"type": ["string", "null"]}
_REQUESTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["custom_id", "body"],
        "properties": {
            "custom_id": {"type": "string", "minLength": 1, "description": "Unique in the batch."},
            "body": {"type": "object", "description": "What the endpoint takes."},
        },
    },
}
_FIELD_DETAILS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type", "loc", "msg"],
        "properties": {
            "type": {"type": "string"},
            "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
            "msg": {"type": "string"},
        },
    },
}


class RequestSchema(Schema):
    """Unknown keys are ignored: clients of this API send some that only other gateways know."""

    class Meta:
        unknown = EXCLUDE


class CreateQuerySchema(RequestSchema):
    dry_run = fields.Boolean(
        load_default=False, metadata={"description": "Check everything, and send nothing."}
    )


class _AskedSchema(RequestSchema):
    """What a create says besides its requests."""

    model = fields.String(
        required=True,
        validate=validate.Length(min=1, max=255),
        metadata={"description": "`provider:model`", "pattern": "^[^:/]+[:/].+"},
    )
    completion_window = fields.String(load_default="24h", validate=validate.Length(min=1, max=64))
    endpoint = fields.String(
        load_default=DEFAULT_ENDPOINT,
        validate=validate.Regexp(
            r"/[A-Za-z0-9_./-]{1,255}\Z", error="Not a path such as /v1/chat/completions."
        ),
        metadata={"pattern": "^/[A-Za-z0-9_./-]{1,255}$"},  # "\\Z" is Python's own
    )
    user = fields.String(
        load_default=None,
        allow_none=True,
        validate=[
            validate.Length(min=1, max=MAX_OWNER_LENGTH),
            validate.ContainsNoneOf("\0", error="May not contain U+0000."),
        ],
    )


def _pairs(kind: type[fields.Dict]) -> fields.Dict:
    return kind(
        keys=fields.String(validate=validate.Length(min=1, max=64)),
        values=fields.String(validate=validate.Length(max=512)),
        load_default=None,
        allow_none=True,
        validate=validate.Length(max=MAX_METADATA),
    )


class LinesQuerySchema(CreateQuerySchema, _AskedSchema):
    """The query of a create whose body is JSONL."""

    metadata = _pairs(JSONObject)


class CreateBatchSchema(_AskedSchema):
    requests = RawArray(required=True, metadata=_REQUESTS)
    metadata = _pairs(fields.Dict)


class CheckedSchema(Schema):
    """What a dry run found: nothing wrong."""

    valid = fields.Constant(True, required=True, metadata={"type": "boolean", "enum": [True]})
    requests = fields.Integer(required=True)
    bytes = fields.Integer(required=True, attribute="size")
    provider = fields.String(required=True)
    warnings = fields.List(fields.String(), required=True)


class BatchQuerySchema(RequestSchema):
    provider = fields.String(validate=validate.Length(min=1))


class ListQuerySchema(BatchQuerySchema):
    after = fields.String(validate=validate.Length(min=1, max=512))
    limit = fields.Integer(load_default=20, validate=validate.Range(min=1, max=100))


class ResultsQuerySchema(BatchQuerySchema):
    status = fields.String(
        validate=validate.OneOf(["succeeded", "failed"]),
        metadata={"description": "Only the rows that have a result, or only those that have an error."},
    )


def _nullable_time(moment: str) -> fields.Integer:
    return fields.Integer(required=True, allow_none=True, metadata={"description": f"When it {moment}."})


class RequestCountsSchema(Schema):
    total = fields.Integer(required=True)
    completed = fields.Integer(required=True)
    failed = fields.Integer(required=True)


class BatchSchema(Schema):
    """OpenAI's batch object, every field always present, and ``provider``. Times are Unix seconds."""

    id = fields.String(required=True)
    object = fields.String(required=True, validate=validate.Equal("batch"))
    provider = fields.String(required=True)
    endpoint = fields.String(required=True, allow_none=True)
    model = fields.String(required=True, allow_none=True)
    errors = fields.Raw(required=True, allow_none=True, metadata={"type": "object"})
    input_file_id = fields.String(required=True, allow_none=True)
    completion_window = fields.String(required=True, allow_none=True)
    status = fields.String(required=True, validate=validate.OneOf(sorted(STATUSES)))
    output_file_id = fields.String(required=True, allow_none=True)
    error_file_id = fields.String(required=True, allow_none=True)
    created_at = fields.Integer(required=True)
    in_progress_at = _nullable_time("began to run")
    expires_at = _nullable_time("will expire")
    finalizing_at = _nullable_time("began to write its output")
    completed_at = _nullable_time("was completed")
    failed_at = _nullable_time("failed")
    expired_at = _nullable_time("expired")
    cancelling_at = _nullable_time("began to be cancelled")
    cancelled_at = _nullable_time("was cancelled")
    request_counts = fields.Nested(RequestCountsSchema, required=True, allow_none=True)
    metadata = fields.Dict(keys=fields.String(), values=fields.String(), required=True, allow_none=True)
    usage = fields.Raw(required=True, allow_none=True, metadata={"type": "object"})


class Moment(fields.Field[int]):
    """A day such as 2026-11-01, a time such as 2026-11-01T12:00:00Z, or Unix seconds; UTC unless it says."""

    default_error_messages = {  # noqa: RUF012  # as marshmallow declares it
        "invalid": "Not a day such as 2026-11-01, a time such as 2026-11-01T12:00:00Z, or Unix seconds."
    }

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        try:
            if re.fullmatch(r"[0-9]{1,11}", value):
                return int(value)
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise self.make_error("invalid") from None
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


_MOMENT = {"type": "string", "description": Moment.__doc__}


class UsageQuerySchema(RequestSchema):
    since = Moment(metadata=_MOMENT | {"example": "2026-11-01"})
    until = Moment(metadata=_MOMENT | {"example": "2026-12-01"})
    group_by = fields.String(validate=validate.OneOf(["owner", "model", "provider", "day"]))


class UsageSumSchema(Schema):
    """What was used: batches when they were created, tokens and cost when results were first fetched."""

    group = fields.String(required=True, allow_none=True)
    batches = fields.Integer(required=True)
    requests = fields.Integer(required=True)
    prompt_tokens = fields.Integer(required=True)
    completion_tokens = fields.Integer(required=True)
    cached_tokens = fields.Integer(required=True)
    total_tokens = fields.Integer(required=True)
    cost = fields.Decimal(
        required=True,
        as_string=True,
        metadata={"type": "string", "description": "US dollars, where the price is known."},
    )
    unpriced = fields.Integer(
        required=True, metadata={"description": "Batches with results whose price is not known."}
    )


class UsageSchema(Schema):
    object = fields.Constant("list", required=True, metadata={"type": "string", "enum": ["list"]})
    group_by = fields.String(required=True, allow_none=True)
    data = fields.List(fields.Nested(UsageSumSchema), required=True)


class BatchListSchema(Schema):
    object = fields.Constant("list", required=True, metadata={"type": "string", "enum": ["list"]})
    data = fields.List(fields.Nested(BatchSchema), attribute="batches", required=True)
    first_id = fields.Function(
        lambda page: page.batches[0].id if page.batches else None, metadata=_ID_OR_NULL
    )
    last_id = fields.Function(
        lambda page: page.batches[-1].id if page.batches else None, metadata=_ID_OR_NULL
    )
    has_more = fields.Boolean(required=True)


class RowErrorSchema(Schema):
    code = fields.String(required=True)
    message = fields.String(required=True)


class RowSchema(Schema):
    """One request's outcome; exactly one of ``result`` and ``error`` is null."""

    custom_id = fields.String(required=True)
    result = fields.Raw(required=True, allow_none=True, metadata={"type": "object"})
    error = fields.Nested(RowErrorSchema, required=True, allow_none=True)


class ResultsSchema(Schema):
    results = fields.List(fields.Nested(RowSchema), required=True)


class ErrorDetailsSchema(Schema):
    """What OpenAI's SDKs read of an error."""

    message = fields.String(required=True)
    type = fields.String(required=True)
    code = fields.String(required=True)
    param = fields.String(required=True, allow_none=True)


class ErrorSchema(Schema):
    """An error; ``detail`` is what the otari family of clients reads: a string, or a list of fields."""

    detail = fields.Raw(required=True, metadata={"anyOf": [{"type": "string"}, _FIELD_DETAILS]})
    error = fields.Nested(ErrorDetailsSchema, required=True)
    status = fields.String(metadata={"description": "The batch's, with a 409 of its results."})


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

# Decoded, they take many times their size; metadata, with every character escaped, have half of it.
_LONGEST_FIELD = 1 << 18


def load_create(body: bytes) -> dict[str, Any]:
    """Read the body of a create; its requests stay bytes.

    Raises:
        InvalidJSON: It is not JSON.
        ValidationFailed: Fields are missing or wrong.
    """
    body = body.removeprefix(BOM_UTF8)
    if not body or body.isspace():
        raise ValidationFailed({"_schema": ["The body is empty: send a JSON object."]})
    try:
        raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        requests = raw.pop("requests", None)
        known = {name: value for name, value in raw.items() if name in _CREATE.fields}
        for name, value in known.items():
            if memoryview(value).nbytes > _LONGEST_FIELD:
                raise ValidationFailed({name: [f"Larger than {_LONGEST_FIELD} bytes."]})
        data = {name: msgspec.json.decode(value) for name, value in known.items()}
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


def dump_error(error: LLMBatchesError, location: str) -> dict[str, Any]:
    """Say an error as the wire does.

    Args:
        error: What was raised.
        location: Where its fields are: ``body`` or ``query``.
    """
    detail: Any = str(error)
    message, param = str(error), error.param
    if isinstance(error, ValidationFailed):
        detail = [
            {
                "type": "missing" if text.startswith(REQUIRED) else "value_error",
                "loc": [location, *path],
                "msg": text,
            }
            for path, text in flatten(error.messages)
        ]
        param = next((str(item["loc"][1]) for item in detail if len(item["loc"]) > 1), None)
    elif isinstance(error, InvalidJSON):
        detail = [{"type": "json_invalid", "loc": [location], "msg": message}]
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    described = {"message": message, "type": kind, "code": error.code, "param": param}
    dumped: dict[str, Any] = _ERROR.dump({"detail": detail, "error": described, **error.extra})
    return dumped
