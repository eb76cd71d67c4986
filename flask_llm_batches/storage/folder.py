"""A folder that keeps objects, on a disk or a network file system."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flask_llm_batches.errors import NotStored
from flask_llm_batches.storage.failures import unavailable

_CHUNK = 1024 * 1024


class Folder:
    """A backend of ``Storage``: a file for each object, which the program zstd can unpack, too.

    Args:
        path: The folder. It must exist, so that nothing is written while its disk is not mounted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path / ".unfinished"  # no key begins with a dot

    @contextmanager
    def write(self, key: str) -> Iterator[Callable[[bytes], object]]:
        path = self._path_of(key)
        with unavailable(OSError):
            self._unfinished.mkdir(exist_ok=True)
            file = tempfile.NamedTemporaryFile(dir=self._unfinished, delete=False)  # noqa: SIM115  # it is below

        def keep(chunk: bytes) -> None:
            with unavailable(OSError):
                file.write(chunk)

        try:
            yield keep
            with unavailable(OSError):
                file.flush()
                os.fsync(file.fileno())
                file.close()
                path.parent.mkdir(parents=True, exist_ok=True)
                Path(file.name).replace(path)
                for folder in path.parents:
                    _sync(folder)
                    if folder == self._path:
                        break
        finally:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                Path(file.name).unlink()

    def read(self, key: str) -> Generator[bytes, None, None]:
        with unavailable(OSError):
            try:
                file = self._path_of(key).open("rb")
            except FileNotFoundError:
                raise NotStored(key) from None
        with file:
            while True:
                with unavailable(OSError):
                    chunk = file.read(_CHUNK)
                if not chunk:
                    return
                yield chunk

    def delete(self, key: str) -> None:
        with unavailable(OSError):
            self._path_of(key).unlink(missing_ok=True)

    def sweep(self, older_than: float) -> None:
        with unavailable(OSError):
            for file in self._unfinished.glob("*"):
                with suppress(FileNotFoundError):  # it is finished, or another process has deleted it
                    if file.stat().st_mtime <= time.time() - older_than:
                        file.unlink()

    def _path_of(self, key: str) -> Path:
        return self._path / f"{key}.zst"


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut. Windows has no call for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
