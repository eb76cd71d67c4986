"""The view that takes the webhooks of providers."""

from __future__ import annotations

from flask import Response, request

from flask_llm_batches.current import current_llm_batches


def receive_webhook(provider: str) -> Response:
    current_llm_batches.receive_event(provider, dict(request.headers), request.get_data(cache=False))
    return Response(status=204)
