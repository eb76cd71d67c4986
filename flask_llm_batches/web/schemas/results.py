"""Result rows."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from flask_llm_batches.web.schemas.batches import BatchQuerySchema


class ResultsQuerySchema(BatchQuerySchema):
    status = fields.String(
        validate=validate.OneOf(["succeeded", "failed"]),
        metadata={"description": "Only the rows that have a result, or only those that have an error."},
    )


class RowErrorSchema(Schema):
    code = fields.String(required=True)
    message = fields.String(required=True)
    retryable = fields.Boolean(
        required=True,
        metadata={"description": "Whether the same request may succeed in another batch: the cause passes."},
    )
    status = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "The HTTP status of the provider's answer to the request, if it had one."},
    )


class RowSchema(Schema):
    """The row of a request. Exactly one of ``result`` and ``error`` is null."""

    custom_id = fields.String(required=True)
    result = fields.Raw(required=True, allow_none=True, metadata={"type": "object"})
    error = fields.Nested(RowErrorSchema, required=True, allow_none=True)


class ResultsSchema(Schema):
    results = fields.List(fields.Nested(RowSchema), required=True)
