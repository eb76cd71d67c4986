"""What is inside of a batch."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from flask_llm_batches.batch import STATUSES
from flask_llm_batches.web.schemas.batches import BatchSchema, RequestCountsSchema, nullable_time


class PartSchema(Schema):
    """A part of a batch. One that its provider got as it is has one part."""

    provider = fields.String(required=True)
    provider_batch_id = fields.String(required=True, allow_none=True)
    model = fields.String(required=True)
    status = fields.String(required=True, validate=validate.OneOf(["queued", "replaced", *sorted(STATUSES)]))
    request_counts = fields.Nested(RequestCountsSchema, required=True, allow_none=True)
    estimated_tokens = fields.Integer(required=True, allow_none=True)
    created_at = fields.Integer(required=True)
    ended_at = nullable_time("ended")
    errors = fields.Raw(required=True, allow_none=True, metadata={"type": "object"})


class DetailSchema(BatchSchema):
    """A batch with what is inside of it: for `include=parts`."""

    parts = fields.List(fields.Nested(PartSchema))
    retry_of = fields.String(
        allow_none=True, metadata={"description": "The batch whose failed requests it has."}
    )
    retried_by = fields.List(
        fields.String(), metadata={"description": "The batches that have its failed requests."}
    )
