"""The host's migrations make our tables, and find nothing to change afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flask_migrate
import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Inspector, MetaData, String, inspect
from sqlalchemy.orm import Mapped, mapped_column

from flask_llm_batches import LLMBatches, current_llm_batches
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeDatabase
from tests.databases import query
from tests.hosts import dispose, requests

pytestmark = pytest.mark.filterwarnings("ignore:.*get_engine.*:DeprecationWarning")  # Flask-Migrate's own

# Later migrations address them.
NAMES = {
    "ix_llm_batches_batch_accounted_at_owner_status",
    "ix_llm_batches_batch_batch_id",
    "ix_llm_batches_batch_owner_id",
    "ix_llm_batches_batch_owner_status_id",
    "ix_llm_batches_batch_part_of",
    "ix_llm_batches_batch_provider_model",
    "ix_llm_batches_batch_retry_of",
    "ix_llm_batches_batch_state_owner",
    "ix_llm_batches_batch_status_id",
    "ix_llm_batches_file_batch_uid",
    "ix_llm_batches_file_expires_at",
    "ix_llm_batches_file_owner_id",
    "ix_llm_batches_task_due_at",
    "ix_llm_batches_usage_batch_uid",
    "ix_llm_batches_usage_created_at",
    "ix_llm_batches_usage_owner_created_at",
    "uq_llm_batches_idempotency_batch_uid",
    "uq_llm_batches_api_key_key_hash",
    "uq_llm_batches_batch_provider_batch_id",
    "uq_llm_batches_batch_uid",
    "uq_llm_batches_set_aside_batch_uid_number",
    "uq_llm_batches_task_batch_uid_step",
    "uq_llm_batches_webhook_batch_uid_target",
    "uq_llm_batches_file_uid",
    "uq_llm_batches_object_key",
}

CONVENTION = {
    "ix": "ix__%(table_name)s__%(column_0_label)s",
    "uq": "the_unique_constraint_of_%(table_name)s_over_%(column_0_N_name)s",
    "ck": "ck__%(table_name)s__%(constraint_name)s",
    "fk": "fk__%(table_name)s__%(column_0_name)s__%(referred_table_name)s",
    "pk": "pk__%(table_name)s",
}


@pytest.fixture(autouse=True)
def _logging_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alembic's env.py configures the logging of the whole process."""
    monkeypatch.setattr("logging.config.fileConfig", lambda *_, **__: None)


def names_of(inspector: Inspector, schema: str | None) -> set[str | None]:
    """Return the names of our indexes and unique constraints."""
    tables = [name for name in inspector.get_table_names(schema) if name.startswith("llm_batches_")]
    indexes = {index["name"] for name in tables for index in inspector.get_indexes(name, schema)}
    unique = {one["name"] for name in tables for one in inspector.get_unique_constraints(name, schema)}
    return indexes | unique


def migrated(
    llm_provider: Simulator, folder: Path, db: SQLAlchemy, config: dict[str, Any], **options: Any
) -> None:
    """Make the tables by the host's migrations, use them, find no drift, and take the migrations back.

    The names of what we make are ours, whatever the host's naming convention is.
    """
    app = Flask(__name__, instance_path=str(folder))
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    app.config.update(config)
    model: Any = db.Model

    class User(model):  # type: ignore[misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(80), unique=True)

    db.init_app(app)
    flask_migrate.Migrate(app, db, directory=str(folder / "migrations"), **options)
    LLMBatches(app, db=db)
    bind, schema = config.get("LLM_BATCHES_BIND_KEY"), db.metadata.schema
    with app.app_context():
        flask_migrate.init(multidb=bind is not None)
        flask_migrate.migrate()
        # What env.py leaves here; on the command line that process has ended.
        del app.extensions["migrate"].configure_args["process_revision_directives"]
        flask_migrate.upgrade()
        assert names_of(inspect(db.engines[bind]), schema) == NAMES
        flask_migrate.check()  # ends the process when there is something to do
        batch = current_llm_batches.create(owner="ada", model="openai:m", requests=requests(1))
        llm_provider.batches[0].finish()
        assert len(list(current_llm_batches.results(batch.id, owner="ada"))) == 1
        flask_migrate.downgrade(revision="base")
        for engine in db.engines.values():
            assert set(inspect(engine).get_table_names(schema)) <= {"alembic_version"}
    dispose(app)


@pytest.mark.parametrize("convention", [None, CONVENTION], ids=["no convention", "a convention"])
def test_migrations(
    database_url: str, llm_provider: Simulator, tmp_path: Path, convention: dict[str, str] | None
) -> None:
    """Autogenerate, upgrade, no drift, downgrade; with and without a naming convention of the host's."""
    db = SQLAlchemy(metadata=MetaData(naming_convention=convention))
    migrated(llm_provider, tmp_path, db, {"SQLALCHEMY_DATABASE_URI": database_url})


@pytest.mark.parametrize("make_database", ["postgresql"], indirect=True)
def test_migrations_with_a_schema(database_url: str, llm_provider: Simulator, tmp_path: Path) -> None:
    """The same where the host's metadata has a schema."""
    query(database_url, "CREATE SCHEMA shop")
    db = SQLAlchemy(metadata=MetaData(schema="shop"))
    migrated(llm_provider, tmp_path, db, {"SQLALCHEMY_DATABASE_URI": database_url}, include_schemas=True)


def test_migrations_of_a_second_bind(
    make_database: MakeDatabase, llm_provider: Simulator, tmp_path: Path
) -> None:
    """The same where the record is on another database than the host's own tables."""
    config = {
        "SQLALCHEMY_DATABASE_URI": make_database(),
        "SQLALCHEMY_BINDS": {"batches": make_database()},
        "LLM_BATCHES_BIND_KEY": "batches",
    }
    migrated(llm_provider, tmp_path, SQLAlchemy(), config)
