"""Errors."""

from __future__ import annotations

from marshmallow import Schema, fields

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


class ErrorDetailsSchema(Schema):
    """The part of an error that OpenAI's SDKs read."""

    message = fields.String(required=True)
    type = fields.String(required=True)
    code = fields.String(required=True)
    param = fields.String(required=True, allow_none=True)


class LimitSchema(Schema):
    """A limit of an owner."""

    name = fields.String(required=True, metadata={"description": "`batches`, `requests` or `dollars`."})
    limit = fields.Float(required=True)
    used = fields.Float(required=True)
    left = fields.Float(required=True)
    resets_at = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "When the month ends; null for a limit of batches or requests."},
    )


class ErrorSchema(Schema):
    """An error. Otari's clients read ``detail``: a string, or a list of fields."""

    detail = fields.Raw(required=True, metadata={"anyOf": [{"type": "string"}, _FIELD_DETAILS]})
    error = fields.Nested(ErrorDetailsSchema, required=True)
    status = fields.String(metadata={"description": "The status of the batch, if it has no results."})
    limit = fields.Nested(LimitSchema, metadata={"description": "The limit, with `owner_limit_reached`."})
