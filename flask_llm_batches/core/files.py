"""The files of OpenAI's API: input files in the storage, and the results of batches as files."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Literal, NamedTuple

from flask import Flask, current_app

from flask_llm_batches.core.lookup import Lookup
from flask_llm_batches.core.outputs import output_lines
from flask_llm_batches.core.results import ResultReader
from flask_llm_batches.core.sources import key_of
from flask_llm_batches.errors import FilesNotKept, LLMBatchesError, NoSuchFile, NotStored, ValidationFailed
from flask_llm_batches.fields import is_id
from flask_llm_batches.principal import Owner, owner_name, owner_or_everyone
from flask_llm_batches.storage.storage import Storage, Writer
from flask_llm_batches.store import files as store
from flask_llm_batches.store.batches import Batches
from flask_llm_batches.store.models import File

PURPOSES = ("batch", "batch_output")

MAX_FILES = 10_000
"""The most files of a page, as at OpenAI."""

EXPIRES_AFTER = range(3600, 2_592_001)
"""The seconds after which a file may expire, as at OpenAI."""

_DAY = 24 * 3600
_EXPIRED = 20  # files that an upload deletes
_PREFIX = "file-"
_LONGEST_NAME = 255
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_expiry(seconds: object, *path: str) -> None:
    """Check the seconds after which a file expires.

    Raises:
        ValidationFailed: They are not 3,600 to 2,592,000.
    """
    if type(seconds) is not int or seconds not in EXPIRES_AFTER:
        raise ValidationFailed.of("Not a number of seconds from 3600 to 2592000.", *path)


class FilePage(NamedTuple):
    """A page of a list of files.

    Attributes:
        files: The files.
        has_more: Whether there is a next page.
    """

    files: Sequence[File]
    has_more: bool


class Upload:
    """A file that is being uploaded.

    Attributes:
        filename: As its owner names it; may be set until the block ends.
        expires_after: Seconds after which it is deleted; None for ``LLM_BATCHES_RETENTION``.
        file: The finished file; set when the block has ended.
    """

    def __init__(self, writer: Writer) -> None:
        self.filename = "upload"
        self.expires_after: int | None = None
        self.size = 0
        self.file: File
        self._writer = writer

    def write(self, data: bytes) -> None:
        """Add bytes to the file."""
        self.size += len(data)
        self._writer.write(data)


class FileContent:
    """The bytes of a file, which can be read once.

    Attributes:
        file: The file. Its ``bytes`` are None if they are not known yet.
    """

    def __init__(self, file: File, chunks: Generator[bytes, None, None]) -> None:
        self.file = file
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """End the download, if it has not ended."""
        self._chunks.close()


class Files:
    """The files of one app.

    Args:
        files: Where they are recorded.
        storage: Where input files are.
        batches: The record of batches.
        lookup: Finds the batch of results.
        results: Reads them.
        retention: Days for which files are kept; with 0 this server keeps none.
    """

    def __init__(
        self,
        files: store.Files,
        storage: Storage,
        batches: Batches,
        lookup: Lookup,
        results: ResultReader,
        *,
        retention: int,
    ) -> None:
        self._files = files
        self._storage = storage
        self._batches = batches
        self._lookup = lookup
        self._results = results
        self._retention = retention

    @contextmanager
    def upload(self, *, owner: Owner) -> Iterator[Upload]:
        """Store an input file, which the block writes. It exists when the block has ended without an error.

        Raises:
            FilesNotKept: ``LLM_BATCHES_RETENTION`` is 0.
        """
        name = owner_name(owner)  # type: ignore[arg-type]  # EVERYONE is a TypeError
        if self._retention == 0:
            raise FilesNotKept
        self.delete_expired(limit=_EXPIRED)
        uid = uuid.uuid4().hex
        self._files.begin(uid, owner=name)
        try:
            with self._storage.write(key_of(uid)) as writer:
                upload = Upload(writer)
                yield upload
                if upload.expires_after is not None:
                    check_expiry(upload.expires_after, "expires_after", "seconds")
            seconds = self._retention * _DAY if upload.expires_after is None else upload.expires_after
            file = self._files.finish(
                uid,
                filename=_UNFIT.sub("_", upload.filename)[:_LONGEST_NAME] or "upload",
                size=upload.size,
                seconds=seconds,
            )
            if file is None:
                raise ValidationFailed.of("The upload took more than a day.", "file")
            upload.file = file
        except BaseException:
            with suppress(LLMBatchesError):  # the first error is the one to report
                self._delete(uid)
            raise

    def list(
        self,
        *,
        owner: Owner,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = MAX_FILES,
        order: Literal["asc", "desc"] = "desc",
    ) -> FilePage:
        """List files by the time of their creation.

        Args:
            owner: Whose files.
            purpose: ``batch`` for input files, ``batch_output`` for results; any other has no files.
            after: The id of the last file of the previous page.
            limit: The length of the page, 1 to 10,000.
            order: ``desc`` for the newest first.
        """
        if not 1 <= limit <= MAX_FILES:
            raise ValidationFailed.of(
                f"Must be greater than or equal to 1 and less than or equal to {MAX_FILES}.", "limit"
            )
        found = None
        if after is None or is_id(after):
            found = self._files.list(
                owner=owner_or_everyone(owner),
                purpose=purpose,
                after=after,
                limit=limit,
                newest_first=order == "desc",
            )
        if found is None:
            raise ValidationFailed.of("Not the id of a file in this list.", "after")
        return FilePage(*found)

    def retrieve(self, file_id: str, *, owner: Owner, param: str | None = None) -> File:
        """Return a file.

        Raises:
            NoSuchFile: There is none, or it is somebody else's, or it has expired.
        """
        file = self._files.find(file_id, owner=owner_or_everyone(owner)) if is_id(file_id) else None
        if file is None:
            raise NoSuchFile(file_id, param=param)
        return file

    def measured(self, file: File) -> File:
        """Return a file with its size. Results that nobody has read yet are read to count their bytes."""
        if file.bytes is None:
            with closing(self._output(file, lambda: True)) as chunks:
                for _ in chunks:
                    pass
            return self.retrieve(file.id, owner=file.owner)
        return file

    def content(
        self, file_id: str, *, owner: Owner, keep_waiting: Callable[[], bool] = lambda: True
    ) -> FileContent:
        """Return the bytes of a file.

        Args:
            file_id: Its id.
            owner: Whose file it must be.
            keep_waiting: Called while a provider sends nothing; returns whether to wait for the first rows.

        Raises:
            NoSuchFile: There is none, or it is somebody else's, or it has expired.
            ResultsGone: The provider no longer has the results.
        """
        file = self.retrieve(file_id, owner=owner)
        return FileContent(
            file, self.read(file) if file.batch_uid is None else self._output(file, keep_waiting)
        )

    def read(self, file: File) -> Generator[bytes, None, None]:
        """Return the bytes of an input file, at most 1 MiB at a time.

        Raises:
            NoSuchFile: It was deleted, perhaps while it was read.
        """
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself
        try:
            chunks = self._storage.read(key_of(file.id.removeprefix(_PREFIX)))
        except NotStored:
            raise NoSuchFile(file.id) from None
        return _in_context(app, chunks, file.id)

    def delete(self, file_id: str, *, owner: Owner) -> File:
        """Delete a file, and return it. Deleted results can still be read with ``results``.

        Raises:
            NoSuchFile: There is none, or it is somebody else's, or it has expired.
        """
        file = self.retrieve(file_id, owner=owner)
        self._delete(file.id.removeprefix(_PREFIX))
        return file

    def delete_expired(self, *, limit: int = 1000) -> None:
        """Delete expired files, and the remains of uploads that were killed a day ago."""
        for file in self._files.expired(limit=limit):
            self._delete(file.id.removeprefix(_PREFIX))

    def _delete(self, uid: str) -> None:
        self._storage.delete(key_of(uid))
        self._files.delete(uid)

    def _output(self, file: File, keep_waiting: Callable[[], bool]) -> Generator[bytes, None, None]:
        record = self._batches.by_uid(file.batch_uid or "")
        if record is None:
            raise NoSuchFile(file.id)
        results = self._results.read(
            self._lookup.ended_of(record),
            record,
            status="succeeded" if store.kind_of(file) == "output" else "failed",
            requested_by=record.owner,
            keep_waiting=keep_waiting,
        )
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself
        return self._counted(app, file, output_lines(results, record.uid))

    def _counted(
        self, app: Flask, file: File, chunks: Generator[bytes, None, None]
    ) -> Generator[bytes, None, None]:
        size = 0
        with closing(chunks):
            for chunk in chunks:
                size += len(chunk)
                yield chunk
        if size != file.bytes:
            with (
                app.app_context(),
                suppress(LLMBatchesError),
            ):  # which is logged; the next reader counts again
                self._files.set_size(file.id, size)


def _in_context(
    app: Flask, chunks: Generator[bytes, None, None], file_id: str
) -> Generator[bytes, None, None]:
    """Yield chunks, also after the request and its context have ended."""
    try:
        with closing(chunks):
            while True:
                with app.app_context():
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk
    except NotStored:
        raise NoSuchFile(file_id) from None
