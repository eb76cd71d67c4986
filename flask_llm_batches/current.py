"""``current_llm_batches``: the service of the current app."""

from __future__ import annotations

from flask import current_app
from werkzeug.local import LocalProxy

from flask_llm_batches.core.service import Service


def _service() -> Service:
    try:
        service: Service = current_app.extensions["llm_batches"]
    except KeyError:
        raise RuntimeError(
            "This app has no LLMBatches. Call llm_batches.init_app(app) in the app factory."
        ) from None
    return service


current_llm_batches: Service = LocalProxy(_service)  # type: ignore[assignment]
"""The ``Service`` of the current app. It needs an app context, as ``flask.current_app`` does."""
