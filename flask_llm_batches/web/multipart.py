"""Reads a form with a file from the socket into the storage, without a copy on disk or in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from flask import request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from flask_llm_batches.core.files import Upload
from flask_llm_batches.errors import REQUIRED, TooLarge, UnsupportedMediaType, ValidationFailed
from flask_llm_batches.web.body import read_body

_CHUNK = 1 << 16
_MAX_PARTS = 20
_LONGEST_FIELD = 4096
_BUFFER = 1 << 18  # it must hold a chunk and the headers of a part


def read_form(upload: Upload) -> dict[str, str]:
    """Write the part ``file`` of the body to an upload, and return the other fields.

    Raises:
        ClientDisconnected: The body breaks off.
        RequestEntityTooLarge: It has more bytes than ``request.max_content_length``.
        TooLarge: It has more than 20 parts, or long headers.
        UnsupportedMediaType: It is not multipart/form-data.
        ValidationFailed: There is no file in it, or more than one, or it is not a valid form.
    """
    if "form" in vars(request):  # the host's authenticator has read it
        files = list(request.files.items(multi=True))
        names, form = [name for name, _ in files], request.form.to_dict()
        if names == ["file"]:
            _write(upload, files[0][1])
    else:
        names, form = _read(upload)
    if names != ["file"]:
        message = REQUIRED if "file" not in names else "The form must have this one file."
        raise ValidationFailed.of(message, "file")
    return form


def _write(upload: Upload, file: FileStorage) -> None:
    upload.filename = file.filename or ""
    while chunk := file.stream.read(_CHUNK):
        upload.write(chunk)


def _read(upload: Upload) -> tuple[list[str], dict[str, str]]:
    names: list[str] = []
    form: dict[str, str] = {}
    name, text, is_file = "", b"", False
    for event in _events():
        if isinstance(event, File):
            name, is_file = str(event.name), True
            upload.filename = event.filename
            names.append(name)
        elif isinstance(event, Field):
            name, is_file, text = str(event.name), False, b""
        elif isinstance(event, Data) and is_file:
            if names == ["file"]:
                upload.write(event.data)
        elif isinstance(event, Data):
            text += event.data
            if len(text) > _LONGEST_FIELD:
                raise ValidationFailed.of(f"Longer than {_LONGEST_FIELD} bytes.", name[:100])
            form[name] = text.decode(errors="replace")
    return names, form


def _events() -> Iterator[Event]:
    boundary = request.mimetype_params.get("boundary", "")
    if request.mimetype != "multipart/form-data" or not boundary:
        raise UnsupportedMediaType(
            "The Content-Type of a file must be multipart/form-data, with its boundary"
        )
    decoder = MultipartDecoder(boundary.encode("latin-1", "replace"), _BUFFER, max_parts=_MAX_PARTS)
    try:
        for chunk in chain(read_body(), (None,)):
            yield from _decoded(decoder, chunk)
    except ValueError:  # UnicodeDecodeError, too
        raise ValidationFailed.of("The body is not multipart/form-data, or it has no end.") from None


def _decoded(decoder: MultipartDecoder, chunk: bytes | None) -> Iterator[Event]:
    try:
        decoder.receive_data(chunk)
        while not isinstance(event := decoder.next_event(), (NeedData, Epilogue)):
            yield event
    except RequestEntityTooLarge:
        raise TooLarge(
            f"The form has more than {_MAX_PARTS} parts, or more than {_BUFFER // 1024} KiB that are no part"
        ) from None
