"""Rows come into the app's own tables: each exactly once, whatever is killed or refused."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from marshmallow import Schema, fields

from flask_llm_batches import (
    Batch,
    DeliveredRow,
    InvalidOutput,
    LLMBatches,
    LLMBatchesError,
    current_llm_batches,
)
from flask_llm_batches.core.handlers import Handler
from flask_llm_batches.core.results import ResultReader
from flask_llm_batches.core.rows import Groups
from flask_llm_batches.core.worker import deliver
from flask_llm_batches.core.worker.deliver import GROUP
from flask_llm_batches.store.models import Record
from flask_llm_batches.testing import Simulator
from tests.conftest import client_of
from tests.databases import query
from tests.hosts import MASTER_KEY, requests
from tests.test_liars import cut
from tests.test_worker import tasks

MakeApp = Callable[..., Flask]
AGAIN = ["llm-batches", "deliveries", "--again"]


@pytest.fixture
def make_app(database_url: str, llm_provider: Simulator, tmp_path: Path) -> MakeApp:
    """Make a host with a table of labels, and a handler that is made with its db."""

    def make(handler: Callable[[SQLAlchemy], Handler], **settings: Any) -> Flask:
        db = SQLAlchemy()
        extension = LLMBatches(db=db)
        app = Flask("host", instance_path=str(tmp_path))
        app.config["SQLALCHEMY_DATABASE_URI"] = database_url
        app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
        app.config["LLM_BATCHES_MASTER_KEY"] = MASTER_KEY
        app.config.update({f"LLM_BATCHES_{name.upper()}": value for name, value in settings.items()})
        db.init_app(app)
        extension.init_app(app)
        db.Table("label", db.Column("id", db.String(20), primary_key=True), db.Column("text", db.String(99)))
        extension.on_results("label", http=True)(handler(db))
        extension.on_results("internal")(handler(db))
        with app.app_context():
            db.create_all()
        return app

    return make


def labels(database: str) -> dict[str, str]:
    return {name: text for name, text in query(database, "SELECT id, text FROM label")}  # noqa: C416  # rows


def everything(count: int) -> dict[str, str]:
    return {f"r{number}": f"say {number}" for number in range(count)}


def insert(db: SQLAlchemy, rows: Sequence[DeliveredRow]) -> None:
    for row in rows:
        db.session.execute(db.metadata.tables["label"].insert().values(id=row.custom_id, text=row.text))


def labelling(db: SQLAlchemy) -> Handler:
    def label(rows: Sequence[DeliveredRow], batch: Batch) -> None:
        assert batch.status == "completed"
        insert(db, rows)

    return label


def submit(app: Flask, simulator: Simulator, count: int, **options: Any) -> str:
    """Create a batch for the handler, and finish it."""
    with app.app_context():
        options = {"on_results": "label", "owner": "nightly", "model": "openai:m", **options}
        batch = current_llm_batches.create(requests=requests(count), **options)
    simulator.batches[-1].finish()
    return batch.id


def tick(app: Flask, database: str, times: int = 1) -> None:
    """Make every step due, except the end of the archive, and run it."""
    query(database, "UPDATE llm_batches_batch SET refreshed_at = 0")
    for _ in range(times):
        query(database, "UPDATE llm_batches_task SET due_at = 0 WHERE step <> 'expire'")
        with app.app_context():
            current_llm_batches.tick()


def test_rows_come_into_the_apps_own_table(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """In groups and without a caller; the archive stays as long as it should."""
    app = make_app(labelling)
    submit(app, llm_provider, 450)
    tick(app, database_url)
    assert labels(database_url) == everything(450)
    assert tasks(database_url) == [("expire",)]
    assert query(database_url, "SELECT delivered FROM llm_batches_batch") == [(450,)]


def test_what_a_handler_wrote_before_it_failed_is_not_kept(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """Its transaction is rolled back, and its rows are delivered again later."""
    failing = [True]

    def handler(db: SQLAlchemy) -> Handler:
        def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
            insert(db, rows)
            if failing[0] and len(rows) < GROUP:
                raise RuntimeError("the app is out of luck")

        return label

    app = make_app(handler)
    submit(app, llm_provider, GROUP + 100)
    tick(app, database_url)
    assert len(labels(database_url)) == GROUP
    assert set(tasks(database_url, "step, failures")) == {("deliver", 1), ("expire", 0)}
    failing[0] = False
    tick(app, database_url)
    assert labels(database_url) == everything(GROUP + 100)


def poisoned(db: SQLAlchemy) -> Handler:
    def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
        for row in rows:
            if row.custom_id in ("r0", "r7", "r9"):
                raise ValueError(f"no label for {row.text}")
            insert(db, [row])

    return label


def test_poisonous_rows_are_set_aside(make_app: MakeApp, database_url: str, llm_provider: Simulator) -> None:
    """The other rows of their group pass; a command shows them, and another delivers them again."""
    app = make_app(poisoned)
    batch_id = submit(app, llm_provider, 10)
    tick(app, database_url, 4)
    left = {name: text for name, text in everything(10).items() if name not in ("r0", "r7", "r9")}
    assert labels(database_url) == left
    assert tasks(database_url) == [("expire",)]
    run = app.test_cli_runner()
    shown = run.invoke(args=["llm-batches", "deliveries"]).output
    assert len(shown.splitlines()) == 3
    assert "\tr0\tValueError: no label for say 0" in shown
    refused = run.invoke(args=[*AGAIN, batch_id])
    assert (refused.output, refused.exit_code) == ("0\t3\n", 1)
    mended = make_app(labelling).test_cli_runner().invoke(args=[*AGAIN, batch_id])
    assert (mended.output, mended.exit_code) == ("3\t0\n", 0)
    assert labels(database_url) == everything(10)
    assert run.invoke(args=["llm-batches", "deliveries"]).output == ""


def test_any_text_of_an_error_is_kept(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression: with PostgreSQL, a NUL in the text of an error ended the delivery of the batch for good."""
    # pytest-xdist cannot send a log with half a character to its main process.
    caplog.set_level(logging.CRITICAL, "flask_llm_batches")

    def handler(db: SQLAlchemy) -> Handler:
        def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
            for row in rows:
                if row.custom_id == "r\0":
                    raise ValueError("no label for \0\ud800!")
                insert(db, [row])

        return label

    app = make_app(handler)
    with app.app_context():
        odd = [requests(1)[0] | {"custom_id": "r\0"}, *requests(3)]
        current_llm_batches.create(requests=odd, on_results="label", owner="nightly", model="openai:m")
    llm_provider.batches[-1].finish()
    tick(app, database_url, 8)
    assert labels(database_url) == everything(3)
    assert tasks(database_url) == [("expire",)]
    with app.app_context():
        (aside,) = current_llm_batches.set_aside()
    assert (aside.custom_id, aside.error) == ("r\ufffd", "ValueError: no label for \ufffd\ufffd!")


def test_a_number_too_large_for_python_holds_nothing_up(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: an integer of thousands of digits in a result ended the delivery of the batch for good."""
    app = make_app(labelling)
    batch_id = submit(app, llm_provider, 3)
    output = llm_provider.batches[-1].output
    output[1] = output[1].replace(b"1760000000", b"1" * 5000)
    tick(app, database_url, 2)
    assert labels(database_url) == everything(3)
    assert tasks(database_url) == [("expire",)]
    with app.app_context():
        rows = list(current_llm_batches.results(batch_id, owner="nightly"))
    assert [row["result"]["created"] for row in rows].count(float("inf")) == 1


def test_a_handler_may_return_what_is_to_be_awaited(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: rows of a plain function that calls an async one were delivered, and nothing was done."""

    def handler(db: SQLAlchemy) -> Handler:
        async def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
            insert(db, rows)

        return lambda *given: label(*given)  # noqa: PLW0108  # it is no coroutine function

    app = make_app(handler)
    submit(app, llm_provider, 3)
    tick(app, database_url, 2)
    assert labels(database_url) == everything(3)


def test_a_handler_with_a_yield_takes_nothing(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """Regression: its rows were delivered, although none of its lines had run."""

    def handler(db: SQLAlchemy) -> Handler:
        def label(rows: Sequence[DeliveredRow], _batch: Batch) -> Any:
            insert(db, rows)
            yield

        return label

    app = make_app(handler)
    submit(app, llm_provider, 3)
    tick(app, database_url)
    assert set(tasks(database_url, "step, failures")) == {("deliver", 1), ("expire", 0)}


@pytest.mark.parametrize("left", ["removed", "nested"])
def test_a_handler_may_leave_the_session_as_it_likes(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, left: str
) -> None:
    """Regression: rows were delivered without their effects if the handler had removed the session before."""

    def handler(db: SQLAlchemy) -> Handler:
        def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
            if left == "removed":
                db.session.remove()
            else:
                db.session.begin_nested()
            insert(db, rows)

        return label

    app = make_app(handler)
    submit(app, llm_provider, 3)
    tick(app, database_url)
    assert tasks(database_url) == [("expire",)]
    assert labels(database_url) == everything(3)


class _Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("kind", [SystemExit, asyncio.CancelledError, _Silent])
def test_no_error_of_a_handler_ends_a_worker(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, kind: type[BaseException]
) -> None:
    """Regression: a handler that called ``exit`` or was cancelled ended one worker thread after the other."""

    def handler(db: SQLAlchemy) -> Handler:
        def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
            for row in rows:
                if row.custom_id == "r1":
                    raise kind
                insert(db, [row])

        return label

    app = make_app(handler)
    submit(app, llm_provider, 3)
    thread = threading.Thread(target=tick, args=(app, database_url, 4))
    thread.start()
    thread.join()
    assert query(database_url, "SELECT custom_id FROM llm_batches_set_aside") == [("r1",)]
    assert labels(database_url) == {"r0": "say 0", "r2": "say 2"}


def test_rows_that_were_set_aside_earlier_are_kept(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: with a retention of 0, they were deleted if a later step delivered the other rows."""
    last = f"r{GROUP}"  # the simulator's output begins with it

    def handler(db: SQLAlchemy) -> Handler:
        def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
            if last in [row.custom_id for row in rows]:
                raise ValueError("no label")
            insert(db, rows)

        return label

    app = make_app(handler, retention=0)
    batch_id = submit(app, llm_provider, GROUP + 1)
    monkeypatch.setattr(deliver, "_BUDGET", 0.0)  # one group a step
    tick(app, database_url, 5)
    assert len(labels(database_url)) == GROUP
    assert tasks(database_url) == [("expire",)]
    mended = make_app(labelling).test_cli_runner().invoke(args=[*AGAIN, batch_id])
    assert mended.output == "1\t0\n"


def test_a_handler_that_takes_nothing_loses_nothing(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """If all rows are refused, none is set aside for minutes: the handler is broken, not the rows."""
    broken = [True]

    def handler(db: SQLAlchemy) -> Handler:
        def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
            if broken[0]:
                raise RuntimeError("a typing mistake")
            insert(db, rows)

        return label

    app = make_app(handler)
    submit(app, llm_provider, 5)
    tick(app, database_url, 6)
    assert query(database_url, "SELECT count(*) FROM llm_batches_set_aside") == [(0,)]
    broken[0] = False
    tick(app, database_url)
    assert labels(database_url) == everything(5)


def test_a_row_that_is_always_refused_ends_its_delivery(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """This is so even if it is the only row: no row is tried for ever."""
    app = make_app(poisoned)
    submit(app, llm_provider, 1)
    tick(app, database_url, 9)
    assert query(database_url, "SELECT custom_id FROM llm_batches_set_aside") == [("r0",)]
    assert tasks(database_url) == [("expire",)]


def test_what_has_expired_is_not_delivered_for_ever(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression: rows that expired before any process had their handler were tried again without end."""
    app = make_app(labelling)
    batch_id = submit(app, llm_provider, 3)
    query(database_url, "UPDATE llm_batches_batch SET on_results = 'later'")
    tick(app, database_url)
    query(database_url, "UPDATE llm_batches_task SET due_at = 0 WHERE step = 'expire'")
    with app.app_context():
        current_llm_batches.tick()
    assert tasks(database_url) == [("deliver",)]
    query(database_url, "UPDATE llm_batches_batch SET on_results = 'label'")
    tick(app, database_url)
    assert tasks(database_url) == []
    assert f"the archive of {batch_id!r} expired after 0 rows" in caplog.text


def test_two_workers_deliver_once(make_app: MakeApp, database_url: str, llm_provider: Simulator) -> None:
    """A worker that has lost its lease finds that another one has delivered, and writes nothing."""
    calls: list[int] = []

    def handler(db: SQLAlchemy) -> Handler:
        def label(rows: Sequence[DeliveredRow], _batch: Batch) -> None:
            calls.append(len(rows))
            if len(calls) == 1:  # meanwhile, the lease ends, and another worker does it all
                query(
                    database_url,
                    "UPDATE llm_batches_task SET due_at = 0, lease_until = 0 WHERE step = 'deliver'",
                )
                current_llm_batches.tick()
            insert(db, rows)

        return label

    app = make_app(handler)
    submit(app, llm_provider, 3)
    tick(app, database_url)
    assert labels(database_url) == everything(3)
    assert calls == [3, 3]


def test_a_late_archive_changes_no_order(
    make_app: MakeApp, database_url: str, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a worker without its lease archived rows in another order, in the midst of a delivery."""
    app = make_app(labelling)
    submit(app, llm_provider, GROUP + 50)
    tick_once = partial(_tick_once, app, database_url)
    monkeypatch.setattr(deliver, "_BUDGET", 0.0)  # one group a step
    tick_once("refresh")

    read, calls = ResultReader._write, []

    def slowly(self: ResultReader, record: Record, groups: Groups, *given: Any, **kept: Any) -> None:
        def held_up() -> Groups:
            yield from groups
            calls.append(record)
            if len(calls) == 1:  # meanwhile, the lease ends
                query(database_url, "UPDATE llm_batches_task SET lease_until = 0")
                cut(llm_provider, lambda data: b"".join(reversed(data.splitlines(keepends=True))))
                tick_once("archive")
                tick_once("deliver")

        read(self, record, held_up(), *given, **kept)

    monkeypatch.setattr(ResultReader, "_write", slowly)
    tick_once("archive")
    assert (len(calls), len(labels(database_url))) == (2, GROUP)
    tick(app, database_url, 2)
    assert labels(database_url) == everything(GROUP + 50)


def _tick_once(app: Flask, database: str, step: str) -> None:
    query(database, "UPDATE llm_batches_batch SET refreshed_at = 0")
    query(database, f"UPDATE llm_batches_task SET due_at = 0 WHERE step = '{step}'")
    with app.app_context():
        current_llm_batches.tick(budget=0)


def test_what_the_caller_of_tick_has_not_committed_is_left_alone(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """A delivery has a session of its own."""
    app = make_app(labelling)
    submit(app, llm_provider, 3)
    db = app.extensions["sqlalchemy"]
    query(database_url, "UPDATE llm_batches_task SET due_at = 0")
    with app.app_context():
        found = db.session.execute(db.select(db.metadata.tables["label"])).all()
        db.session.rollback()
        assert found == []
        pending = object()
        db.session.info["mine"] = pending
        current_llm_batches.tick()
        assert db.session.info["mine"] is pending
    assert labels(database_url) == everything(3)


def test_http_callers_name_what_the_host_has_opened(
    make_app: MakeApp, llm_provider: Simulator, database_url: str
) -> None:
    """Other names are a 422, like those that no handler has, before anything is submitted."""
    app = make_app(labelling)
    admin = client_of(app, None)
    body = {"model": "openai:m", "requests": requests(2)}
    for name in ("internal", "nothing"):
        refused = admin.post("/v1/batches", json=body | {"on_results": name})
        assert (refused.status_code, refused.get_json()["error"]["param"]) == (422, "on_results")
    assert llm_provider.calls == []
    checked = admin.post("/v1/batches?dry_run=true", json=body | {"on_results": "label"}).get_json()
    assert any("worker" in warning for warning in checked["warnings"])
    assert admin.post("/v1/batches", json=body | {"on_results": "label"}).status_code == 200
    llm_provider.batches[0].finish()
    tick(app, database_url)
    assert labels(database_url) == everything(2)


def test_nothing_is_kept_after_the_delivery_if_not_wanted(
    make_app: MakeApp, database_url: str, llm_provider: Simulator
) -> None:
    """With a retention of 0 the archive lives until its rows are delivered."""
    app = make_app(labelling, retention=0)
    submit(app, llm_provider, 3)
    tick(app, database_url, 2)
    assert labels(database_url) == everything(3)
    assert query(database_url, "SELECT count(*) FROM llm_batches_object") == [(0,)]
    assert tasks(database_url) == []


def test_a_key_is_not_for_another_handler(make_app: MakeApp, llm_provider: Simulator) -> None:
    """The same create for another handler is another create."""
    app = make_app(labelling)
    submit(app, llm_provider, 1, idempotency_key="k")
    with pytest.raises(LLMBatchesError, match="Idempotency-Key"):
        submit(app, llm_provider, 1, idempotency_key="k", on_results="internal")


def test_names_of_handlers_are_checked() -> None:
    """Each is registered once, and can be written anywhere."""
    extension = LLMBatches()
    extension.on_results("a")(print)
    for name in ("a", "", "with space", "x" * 65):
        with pytest.raises(ValueError, match=r"handler|letters"):
            extension.on_results(name)(print)


@dataclass
class Label:
    label: str
    certainty: float


class LabelSchema(Schema):
    label = fields.String(required=True)
    certainty = fields.Float(required=True)


LABEL = '{"label": "spam", "certainty": 0.5}'


def row(content: str | None) -> DeliveredRow:
    return DeliveredRow("a", {"choices": [{"message": {"content": content}}]}, None, "x-0")


@pytest.mark.parametrize("text", [LABEL, f"```json\n{LABEL}\n```"])
def test_structured_output_is_checked(text: str) -> None:
    """Against a dataclass, a marshmallow schema or nothing; what does not fit says so."""
    assert row(text).json(Label) == Label("spam", 0.5)
    assert row(text).json(LabelSchema) == row(text).json(LabelSchema()) == {"label": "spam", "certainty": 0.5}
    assert row(text).json() == {"label": "spam", "certainty": 0.5}
    with pytest.raises(InvalidOutput, match="'a'"):
        row(text).json(list[int])
    with pytest.raises(InvalidOutput, match="does not fit"):
        row("spam, I think").json(Label)
    with pytest.raises(InvalidOutput, match="no text"):
        row(None).json(Label)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"choices": [{"text": "old"}]}, "old"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "tool_use"}, {"text": "b"}]}, "ab"),
        ({"output": [{"type": "reasoning"}, {"content": [{"type": "output_text", "text": "r"}]}]}, "r"),
        ({"choices": []}, None),
        ({"data": [{"embedding": [0.5]}]}, None),
        ({"choices": "x"}, None),
        ({"content": 3}, None),
        (None, None),
    ],
)
def test_text_is_found_in_every_kind_of_result(result: dict[str, Any] | None, text: str | None) -> None:
    """In completions, messages and responses; anything else has none, whatever it is."""
    assert DeliveredRow("a", result, None, "x-0").text == text
