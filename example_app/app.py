"""A small shop. A large language model classifies its reviews, in batches.

It is an ordinary Flask app, with its own users, tables and pages. Only the lines with ``llm_batches`` add the
endpoints, the dashboard, and the worker that labels the reviews.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flask import Flask, abort, render_template, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.security import check_password_hash, generate_password_hash

from flask_llm_batches import Batch, DeliveredRow, LLMBatches, Principal

if TYPE_CHECKING:
    from sqlalchemy.orm import DeclarativeBase as Model

db = SQLAlchemy()
llm_batches = LLMBatches(db=db)
if not TYPE_CHECKING:
    Model = db.Model


class User(Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    password: Mapped[str]


class Review(Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    label: Mapped[str | None]


@llm_batches.authenticator
def principal() -> Principal | None:
    """Return the shop's user who calls, by HTTP Basic; None if the credentials are wrong."""
    basic = request.authorization
    if basic is not None and basic.type == "basic":
        user = db.session.scalar(db.select(User).filter_by(name=basic.username))
        if user is not None and check_password_hash(user.password, basic.password or ""):
            return Principal(owner=str(user.id))
    if request.blueprint == llm_batches.dashboard.name:  # then a browser asks for them
        abort(401, www_authenticate=WWWAuthenticate("basic", {"realm": "shop"}))
    return None


@llm_batches.on_results("label-reviews", http=True)
def label_reviews(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
    """Label the reviews of a batch, each exactly once; those with errors keep no label."""
    for row in rows:
        review = db.session.get(Review, int(row.custom_id.removeprefix("review-")))
        if review is not None and row.error is None:
            review.label = row.text


def create_app(**config: Any) -> Flask:
    """Create the app; ``config`` overrides its defaults."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.sqlite3"
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": {"api_key": os.environ.get("OPENAI_API_KEY")}}
    app.config["LLM_BATCHES_WORKER"] = "thread"
    app.config.update(config)
    db.init_app(app)
    llm_batches.init_app(app)
    app.register_blueprint(llm_batches.dashboard, url_prefix="/batches")

    @app.get("/")
    def index() -> str:
        return render_template("index.html", reviews=db.session.scalars(db.select(Review).limit(10)))

    @app.errorhandler(404)
    def not_found(_: Exception) -> tuple[str, int]:
        return render_template("404.html"), 404

    with app.app_context():
        db.create_all()
        if db.session.scalar(db.select(User)) is None:
            _fill()
    return app


def _fill() -> None:
    db.session.add(User(name="ada", password=generate_password_hash("lovelace")))
    verdicts = ("arrived early, works well", "broke after two days", "does what it says", "never again")
    for number in range(300):
        verdict = verdicts[(number * 7) % 4] if number % 50 else ""
        db.session.add(Review(text=verdict and f"Order {1000 + number}: {verdict}."))
    db.session.commit()
