"""Keeps the rows of results as lines, always in the same order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager

import msgspec
from flask import Flask, current_app

from flask_llm_batches.batch import Row, RowError, own_id
from flask_llm_batches.errors import NotStored, ResultsGone
from flask_llm_batches.jsonl import Lines
from flask_llm_batches.storage.storage import Storage
from flask_llm_batches.store.models import Record


class _Line(msgspec.Struct, gc=False):
    custom_id: str
    result: msgspec.Raw
    error: RowError | None


_decode_line = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder().encode


def _decode(content: bytes) -> Row:
    line = _decode_line(content)
    return Row(line.custom_id, line.result if line.error is None else None, line.error)


class Archive:
    """The archived results of one app."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @contextmanager
    def write(self, record: Record) -> Iterator[Callable[[Sequence[Row]], None]]:
        """Archive the rows of a batch. They can be read when the block has ended without an error.

        Yields:
            A function that adds rows.
        """
        with self._storage.write(_key(record.uid)) as file:
            yield lambda rows: file.write(b"".join(_encode(row) + b"\n" for row in rows))

    def rows(self, record: Record) -> Generator[Sequence[Row]]:
        """Return the rows of a batch, some at a time.

        Raises:
            ResultsGone: They have been deleted since.
        """
        # Rows are read after the request and its context have ended.
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  # the app itself
        return self._rows(app, record)

    def _rows(self, app: Flask, record: Record) -> Generator[Sequence[Row]]:
        lines = Lines()
        try:
            with app.app_context():
                stored = self._storage.read(_key(record.uid))
            with closing(stored) as chunks:
                while True:
                    with app.app_context():
                        chunk = next(chunks, None)
                    if chunk is None:
                        return
                    yield [_decode(line) for line in lines.feed(chunk)]
        except NotStored:
            raise ResultsGone(record.batch_id or own_id(record.uid), provider=record.provider) from None

    def delete(self, uid: str) -> None:
        """Delete the rows of a batch, if there are any."""
        self._storage.delete(_key(uid))


def _key(uid: str) -> str:
    return f"results/{uid}"
