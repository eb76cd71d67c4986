"""The same status endpoint written in the obvious way: any-llm's functions through ``async_to_sync``."""

from __future__ import annotations

import os

from any_llm.api import aretrieve_batch
from asgiref.sync import async_to_sync
from flask import Flask, Response, jsonify, request


def create_app() -> Flask:
    app = Flask(__name__)

    @app.get("/v1/batches/<batch_id>")
    def retrieve(batch_id: str) -> Response:
        batch = async_to_sync(aretrieve_batch)(
            request.args["provider"],
            batch_id,
            api_key=os.environ["NAIVE_API_KEY"],
            api_base=os.environ["NAIVE_API_BASE"],
        )
        return jsonify(batch.model_dump())

    return app
