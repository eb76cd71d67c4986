"""Our endpoints, in an app that takes more requests than usual."""

from __future__ import annotations

import json
import os

from flask import Flask

from flask_llm_batches.providers.adapters.openai import OpenAIAdapter
from tests.benchmarks.upstream import MAX_ROWS
from tests.hosts import create_host


def create_app(worker: str | None = None, storage: str = "database", part: int = MAX_ROWS) -> Flask:
    OpenAIAdapter.max_requests = part  # 50,000 are too few to tell whether memory grows with them
    return create_host(
        database=os.environ["HOST_DATABASE"],
        providers=json.loads(os.environ["HOST_PROVIDERS"]),
        spool_dir=os.environ["HOST_SPOOL"],
        max_content_length=1 << 30,
        worker=worker,
        storage=storage,
    )
