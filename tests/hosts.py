"""Host apps as our users have them."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Any

from asgiref.wsgi import WsgiToAsgi
from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy

from flask_llm_batches import Limits, LLMBatches, Principal, current_llm_batches
from flask_llm_batches.testing import Simulator

MASTER_KEY = "master-0123456789"

KEYS = re.compile(f"{MASTER_KEY}|{Simulator.api_key}|llmb_[A-Za-z0-9_-]{{43}}")
"""What no log may have in it, whatever is tested."""


def create_host(
    *,
    database: Path | str | None = None,
    db: SQLAlchemy | None = None,
    limits: Callable[[Principal], Limits | None] | None = None,
    dashboard: str | None = None,
    **settings: Any,
) -> Flask:
    """Make an app that knows its users by the header ``X-User``, or a cookie.

    Args:
        database: The host's own database, a SQLite file or a URL; None for a host that has none.
        db: The host's ``SQLAlchemy()``; a new one unless given.
        limits: Returns what an owner may have.
        dashboard: Where the dashboard is; by default nowhere.
        settings: ``LLM_BATCHES_*``, without the prefix.
    """
    app = Flask(__name__, instance_path=tempfile.mkdtemp(prefix="host-", dir=os.environ.get("HOSTS_DIR")))
    app.config.update({f"LLM_BATCHES_{name.upper()}": value for name, value in settings.items()})
    if database is not None:
        db = db or SQLAlchemy()
        uri = database if isinstance(database, str) else f"sqlite:///{database}"
        app.config["SQLALCHEMY_DATABASE_URI"] = uri
        db.init_app(app)
    extension = LLMBatches(app, db=db)

    @extension.authenticator
    def principal() -> Principal | None:
        user = request.headers.get("X-User") or request.cookies.get("user")
        return Principal(owner=user, admin=user == "the-admin") if user else None

    if limits is not None:
        extension.limits(limits)
    if dashboard is not None:
        app.register_blueprint(extension.dashboard, url_prefix=dashboard)
    if db is not None:
        with app.app_context():
            db.create_all()
    return app


def dispose(app: Flask) -> None:
    """Close the connections of a host to its databases."""
    with app.app_context():
        engines = dict(app.extensions["sqlalchemy"].engines) if "sqlalchemy" in app.extensions else {}
        for engine in engines.values():
            engine.dispose()


def from_environment(**settings: Any) -> Flask:
    """Make the app of a server test, in the server's process."""
    defaults = {
        "providers": json.loads(os.environ["HOST_PROVIDERS"]),
        "master_key": MASTER_KEY,
        "spool_dir": os.environ["HOST_SPOOL"],
        "url_prefix": ["/v1/batches", "/api/v1/batches"],
    }
    app = create_host(database=os.environ["HOST_DATABASE"], **{**defaults, **settings})
    app.add_url_rule("/keys/<owner>", view_func=_make_key, methods=["POST"])
    atexit.register(dispose, app)  # since Python 3.13, SQLite warns of connections that are open at the end
    return app


def mapped(model: str) -> Flask:
    """Make that app with all three providers, one of which is behind a model of OpenAI's."""
    providers = json.loads(os.environ["HOST_ALL_PROVIDERS"])
    return from_environment(providers=providers, models={"gpt-4o-mini": model})


def logged() -> Flask:
    """Make that app with its log on standard error, a line each."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return from_environment()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Be that app for an ASGI server.

    Each call has a context of its own: asgiref 3.9 to 3.13 answers some calls on a kept connection with a 500
    otherwise, whatever the app (django/asgiref#491).
    """
    global _asgi  # noqa: PLW0603  # a server imports a name, and the app is made when it is first called
    _asgi = _asgi or WsgiToAsgi(from_environment())  # type: ignore[no-untyped-call]
    await asyncio.create_task(_asgi(scope, receive, send), context=Context())


_asgi: Any = None


def _make_key(owner: str) -> str:
    return current_llm_batches.keys.create(owner=owner)


def requests(count: int, **body: Any) -> list[dict[str, Any]]:
    """Make so many requests of a batch."""
    return [
        {
            "custom_id": f"r{number}",
            "body": {"messages": [{"role": "user", "content": f"say {number}"}], **body},
        }
        for number in range(count)
    ]
