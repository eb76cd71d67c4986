"""The parts of a batch, and its links."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from flask_llm_batches.batch import STATUSES
from flask_llm_batches.web.schemas.batches import BatchSchema, RequestCountsSchema, nullable_time


class PartSchema(Schema):
    """A part of a batch. A batch that was submitted as one has one part."""

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
    """A batch. Its parts and links are there with `include=parts`."""

    parts = fields.List(fields.Nested(PartSchema))
    retry_of = fields.String(
        allow_none=True, metadata={"description": "The batch whose failed requests it has."}
    )
    retried_by = fields.List(
        fields.String(), metadata={"description": "The batches that have its failed requests."}
    )
