"""An object store: Amazon's S3 or another one with its protocol, Google's, or Azure's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from flask_llm_batches.errors import ConfigurationError, NotStored
from flask_llm_batches.storage.failures import unavailable

if TYPE_CHECKING:
    from obstore import GetOptions

_PART = 8 * 1024 * 1024  # a store takes at most 10,000 parts, of 5 MiB or more


class Objects:
    """A backend of ``Storage``: an object for each of ours, below the path of the URL.

    Keys and addresses are in the environment, as for the store's own tools. A process that is killed while it
    uploads leaves parts that only the store can list: it has rules that delete them after some days.
    A process whose parent has read or written cannot do so itself: obstore's threads do not survive a fork.

    Args:
        url: Such as ``s3://bucket/path``.
        spool_dir: Where an object is until it is complete; None for the system's folder for temporary files.

    Raises:
        ConfigurationError: obstore is not installed, or does not understand the URL.
    """

    def __init__(self, url: str, spool_dir: str | None) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError:
            raise ConfigurationError(
                f"LLM_BATCHES_STORAGE is {url!r}, which needs a package: "
                "pip install 'flask-llm-batches[storage]'"
            ) from None
        self._obstore = obstore
        self._errors = (obstore.exceptions.BaseError, OSError, ValueError)
        try:
            self._store = from_url(url)
        except self._errors as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(f"LLM_BATCHES_STORAGE cannot be {url!r}: {reason}") from None
        self._spool_dir = spool_dir

    @contextmanager
    def write(self, key: str) -> Iterator[Callable[[bytes], object]]:
        # Into a file first: obstore's writer cannot be aborted. The file has no name, so a kill leaves none.
        with unavailable(OSError):
            file = tempfile.TemporaryFile(dir=self._spool_dir)  # noqa: SIM115  # it is below

        def keep(chunk: bytes) -> None:
            with unavailable(OSError):
                file.write(chunk)

        try:
            yield keep
            with unavailable(*self._errors):
                file.seek(0)
                self._obstore.put(self._store, self._path_of(key), file, chunk_size=_PART, max_concurrency=2)
        finally:
            with suppress(OSError):
                file.close()

    def read(self, key: str) -> Generator[bytes, None, None]:
        # One request for each part: the time of a request is limited, and a reader may be slow.
        offset, size = 0, 1
        options: GetOptions = {}
        while offset < size:
            options["range"] = (offset, offset + _PART)
            with unavailable(*self._errors):
                try:
                    got = self._obstore.get(self._store, self._path_of(key), options=options)
                    part = got.bytes().to_bytes()
                except (FileNotFoundError, self._obstore.exceptions.PreconditionError):
                    raise NotStored(key) from None
            yield part
            offset, size = offset + len(part), got.meta["size"]
            if etag := got.meta["e_tag"]:
                options["if_match"] = etag

    def delete(self, key: str) -> None:
        with unavailable(*self._errors), suppress(FileNotFoundError):
            self._obstore.delete(self._store, self._path_of(key))

    def sweep(self, older_than: float) -> None:
        """Do nothing: only the store can list what unfinished uploads left."""

    @staticmethod
    def _path_of(key: str) -> str:
        return f"{key}.zst"
