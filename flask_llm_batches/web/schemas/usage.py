"""The usage."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, fields, validate

from flask_llm_batches.store.usage import GROUPS
from flask_llm_batches.web.schemas import RequestSchema


class Moment(fields.Field[int]):
    """A day such as 2026-11-01, a time such as 2026-11-01T12:00:00Z, or Unix seconds. UTC by default."""

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
    group_by = fields.String(validate=validate.OneOf(GROUPS))


class UsageSumSchema(Schema):
    """A sum: batches count when they are created, tokens and cost when results are first read."""

    group = fields.String(required=True, allow_none=True)
    batches = fields.Integer(required=True)
    requests = fields.Integer(required=True)
    prompt_tokens = fields.Integer(required=True)
    completion_tokens = fields.Integer(required=True)
    cached_tokens = fields.Integer(required=True)
    total_tokens = fields.Integer(required=True)
    cost = fields.Decimal(
        required=True,
        allow_none=True,
        as_string=True,
        metadata={
            "type": "string",
            "description": "US dollars, of the batches whose price is known; null if there are none.",
        },
    )
    unpriced = fields.Integer(
        required=True, metadata={"description": "Batches with results whose price is not known."}
    )
    unfetched = fields.Integer(
        required=True,
        metadata={"description": "Batches that have ended, whose results nobody has read to the end."},
    )


class UsageSchema(Schema):
    object = fields.Constant("list", required=True, metadata={"type": "string", "enum": ["list"]})
    group_by = fields.String(required=True, allow_none=True)
    data = fields.List(fields.Nested(UsageSumSchema), required=True)
