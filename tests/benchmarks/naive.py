"""The same endpoints written in the obvious way: any-llm's functions through ``async_to_sync``."""

from __future__ import annotations

import json
import os
from tempfile import NamedTemporaryFile
from typing import Any

from any_llm.api import acreate_batch, aretrieve_batch, aretrieve_batch_results
from asgiref.sync import async_to_sync
from flask import Flask, Response, jsonify, request
from marshmallow import Schema, fields, validate

ENDPOINT = "/v1/chat/completions"


class RequestSchema(Schema):
    custom_id = fields.String(required=True, validate=validate.Length(min=1))
    body = fields.Dict(keys=fields.String(), required=True)


class CreateSchema(Schema):
    model = fields.String(required=True)
    requests = fields.List(fields.Nested(RequestSchema), required=True, validate=validate.Length(min=1))


def create_app() -> Flask:
    app = Flask(__name__)
    settings: dict[str, Any] = {
        "api_key": os.environ["NAIVE_API_KEY"],
        "api_base": os.environ["NAIVE_API_BASE"],
    }

    @app.post("/v1/batches")
    def create() -> Response:
        asked = CreateSchema().load(request.get_json())
        provider, model = asked["model"].split(":", 1)
        with NamedTemporaryFile("w", suffix=".jsonl") as file:
            for one in asked["requests"]:
                body = {**one["body"], "model": model}
                line = {"custom_id": one["custom_id"], "method": "POST", "url": ENDPOINT, "body": body}
                file.write(json.dumps(line) + "\n")
            file.flush()
            batch = async_to_sync(acreate_batch)(provider, file.name, ENDPOINT, **settings)
        return jsonify(batch.model_dump())

    @app.get("/v1/batches/<batch_id>")
    def retrieve(batch_id: str) -> Response:
        batch = async_to_sync(aretrieve_batch)(request.args["provider"], batch_id, **settings)
        return jsonify(batch.model_dump())

    @app.get("/v1/batches/<batch_id>/results")
    def results(batch_id: str) -> Response:
        found = async_to_sync(aretrieve_batch_results)(request.args["provider"], batch_id, **settings)
        rows = [
            {
                "custom_id": row.custom_id,
                "result": row.result and row.result.model_dump(),
                "error": row.error and {"code": row.error.code, "message": row.error.message},
            }
            for row in found.results
        ]
        return jsonify({"results": rows})

    return app
