"""Finds the backend for a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.request import url2pathname

from flask_llm_batches.storage.storage import Backend


def backend_at(storage: str, spool_dir: str | None) -> Backend | None:
    """Return the backend that ``LLM_BATCHES_STORAGE`` means; None for the database.

    Raises:
        ConfigurationError: It needs a package that is not installed, or its URL is wrong.
    """
    if storage == "database":
        return None
    if storage.startswith("file:"):
        from flask_llm_batches.storage.folder import Folder

        return Folder(Path(url2pathname(storage.removeprefix("file://"))))
    from flask_llm_batches.storage.objects import Objects

    return Objects(storage, spool_dir)
