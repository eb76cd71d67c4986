"""Makes JSON responses."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Response
from marshmallow import Schema


def answer(schema: Schema, value: Any) -> Response:
    return json_response(schema.dump(value))


def json_response(value: Any) -> Response:
    # Not jsonify: our answers must not depend on the host's JSON provider.
    return Response(msgspec.json.encode(value), mimetype="application/json")
