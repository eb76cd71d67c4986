"""LLMBatches: puts the endpoints, the tables and the service into a Flask app."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flask_llm_batches.cli import cli
from flask_llm_batches.config import Settings
from flask_llm_batches.core.service import Service
from flask_llm_batches.providers.clients import Providers
from flask_llm_batches.store.database import Database, FileDatabase, HostDatabase
from flask_llm_batches.web.auth import Authenticator, ErrorHandler, Hooks
from flask_llm_batches.web.views import create_blueprint

if TYPE_CHECKING:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy


class LLMBatches:
    """The extension. One instance serves any number of apps; all state is in the apps.

    Args:
        app: Initialised at once; otherwise call ``init_app`` in the factory.
        db: The host's Flask-SQLAlchemy, whose metadata then has our tables. Without it, the one that the app
            already has; without that, a SQLite file in ``app.instance_path``, made at the first use.

    Attributes:
        blueprint: The endpoints, for a host that registers them itself.
    """

    def __init__(self, app: Flask | None = None, *, db: SQLAlchemy | None = None) -> None:
        self._db = db
        self._hooks = Hooks()
        self.blueprint = create_blueprint(self._hooks)
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
            RuntimeError: The app is initialised already.
        """
        if "llm_batches" in app.extensions:
            raise RuntimeError(
                "This app has LLMBatches already: call init_app once for an app, "
                "or pass the app to LLMBatches(app), not both."
            )
        settings = Settings.from_config(app.config)
        providers = Providers(settings)
        app.extensions["llm_batches"] = Service(settings, self._database(app, settings), providers)
        app.cli.add_command(cli)
        if register_blueprint:
            for number, prefix in enumerate(settings.url_prefix, 1):
                name = self.blueprint.name if number == 1 else f"{self.blueprint.name}_{number}"
                app.register_blueprint(self.blueprint, url_prefix=prefix, name=name)

    def authenticator(self, function: Authenticator) -> Authenticator:
        """Register the function that says who is calling; use it as a decorator.

        It runs in the request, and returns a ``Principal``, or None when it does not know the caller.
        """
        self._hooks.authenticator = function
        return function

    def error_handler(self, function: ErrorHandler) -> ErrorHandler:
        """Register a function that renders our errors the host's way; use it as a decorator.

        It gets the ``LLMBatchesError`` and our answer to it, which it may change, and returns what a view
        may.
        """
        self._hooks.error_handler = function
        return function

    def _database(self, app: Flask, settings: Settings) -> Database:
        db = self._db or app.extensions.get("sqlalchemy")
        if db is None:
            return FileDatabase(Path(app.instance_path) / "llm_batches.sqlite3")
        return HostDatabase(db, settings.bind_key)
