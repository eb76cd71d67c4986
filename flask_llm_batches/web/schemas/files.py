"""Files and models, in OpenAI's form."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from flask_llm_batches.core.files import EXPIRES_AFTER, MAX_FILES, PURPOSES
from flask_llm_batches.web.schemas import RequestSchema


class UploadSchema(RequestSchema):
    """The fields of a form that come with a file."""

    purpose = fields.String(required=True, validate=validate.OneOf(["batch"]))
    anchor = fields.String(data_key="expires_after[anchor]", validate=validate.OneOf(["created_at"]))
    seconds = fields.Integer(
        data_key="expires_after[seconds]",
        load_default=None,
        validate=validate.Range(EXPIRES_AFTER.start, EXPIRES_AFTER.stop - 1),
    )


class FilesQuerySchema(RequestSchema):
    purpose = fields.String(
        load_default=None,
        metadata={"description": "`batch` for input files, `batch_output` for results."},
    )
    after = fields.String(load_default=None, validate=validate.Length(min=1, max=512))
    limit = fields.Integer(load_default=MAX_FILES, validate=validate.Range(min=1, max=MAX_FILES))
    order = fields.String(load_default="desc", validate=validate.OneOf(["asc", "desc"]))


class FileSchema(Schema):
    """OpenAI's file object. Times are Unix seconds."""

    id = fields.String(required=True)
    object = fields.Constant("file", required=True, metadata={"type": "string", "enum": ["file"]})
    bytes = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "Null in a list, for results that nobody has read yet."},
    )
    created_at = fields.Integer(required=True)
    expires_at = fields.Integer(required=True, allow_none=True)
    filename = fields.String(required=True)
    purpose = fields.String(required=True, validate=validate.OneOf(PURPOSES))
    status = fields.Constant("processed", required=True, metadata={"type": "string", "enum": ["processed"]})


_ID_OR_NULL = {"type": ["string", "null"]}


class FileListSchema(Schema):
    object = fields.Constant("list", required=True, metadata={"type": "string", "enum": ["list"]})
    data = fields.List(fields.Nested(FileSchema), attribute="files", required=True)
    first_id = fields.Function(lambda page: page.files[0].id if page.files else None, metadata=_ID_OR_NULL)
    last_id = fields.Function(lambda page: page.files[-1].id if page.files else None, metadata=_ID_OR_NULL)
    has_more = fields.Boolean(required=True)


class DeletedFileSchema(Schema):
    id = fields.String(required=True)
    object = fields.Constant("file", required=True, metadata={"type": "string", "enum": ["file"]})
    deleted = fields.Constant(True, required=True, metadata={"type": "boolean", "enum": [True]})


class ModelSchema(Schema):
    """OpenAI's model object."""

    id = fields.String(required=True)
    object = fields.Constant("model", required=True, metadata={"type": "string", "enum": ["model"]})
    created = fields.Constant(0, required=True, metadata={"type": "integer"})
    owned_by = fields.String(required=True, metadata={"description": "The name of the provider."})


class ModelListSchema(Schema):
    object = fields.Constant("list", required=True, metadata={"type": "string", "enum": ["list"]})
    data = fields.List(fields.Nested(ModelSchema), required=True)
