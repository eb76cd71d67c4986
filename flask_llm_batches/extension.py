"""``LLMBatches``: adds the endpoints, the tables and the service to a Flask app."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flask_llm_batches.cli import cli
from flask_llm_batches.config import Settings
from flask_llm_batches.core.handlers import Handler, Handlers
from flask_llm_batches.core.limits import Limit, Limiter
from flask_llm_batches.core.service import Service
from flask_llm_batches.dashboard.blueprint import create_dashboard
from flask_llm_batches.engines.thread import start_with_first_request
from flask_llm_batches.errors import ConfigurationError
from flask_llm_batches.log import get_logger
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.store.database import Database, FileDatabase, HostDatabase
from flask_llm_batches.web.auth import Authenticator, ErrorHandler, Hooks
from flask_llm_batches.web.blueprint import create_blueprint

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

A = TypeVar("A", bound=Authenticator)
E = TypeVar("E", bound=ErrorHandler)
H = TypeVar("H", bound=Handler)
L = TypeVar("L", bound=Limit)

logger = get_logger(__name__)


class LLMBatches:
    """The extension. One instance serves any number of apps; all state is in the apps.

    Args:
        app: The app to initialise now; without it, call ``init_app`` in the factory.
        db: The host's Flask-SQLAlchemy, whose metadata then has our tables. Without it, the one that the app
            already has; without that, a SQLite file in ``app.instance_path``, made at the first use.

    Attributes:
        blueprint: The endpoints, for a host that registers them itself.
        dashboard: Pages for people who log in to the host or use HTTP Basic. They are there if the host
            registers them: ``app.register_blueprint(llm_batches.dashboard, url_prefix="/batches")``.
    """

    def __init__(self, app: Flask | None = None, *, db: SQLAlchemy | None = None) -> None:
        if db is not None and not _is_flask_sqlalchemy(db):
            raise TypeError(
                f"LLMBatches(db=db) takes Flask-SQLAlchemy's SQLAlchemy(), not {type(db).__module__}'s; "
                "without db, the record is in a SQLite file of its own"
            )
        self._db = db
        self._hooks = Hooks()
        self._handlers = Handlers()
        self._limiter = Limiter()
        self.blueprint = create_blueprint(self._hooks)
        self.dashboard = create_dashboard(self._hooks)
        if app is not None:
            if not hasattr(app, "extensions"):
                raise TypeError(
                    "LLMBatches(app): the first argument is the Flask app; a database is LLMBatches(db=db)"
                )
            self.init_app(app)

    def init_app(self, app: Flask, *, register_blueprint: bool = True) -> None:
        """Prepare an app, from its ``LLM_BATCHES_*`` settings.

        Args:
            app: The app.
            register_blueprint: False leaves it to the host:
                ``app.register_blueprint(llm_batches.blueprint, url_prefix=...)``.

        Raises:
            ConfigurationError: A setting is wrong.
            RuntimeError: The app is initialised already, or too late for a setting.
        """
        if "llm_batches" in app.extensions:
            raise RuntimeError(
                "This app has LLMBatches already: call init_app once for an app, "
                "or pass the app to LLMBatches(app), not both."
            )
        settings = Settings.from_config(app.config)
        if settings.files_url_prefix != "beside" and self.blueprint in app.blueprints.values():
            raise RuntimeError(
                "LLM_BATCHES_FILES_URL_PREFIX came too late: call init_app(app, register_blueprint=False) "
                "before app.register_blueprint(llm_batches.blueprint, url_prefix=...)."
            )
        providers = Providers(settings)
        app.extensions["llm_batches"] = Service(
            settings, self._database(app, settings), providers, self._handlers, self._limiter
        )
        app.cli.add_command(cli)
        if settings.worker == "thread":
            start_with_first_request(app)
        if register_blueprint:
            for number, prefix in enumerate(settings.url_prefix, 1):
                name = self.blueprint.name if number == 1 else f"{self.blueprint.name}_{number}"
                app.register_blueprint(self.blueprint, url_prefix=prefix, name=name)

    def authenticator(self, function: A) -> A:
        """Register the function that identifies the caller. Use it as a decorator.

        It runs in the request, and returns a ``Principal``, or None when it does not know the caller. It may
        be async, as a view may.
        """
        self._hooks.authenticator = function
        return function

    def error_handler(self, function: E) -> E:
        """Register a function that renders errors as the host does. Use it as a decorator.

        It gets the ``LLMBatchesError`` and our answer to it, which it may change, and returns what a view
        may. It may be async, too.
        """
        self._hooks.error_handler = function
        return function

    def limits(self, function: L) -> L:
        """Register a function that says what an owner may have; use it as a decorator.

        It gets the ``Principal`` who owns a new batch, and returns ``Limits``, or None for no limits. It may
        be async. A create that exceeds the limits is a 429. If an admin creates for another owner, or a
        worker reads an input file, the ``Principal`` is that owner, and no admin.
        """
        self._limiter.limit = function
        return function

    def on_results(self, name: str, *, http: bool = False) -> Callable[[H], H]:
        """Register a function that takes the results of batches; use it as a decorator.

        A worker calls it with some ``DeliveredRow``s and the ``Batch``, in an app context, and commits
        ``db.session`` after it: what it writes through that session is written exactly once. If it raises,
        it is called again later, and then with one row at a time; rows that it still refuses are set aside.
        It may be async.

        Args:
            name: For ``create(on_results=...)``: 1 to 64 letters, digits, dots, dashes and underscores.
            http: Whether creates over HTTP may name it, too.
        """

        def register(function: H) -> H:
            self._handlers.register(name, function, http=http)
            return function

        return register

    def _database(self, app: Flask, settings: Settings) -> Database:
        db = self._db or app.extensions.get("sqlalchemy")
        path = Path(app.instance_path) / "llm_batches.sqlite3"
        if db is not None and not _is_flask_sqlalchemy(db):
            logger.warning(
                "%s, the database of this app, is not Flask-SQLAlchemy's; the record of batches is in %s",
                type(db).__module__,
                path,
            )
            db = None
        if settings.bind_key is not None:
            _check_bind(settings.bind_key, app, db)
        return FileDatabase(path) if db is None else HostDatabase(db, settings.bind_key)


def _is_flask_sqlalchemy(db: object) -> bool:
    return hasattr(db, "metadatas")  # Flask-SQLAlchemy-Lite has none, and so no place for our tables


def _check_bind(key: str, app: Flask, db: SQLAlchemy | None) -> None:
    if db is None:
        raise ConfigurationError(
            f"LLM_BATCHES_BIND_KEY is {key!r}, but this app has no Flask-SQLAlchemy: "
            "pass it to LLMBatches(db=db), or call db.init_app first"
        )
    known = app.config.get("SQLALCHEMY_BINDS") or {}
    if key not in known:
        message = (
            f"LLM_BATCHES_BIND_KEY must be a key of SQLALCHEMY_BINDS, which has {list(known)}, not {key!r}"
        )
        if "sqlalchemy" in app.extensions:
            raise ConfigurationError(message)
        logger.warning("%s; that is an error unless it is added before db.init_app", message)
