"""Files with requests on disk, which exist only while they are used."""

from __future__ import annotations

import errno
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flask_llm_batches.errors import SpoolUnavailable
from flask_llm_batches.log import get_logger

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be deleted
    fcntl = None  # type: ignore[assignment]

logger = get_logger(__name__)

_PREFIX, _SUFFIX = "llm-batches-", ".jsonl"


@contextmanager
def temporary_file(folder: str | None) -> Iterator[IO[bytes]]:
    """Make a file that only this user may read, and delete it when the block ends.

    Raises:
        SpoolUnavailable: The folder cannot be written to.
    """
    try:
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115  # closed below, where closing may fail
            prefix=_PREFIX, suffix=_SUFFIX, dir=folder, delete=False
        )
    except OSError as error:
        raise write_error(error) from None
    try:
        _lock(file)
        yield file.file
    finally:
        # An error here must not hide the provider's answer.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            Path(file.name).unlink()


def write_error(error: OSError) -> SpoolUnavailable:
    """Log an error of the disk, and return our own error for it."""
    logger.error("the requests of a create cannot be spooled: %s", error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = "its disk is full" if full else "the folder for them cannot be written to"
    return SpoolUnavailable(
        f"This server cannot store the requests: {why}. Nothing was submitted. Try again later."
    )


def _lock(file: IO[bytes]) -> bool:
    """Lock a file for as long as it is open; return False if another process has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def sweep(folder: str | None, *, older_than: float) -> None:
    """Delete the files that killed processes left. A file that is in use is locked, and is kept.

    Args:
        folder: The folder of the files; by default the system's for temporary files.
        older_than: Seconds since the last write to a file.
    """
    for path in Path(folder or tempfile.gettempdir()).glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if time.time() - path.stat().st_mtime >= older_than:
                with path.open("rb") as file:
                    if _lock(file):
                        path.unlink()
