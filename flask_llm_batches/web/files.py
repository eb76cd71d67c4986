"""The views of files and models: what programs for OpenAI's batch API call besides the batches."""

from __future__ import annotations

from urllib.parse import quote

from flask import Response, request

from flask_llm_batches.core.models import Resolved
from flask_llm_batches.current import current_llm_batches
from flask_llm_batches.errors import NoSuchModel
from flask_llm_batches.web.auth import caller
from flask_llm_batches.web.multipart import read_form
from flask_llm_batches.web.responses import answer
from flask_llm_batches.web.schemas import RequestSchema, check_spelling, load, load_query
from flask_llm_batches.web.schemas.files import (
    DeletedFileSchema,
    FileListSchema,
    FileSchema,
    FilesQuerySchema,
    ModelListSchema,
    ModelSchema,
    UploadSchema,
)
from flask_llm_batches.web.stream import caller_waits, file_stream

FILE, FILE_LIST, DELETED = FileSchema(), FileListSchema(), DeletedFileSchema()
FILES_QUERY, UPLOAD = FilesQuerySchema(), UploadSchema()
MODEL, MODEL_LIST = ModelSchema(), ModelListSchema()

_NO_QUERY = RequestSchema()
_JSONL = "application/jsonl"
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")


def files_beside(setting: str | None, prefix: str | None) -> str | None:
    """Return the path of the files that belong to batches under a prefix; None if they have none.

    Args:
        setting: ``LLM_BATCHES_FILES_URL_PREFIX``.
        prefix: Where the batches are.
    """
    if setting != "beside":
        return setting
    parent = (prefix or "").rpartition("/")[0]
    return f"{parent}/files" if parent else None


def upload_file() -> Response:
    load_query(_NO_QUERY)
    with current_llm_batches.files.upload(owner=caller().owner) as upload:
        form = read_form(upload)
        check_spelling(form, _FIELDS)
        upload.expires_after = load(UPLOAD, form)["seconds"]
    return answer(FILE, upload.file)


def list_files() -> Response:
    return answer(FILE_LIST, current_llm_batches.files.list(owner=caller(), **load_query(FILES_QUERY)))


def retrieve_file(file_id: str) -> Response:
    load_query(_NO_QUERY)
    files = current_llm_batches.files
    return answer(FILE, files.measured(files.retrieve(file_id.removesuffix("/"), owner=caller())))


def delete_file(file_id: str) -> Response:
    load_query(_NO_QUERY)
    return answer(DELETED, current_llm_batches.files.delete(file_id.removesuffix("/"), owner=caller()))


def file_content(file_id: str) -> Response:
    load_query(_NO_QUERY)
    files = current_llm_batches.files
    file = files.retrieve(file_id, owner=caller())
    asked = request.range
    # Anything else than one range of bytes is ignored, as HTTP has it.
    in_part = asked is not None and asked.units == "bytes" and len(asked.ranges) == 1
    if in_part:
        file = files.measured(file)
    if request.method == "HEAD":
        response = Response(iter(()), mimetype=_JSONL)
        if file.batch_uid is None and file.bytes is not None:
            response.content_length = file.bytes
    else:
        content = files.content(file_id, owner=caller(), keep_waiting=caller_waits(request.environ))
        response = Response(file_stream(content), mimetype=_JSONL)
        response.call_on_close(content.close)
        # The size of results may change until they are archived.
        if file.bytes is not None and (file.batch_uid is None or in_part):
            response.content_length = file.bytes
            response.accept_ranges = "bytes"
            if in_part:
                response.make_conditional(request, accept_ranges=True, complete_length=file.bytes)
    name = file.filename
    names = (
        {"filename": name} if name.isascii() else {"filename": file.id, "filename*": f"UTF-8''{quote(name)}"}
    )
    response.headers.set("Content-Disposition", "attachment", **names)
    return response


def list_models() -> Response:
    load_query(_NO_QUERY)
    return answer(MODEL_LIST, {"data": [_model(name, model) for name, model in current_llm_batches.models]})


def retrieve_model(model: str) -> Response:
    load_query(_NO_QUERY)
    found = dict(current_llm_batches.models).get(model)
    if found is None:
        raise NoSuchModel(f"The model {model[:255]!r} is not in LLM_BATCHES_MODELS", param="model")
    return answer(MODEL, _model(model, found))


def _model(name: str, model: Resolved) -> dict[str, str]:
    return {"id": name, "owned_by": model.provider}
