"""A host that counts how often each row is delivered to its own table, for workers that are killed."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from flask_llm_batches import Batch, DeliveredRow, LLMBatches

SECRET = "whsec_" + "c2VjcmV0IG51bWJlciBvbmUsIG5ldyBvbmU="
EVERY = 100
"""Of so many rows one is refused, if any is."""


def create_app() -> Flask:
    """Make the host. ``HOST_REFUSES`` lets the handler raise for one row of a hundred."""
    db, refuses = SQLAlchemy(), "HOST_REFUSES" in os.environ
    extension = LLMBatches(db=db)
    app = Flask("delivering", instance_path=os.environ["HOST_SPOOL"])
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["HOST_DATABASE"]
    app.config["LLM_BATCHES_PROVIDERS"] = {
        "openai": {"api_key": os.environ["HOST_KEY"], "api_base": os.environ["HOST_BASE"]}
    }
    app.config["LLM_BATCHES_WEBHOOKS"] = {
        "all": {"url": os.environ["HOST_WEBHOOK"], "secret": SECRET, "every": True, "allow_private": True}
    }
    db.init_app(app)
    extension.init_app(app)
    number = db.Column("id", db.Integer, primary_key=True, autoincrement=False)
    counters = db.Table("counter", number, db.Column("times", db.Integer))

    @extension.on_results("count")
    def count(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
        for row in rows:
            number = int(row.custom_id)
            if refuses and number % EVERY == 0:
                raise ValueError("a row that is always refused")
            this = counters.update().where(counters.c.id == number)
            db.session.execute(this.values(times=counters.c.times + 1))

    with app.app_context():
        db.create_all()
    return app


def logged() -> Flask:
    """Make that host with its log on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return create_app()
