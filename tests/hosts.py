"""Host apps as our users have them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy

from flask_llm_batches import LLMBatches, Principal

MASTER_KEY = "master-0123456789"


def create_host(*, database: Path | None = None, db: SQLAlchemy | None = None, **settings: Any) -> Flask:
    """Make an app that knows its users by the header ``X-User``.

    Args:
        database: A SQLite file for the host's own database; None for a host that has none.
        db: The host's ``SQLAlchemy()``; a new one unless given.
        settings: ``LLM_BATCHES_*``, without the prefix.
    """
    app = Flask(__name__, instance_path=tempfile.mkdtemp(prefix="host-", dir=os.environ.get("HOSTS_DIR")))
    app.config.update({f"LLM_BATCHES_{name.upper()}": value for name, value in settings.items()})
    if database is not None:
        db = db or SQLAlchemy()
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{database}"
        db.init_app(app)
    extension = LLMBatches(app, db=db)

    @extension.authenticator
    def principal() -> Principal | None:
        user = request.headers.get("X-User")
        return Principal(owner=user) if user else None

    if db is not None:
        with app.app_context():
            db.create_all()
    return app


def from_environment() -> Flask:
    """Make the app of a server test, in the server's process."""
    return create_host(
        database=Path(os.environ["HOST_DATABASE"]),
        providers=json.loads(os.environ["HOST_PROVIDERS"]),
        master_key=MASTER_KEY,
        spool_dir=os.environ["HOST_SPOOL"],
    )


def requests(count: int, **body: Any) -> list[dict[str, Any]]:
    """Make so many requests of a batch."""
    return [
        {
            "custom_id": f"r{number}",
            "body": {"messages": [{"role": "user", "content": f"say {number}"}], **body},
        }
        for number in range(count)
    ]
