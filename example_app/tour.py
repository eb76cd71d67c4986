"""The tour: runs the shop and a simulated provider on loopback, and calls the endpoints."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from flask import Flask
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from werkzeug.serving import make_server

from example_app.app import Review, create_app, db
from flask_llm_batches.engines import thread as thread_engine
from flask_llm_batches.testing import Simulator

PORT = 5000
SECONDS = 5
QUESTION = "Is this review positive or negative? Answer with one word."

console = Console()


def sort_review(line: Mapping[str, Any]) -> dict[str, Any] | tuple[int, dict[str, Any]]:
    """Return the answer of a model; an empty review is an error."""
    review = line["body"]["messages"][-1]["content"]
    if not review:
        return 400, {"error": {"code": "invalid_value", "message": "messages[1].content must not be empty"}}
    verdict = "positive" if "early" in review or "says" in review else "negative"
    tokens = len(QUESTION + review) // 4
    return {
        "id": f"chatcmpl-{line['custom_id']}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": line["body"]["model"],
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": verdict}}
        ],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1},
    }


@contextmanager
def shop(port: int, *, key: str | None = None) -> Iterator[tuple[Flask, str]]:
    """Run the app, with OpenAI if there is a key, otherwise with a simulated provider.

    Its database is deleted at the end.
    """
    with (
        tempfile.TemporaryDirectory(prefix="example-app-") as folder,
        Simulator(respond=sort_review, seconds=SECONDS) as simulator,
    ):
        config: dict[str, Any] = {
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{Path(folder) / 'shop.sqlite3'}",
            "LLM_BATCHES_SPOOL_DIR": folder,
        }
        config["LLM_BATCHES_PROVIDERS"] = {"openai": {"api_key": key} if key else simulator.settings}
        app = create_app(**config)
        server = make_server("127.0.0.1", port, app, threaded=True)
        server.daemon_threads = False  # type: ignore[attr-defined]  # so that closing waits for its requests
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield app, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            thread_engine.stop(app)


def serve(port: int = PORT) -> None:
    """Keep the app running until Ctrl-C."""
    with shop(port, key=os.environ.get("OPENAI_API_KEY")) as (_, url):
        console.print(
            f"The shop is at {url}, its endpoints at {url}/v1/batches, and its dashboard at {url}/batches "
            "(user ada, password lovelace). Ctrl-C ends it.",
            highlight=False,
            soft_wrap=True,
        )
        threading.Event().wait()


def tour() -> None:
    """Submit a batch, watch it, show what it did to the shop's own table, and print how to continue."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs a line for every poll
    with shop(0) as (app, url), httpx.Client(base_url=url, auth=("ada", "lovelace"), timeout=60) as http:
        with app.app_context():
            reviews = {f"review-{review.id}": review.text for review in db.session.scalars(db.select(Review))}
        _show_reviews(app, "Reviews before")
        requests = [
            {
                "custom_id": custom_id,
                "body": {
                    "messages": [{"role": "system", "content": QUESTION}, {"role": "user", "content": text}]
                },
            }
            for custom_id, text in reviews.items()
        ]
        asked = {"model": "openai:gpt-4o-mini", "requests": requests, "on_results": "label-reviews"}
        batch = _ask(http.post("/v1/batches", json=asked))
        console.print(f"POST /v1/batches: {len(requests)} requests are batch {batch['id']}", highlight=False)
        batch = _watch(http, batch["id"])
        rows = _ask(http.get(f"/v1/batches/{batch['id']}/results"))["results"]
        _wait_for_labels(app, sum(row["error"] is None for row in rows))
        _show_reviews(app, "Reviews after")
        _show_failures(rows)
        _show_usage(app)
    _say_how_to_go_on()


def _ask(answer: httpx.Response) -> dict[str, Any]:
    answer.raise_for_status()
    asked: dict[str, Any] = answer.json()
    return asked


def _watch(http: httpx.Client, batch_id: str) -> dict[str, Any]:
    columns = (TextColumn("{task.description:>11}"), BarColumn(40), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("validating", total=None)
        while True:
            batch = _ask(http.get(f"/v1/batches/{batch_id}"))
            counts = batch["request_counts"]
            progress.update(
                bar,
                description=batch["status"],
                completed=counts["completed"] + counts["failed"],
                total=counts["total"],
            )
            if batch["status"] in ("completed", "failed", "expired", "cancelled"):
                return batch
            time.sleep(0.2)


def _wait_for_labels(app: Flask, count: int) -> None:
    labelled = db.select(db.func.count(Review.label))
    with app.app_context():
        while db.session.execute(labelled).scalar_one() < count:
            db.session.rollback()
            time.sleep(0.1)


def _show_reviews(app: Flask, title: str) -> None:
    with app.app_context():
        counts = Counter(db.session.scalars(db.select(Review.label)))
        said = ", ".join(f"{count} {label or 'unlabelled'}" for label, count in counts.most_common())
        table = Table("id", "text", "label", title=f"{title}: {said}")
        for review in db.session.scalars(db.select(Review).order_by(Review.id).offset(1).limit(6)):
            table.add_row(str(review.id), review.text, review.label or "-")
    console.print(table)


def _show_failures(rows: list[dict[str, Any]]) -> None:
    failures = {row["custom_id"]: row["error"] for row in rows if row["error"]}
    table = Table("custom_id", "code", "message", title=f"Failures: {len(failures)}")
    for custom_id, error in failures.items():
        table.add_row(custom_id, error["code"], error["message"])
    console.print(table)


def _show_usage(app: Flask) -> None:
    usage = db.metadata.tables["llm_batches_usage"]
    names = ("event", "owner", "provider", "model", "requests", "prompt_tokens", "completion_tokens")
    table = Table(*names, title="Usage")
    with app.app_context():
        for row in db.session.execute(db.select(*(usage.c[name] for name in names)).order_by(usage.c.id)):
            table.add_row(*("-" if value is None else str(value) for value in row))
    console.print(table)


def _say_how_to_go_on() -> None:
    url = f"http://127.0.0.1:{PORT}/v1/batches"
    request = '{"custom_id": "r1", "body": {"messages": [{"role": "user", "content": "works well"}]}}'
    console.print(
        f"""
Go on by hand: start the app in one terminal, and talk to it in another.

  .venv/bin/python -m example_app serve

  curl -s -u ada:lovelace {url} -H 'Content-Type: application/json' \\
    -d '{{"model": "openai:gpt-4o-mini", "requests": [{request}]}}' | tee batch.json
  ID=$(grep -o 'batch_[0-9a-f]*' batch.json | head -1)
  curl -u ada:lovelace {url}
  curl -u ada:lovelace {url}/$ID
  curl -u ada:lovelace {url}/$ID/results

With a real key, requests go to OpenAI: OPENAI_API_KEY=... .venv/bin/python -m example_app serve
""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
