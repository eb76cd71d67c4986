"""Batches: what a create takes, and what is answered."""

from __future__ import annotations

from codecs import BOM_UTF8
from typing import Any

import msgspec
from marshmallow import Schema, ValidationError, fields, validate

from flask_llm_batches.batch import STATUSES
from flask_llm_batches.config import MAX_RETRIES
from flask_llm_batches.core.asked import (
    DEFAULT_ENDPOINT,
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
)
from flask_llm_batches.core.files import EXPIRES_AFTER
from flask_llm_batches.core.lists import MAX_PAGE
from flask_llm_batches.core.requests import MAX_CUSTOM_ID_LENGTH
from flask_llm_batches.errors import InvalidJSON, ValidationFailed
from flask_llm_batches.principal import MAX_OWNER_LENGTH, has_control_characters
from flask_llm_batches.untrusted import size
from flask_llm_batches.web.schemas import RequestSchema, check_spelling, load


def no_control_characters(text: str) -> None:
    """Refuse control characters."""
    if has_control_characters(text):
        raise ValidationError("May not contain control characters.")


class RawArray(fields.Field[msgspec.Raw]):
    """The bytes of a JSON array. The spool checks what is in it."""

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
            "custom_id": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_CUSTOM_ID_LENGTH,
                "description": "Unique in the batch.",
            },
            "body": {"type": "object", "description": "What the endpoint takes."},
        },
    },
}


class CreateQuerySchema(RequestSchema):
    dry_run = fields.Boolean(
        load_default=False, metadata={"description": "Check everything, and send nothing."}
    )


class _AskedSchema(RequestSchema):
    """The fields of a create, without its requests."""

    model = fields.String(
        load_default=None,
        validate=validate.Length(min=1, max=255),
        metadata={
            "description": "`provider:model`, or a name that this server knows; may be left out if every "
            "request names it; must be left out with a file.",
        },
    )
    completion_window = fields.String(
        load_default="24h", validate=[validate.Length(min=1, max=64), no_control_characters]
    )
    endpoint = fields.String(
        load_default=DEFAULT_ENDPOINT,
        validate=validate.Regexp(
            r"/[A-Za-z0-9_./-]{1,255}\Z", error="Not a path such as /v1/chat/completions."
        ),
        metadata={
            "pattern": "^/[A-Za-z0-9_./-]{1,255}$",  # "\\Z" is Python's own
            "description": "The endpoint of every request, such as `/v1/embeddings`.",
        },
    )
    user = fields.String(
        load_default=None,
        allow_none=True,
        validate=[validate.Length(min=1, max=MAX_OWNER_LENGTH), no_control_characters],
        metadata={
            "description": "The owner of the batch. Only an admin may name another one than themselves."
        },
    )
    on_results = fields.String(
        load_default=None,
        metadata={"description": "The name of a handler of this app that takes the rows."},
    )
    webhook = fields.String(
        load_default=None,
        metadata={"description": "The name of a webhook of this app that is sent when the batch has ended."},
    )


def _check_number(pairs: dict[str, str]) -> None:
    # Not marshmallow's Length, which apispec would turn into the maxLength of a string.
    if len(pairs) > MAX_METADATA:
        raise ValidationError(f"Longer than maximum length {MAX_METADATA}.")


def _pairs(kind: type[fields.Dict]) -> fields.Dict:
    return kind(
        keys=fields.String(validate=validate.Length(min=1, max=MAX_METADATA_KEY)),
        values=fields.String(validate=validate.Length(max=MAX_METADATA_VALUE)),
        load_default=None,
        allow_none=True,
        validate=_check_number,
        metadata={
            "maxProperties": MAX_METADATA,
            "propertyNames": {"minLength": 1, "maxLength": MAX_METADATA_KEY},
        },
    )


def _retries(*, strict: bool) -> fields.Integer:
    return fields.Integer(
        load_default=None,
        allow_none=True,
        strict=strict,
        validate=validate.Range(0, MAX_RETRIES),
        metadata={
            "description": "How often requests that failed for a temporary reason are submitted again."
        },
    )


class LinesQuerySchema(CreateQuerySchema, _AskedSchema):
    """The query of a create whose body is JSONL."""

    retries = _retries(strict=False)
    metadata = _pairs(JSONObject)


class ExpirySchema(RequestSchema):
    """When a file expires, in OpenAI's form."""

    anchor = fields.String(load_default="created_at", validate=validate.OneOf(["created_at"]))
    seconds = fields.Integer(
        required=True, strict=True, validate=validate.Range(EXPIRES_AFTER.start, EXPIRES_AFTER.stop - 1)
    )


class CreateBatchSchema(CreateQuerySchema, _AskedSchema):
    requests = RawArray(load_default=None, metadata=_REQUESTS)
    input_file_id = fields.String(
        load_default=None,
        allow_none=True,
        metadata={"description": "A file that has the requests. Ignored if there are `requests`."},
    )
    output_expires_after = fields.Nested(
        ExpirySchema,
        load_default=None,
        allow_none=True,
        metadata={"description": "When the files of the results expire, counted from the end of the batch."},
    )
    retries = _retries(strict=True)
    metadata = _pairs(fields.Dict)


def _dollars(rates: str, attribute: str) -> fields.Decimal:
    return fields.Decimal(
        required=True,
        allow_none=True,
        as_string=True,
        attribute=attribute,
        metadata={
            "type": "string",
            "description": f"US dollars for the prompts alone, {rates}; null if they are not known.",
        },
    )


class CheckedSchema(Schema):
    """The answer to a dry run without errors."""

    valid = fields.Constant(True, required=True, metadata={"type": "boolean", "enum": [True]})
    requests = fields.Integer(required=True)
    bytes = fields.Integer(required=True, attribute="size")
    provider = fields.String(required=True)
    parts = fields.Integer(
        required=True, metadata={"description": "How many batches the provider would get."}
    )
    estimated_tokens = fields.Integer(
        required=True,
        attribute="tokens",
        metadata={"description": "About how many tokens the prompts have: a fourth of the bytes."},
    )
    estimated_cost = _dollars("at the provider's batch rates", "cost")
    standard_cost = _dollars("at its standard rates", "standard_cost")
    warnings = fields.List(fields.String(), required=True)


class BatchQuerySchema(RequestSchema):
    provider = fields.String(
        validate=validate.Length(min=1),
        metadata={"description": "The provider; not needed for batches that were made here."},
    )


class RetrieveQuerySchema(BatchQuerySchema):
    include = fields.String(
        validate=validate.OneOf(["parts"]),
        metadata={"description": "`parts` adds the parts of the batch, and its links to retries."},
    )


class ListQuerySchema(BatchQuerySchema):
    status = fields.String(
        validate=validate.OneOf(sorted(STATUSES)), metadata={"description": "Only batches with this status."}
    )
    owner = fields.String(
        validate=[validate.Length(min=1, max=MAX_OWNER_LENGTH), no_control_characters],
        metadata={"description": "Only an admin may name another owner than themselves."},
    )
    after = fields.String(validate=validate.Length(min=1, max=512))
    limit = fields.Integer(load_default=20, validate=validate.Range(min=1, max=MAX_PAGE))


def nullable_time(moment: str) -> fields.Integer:
    """Return the field of a time in Unix seconds."""
    return fields.Integer(required=True, allow_none=True, metadata={"description": f"When it {moment}."})


class RequestCountsSchema(Schema):
    total = fields.Integer(required=True)
    completed = fields.Integer(required=True)
    failed = fields.Integer(required=True)


class BatchSchema(Schema):
    """OpenAI's batch object with ``provider``. Every field is always present; times are Unix seconds."""

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
    in_progress_at = nullable_time("began to run")
    expires_at = nullable_time("will expire")
    finalizing_at = nullable_time("began to write its output")
    completed_at = nullable_time("was completed")
    failed_at = nullable_time("failed")
    expired_at = nullable_time("expired")
    cancelling_at = nullable_time("began to be cancelled")
    cancelled_at = nullable_time("was cancelled")
    request_counts = fields.Nested(RequestCountsSchema, required=True, allow_none=True)
    metadata = fields.Dict(keys=fields.String(), values=fields.String(), required=True, allow_none=True)
    usage = fields.Raw(required=True, allow_none=True, metadata={"type": "object"})
    owner = fields.String(
        allow_none=True, metadata={"description": "Only for admins; null without a record."}
    )


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


_CREATE = CreateBatchSchema()
_Fields = msgspec.defstruct(
    "_Fields", [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in _CREATE.fields]
)

# Decoded fields take many times their size. Metadata need at most half of this, with all characters escaped.
_LONGEST_FIELD = 1 << 18


def load_create(body: bytes) -> dict[str, Any]:
    """Load the body of a create. Its requests stay bytes.

    Raises:
        InvalidJSON: It is not JSON.
        ValidationFailed: Fields are missing or wrong.
    """
    content = memoryview(body)[len(BOM_UTF8) if body.startswith(BOM_UTF8) else 0 :]
    if not content or body.isspace():
        raise ValidationFailed.of("The body is empty: send a JSON object.")
    try:
        values = _known_values(content)
        requests = values.pop("requests", None)
        for name, value in values.items():
            if size(value) > _LONGEST_FIELD:
                raise ValidationFailed.of(f"Larger than {_LONGEST_FIELD} bytes.", name)
        data = {name: _decoded(name, value) for name, value in values.items()}
    except msgspec.ValidationError:
        raise ValidationFailed.of("The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJSON(f"The body is not valid JSON: {error}") from None
    loaded = load(_CREATE, data if requests is None else {**data, "requests": requests})
    expiry = loaded.pop("output_expires_after")
    loaded["output_expires_after"] = None if expiry is None else expiry["seconds"]
    # Some clients must name a file even if they submit requests, and name one that does not exist.
    loaded["input_file_id"] = None if loaded["requests"] is not None else loaded["input_file_id"] or None
    return loaded


def _decoded(name: str, value: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(value)
    except msgspec.ValidationError:  # the only one without a type
        raise ValidationFailed.of("Has a number that is out of range.", name) from None


def _known_values(content: memoryview) -> dict[str, msgspec.Raw]:
    """Return the values of the fields of a create, as bytes.

    Other fields are not looked at if they are large: there may be millions of them.
    """
    known = {
        name: value
        for name, value in msgspec.structs.asdict(msgspec.json.decode(content, type=_Fields)).items()
        if value is not msgspec.UNSET
    }
    if content.nbytes - sum(map(size, known.values())) <= _LONGEST_FIELD:
        check_spelling(msgspec.json.decode(content, type=dict[str, msgspec.Raw]), _CREATE.fields)
    return known
