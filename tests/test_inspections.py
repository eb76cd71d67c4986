"""What people look at: an overview, failures by code, and one request beside its response."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from flask import Flask

from flask_llm_batches import EVERYONE, Batch, current_llm_batches
from flask_llm_batches.core import inspections
from flask_llm_batches.errors import BatchFailed, BatchNotFound, ValidationFailed
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests


def create(owner: str = "ada", count: int = 3, **fields: Any) -> Batch:
    return current_llm_batches.create(
        owner=owner, model="openai:gpt-4o-mini", requests=requests(count), **fields
    )


def refuse(line: Mapping[str, Any]) -> dict[str, Any] | tuple[int, dict[str, Any]]:
    """Answer r0, and refuse the others with three codes."""
    number = int(line["custom_id"][1:])
    if number == 0:
        return {"id": "x", "choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    status = 500 if number > 6 else 400
    code = "server_error" if number > 6 else "invalid_value" if number > 1 else "x" * 1000
    return status, {"error": {"message": f"no {number}", "code": code}}


def test_an_overview_has_what_runs_and_what_failed(database_app: Flask, llm_provider: Simulator) -> None:
    """Each owner has counts of their own batches and the newest of them; everyone has all."""
    with database_app.app_context():
        made = [create("ada") for _ in range(7)] + [create("bob")]
        llm_provider.batches[0].fail("no")
        llm_provider.batches[1].finish()
        current_llm_batches.list(owner="ada")
        current_llm_batches.list(owner="bob")
        seen = current_llm_batches.overview(owner="ada")
        assert (seen.running.total, seen.queued.total, seen.failed.total) == (5, 0, 1)
        assert [batch.id for batch in seen.running.newest] == [batch.id for batch in reversed(made[2:7])]
        assert [batch.id for batch in seen.failed.newest] == [made[0].id]
        assert seen.days == {}
        assert not seen.worker_alive
        everyone = current_llm_batches.overview(owner=EVERYONE)
        assert (everyone.running.total, everyone.failed.total) == (6, 1)
        assert len(everyone.running.newest) == 5
        assert everyone.running.newest[0].owner == "bob"
        assert current_llm_batches.overview(owner="eve").running == (0, [])


def test_what_each_day_cost(database_app: Flask, llm_provider: Simulator) -> None:
    """The costs of an owner's results are summed up by day, in dollars."""
    llm_provider.respond = refuse
    with database_app.app_context():
        for owner in ("ada", "ada", "bob"):
            create(owner)
        for batch, owner in zip(llm_provider.batches, ("ada", "ada", "bob"), strict=True):
            batch.finish()
            list(current_llm_batches.results(batch.id, owner=owner))
        today = int(time.time()) // 86400 * 86400
        spent = current_llm_batches.usage(owner="ada")[0].cost
        assert spent
        assert current_llm_batches.overview(owner="ada").days == {today: spent}
        assert current_llm_batches.overview(owner=EVERYONE).days == {today: spent * 3 / 2}
        assert current_llm_batches.overview(owner=EVERYONE, days=0).days == {}


def test_counts_end_at_a_limit(database_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more batches of a status are counted than the overview says."""
    monkeypatch.setattr(inspections, "MOST_COUNTED", 2)
    with database_app.app_context():
        for _ in range(3):
            create()
        current_llm_batches.list(owner="ada")
        assert current_llm_batches.overview(owner=EVERYONE).running.total == 2


def test_all_about_a_batch(database_app: Flask, llm_provider: Simulator) -> None:
    """A batch is shown with its parts and its own usage, and to nobody else's owner."""
    llm_provider.respond = refuse
    with database_app.app_context():
        batch, _ = create(), create()
        for one in llm_provider.batches:
            one.finish()
            list(current_llm_batches.results(one.id, owner="ada"))
        seen = current_llm_batches.inspect(batch.id, owner="ada")
        assert seen.batch.status == "completed"
        assert seen.batch.owner == "ada"
        assert seen.stale is None
        assert [part.status for part in seen.detail.parts] == ["completed"]
        assert [(used.group, used.batches, used.total_tokens) for used in seen.usage] == [
            ("gpt-4o-mini", 1, 15)
        ]
        for call in (current_llm_batches.inspect, current_llm_batches.failures):
            with pytest.raises((BatchNotFound, ValidationFailed)):
                call(batch.id, owner="bob")
        with pytest.raises((BatchNotFound, ValidationFailed)):
            current_llm_batches.exchange(batch.id, "r0", owner="bob")


def test_a_batch_is_shown_as_last_seen(app: Flask, llm_provider: Simulator) -> None:
    """If its provider fails, a batch is shown as it was, with the reason."""
    with app.app_context():
        batch = create()
        llm_provider.fail_next(500, on="GET /batches/")
        seen = current_llm_batches.inspect(batch.id, owner="ada")
    assert seen.batch.status == "validating"
    assert seen.stale == "LLM provider error"


def test_a_batch_without_a_record_is_not_shown(app: Flask, llm_provider: Simulator) -> None:
    """What was not made here has nothing to show, for an admin neither."""
    with app.app_context():
        batch = create()
        llm_provider.batches[0].finish()
        current_llm_batches.retrieve(batch.id, owner="ada")
        current_llm_batches.purge(before=int(time.time()) + 10)
        with pytest.raises(BatchNotFound):
            current_llm_batches.inspect(batch.id, owner=EVERYONE, provider="openai")


@pytest.mark.parametrize("archived", [False, True])
def test_failures_are_grouped(app: Flask, llm_provider: Simulator, archived: bool) -> None:
    """Failures are counted by code, the most frequent first, with three samples and a bounded code."""
    llm_provider.respond = refuse
    with app.app_context():
        batch = create(count=9)
        llm_provider.batches[0].finish()
        if archived:
            current_llm_batches.retrieve(batch.id, owner="ada")
            while current_llm_batches.tick():
                pass
        failures = current_llm_batches.failures(batch.id, owner="ada")
    codes = [(group.code, group.total, group.retryable) for group in failures.groups]
    assert codes == [("invalid_value", 5, False), ("server_error", 2, True), ("x" * 100, 1, False)]
    samples = failures.groups[0].samples
    assert len(samples) == 3
    assert all(message == f"no {custom_id[1:]}" for custom_id, message in samples)
    assert (failures.others, failures.rows, failures.complete) == (0, 9, True)


def test_codes_are_bounded(app: Flask, llm_provider: Simulator) -> None:
    """A provider with a code for each row has a hundred groups, and the rest is counted."""
    llm_provider.respond = lambda line: (400, {"error": {"message": "no", "code": line["custom_id"]}})
    with app.app_context():
        batch = create(count=120)
        llm_provider.batches[0].finish()
        failures = current_llm_batches.failures(batch.id, owner="ada")
    assert (len(failures.groups), failures.others) == (100, 20)


def test_reading_ends_in_time(app: Flask, llm_provider: Simulator) -> None:
    """A batch whose rows take too long has some of them, and says so; nothing is accounted for."""
    with app.app_context():
        batch = create(count=2000)
        llm_provider.batches[0].finish()
        failures = current_llm_batches.failures(batch.id, owner="ada", seconds=0)
        assert not failures.complete
        assert failures.rows < 2000
        seen = current_llm_batches.exchange(batch.id, "r0", owner="ada", seconds=0)
        assert seen.row is None
        assert "in the time" in str(seen.why_no_row)
        assert "in the time" in str(seen.why_no_request)
        assert [used.total_tokens for used in current_llm_batches.usage(owner="ada")] == [0]


def test_a_failed_batch_has_no_rows(app: Flask, llm_provider: Simulator) -> None:
    """A batch that failed as a whole has no rows to group, and says why."""
    with app.app_context():
        batch = create()
        llm_provider.batches[0].fail("no credit")
        with pytest.raises(BatchFailed, match="no credit"):
            current_llm_batches.failures(batch.id, owner="ada")
        assert "no credit" in str(current_llm_batches.exchange(batch.id, "r1", owner="ada").why_no_row)


def test_a_request_beside_its_response(app: Flask, llm_provider: Simulator) -> None:
    """A request is fetched from its provider while that has it; afterwards the reason is in words."""
    with app.app_context():
        batch = create()
        llm_provider.batches[0].finish()
        seen = current_llm_batches.exchange(batch.id, "r1", owner="ada")
        assert seen.request is not None
        assert json.loads(seen.request)["body"]["messages"][0]["content"] == "say 1"
        assert seen.row is not None
        assert seen.row.custom_id == "r1"
        nothing = current_llm_batches.exchange(batch.id, "other", owner="ada")
        assert nothing.why_no_request == "The requests have no such custom_id."
        assert nothing.why_no_row == "The results have no such custom_id."
        llm_provider.fail_next(404, on="GET /files/")
        gone = current_llm_batches.exchange(batch.id, "r1", owner="ada")
        assert gone.why_no_request == "The requests of this batch are not kept any more."
        assert gone.row is not None


def test_a_request_of_a_part(make_host: MakeHost, llm_provider: Simulator, database_url: str) -> None:
    """A request of a batch with parts is read where they are kept."""
    host = make_host(database=database_url)
    with host.app_context():
        batch = current_llm_batches.create(
            owner="ada",
            requests=[{"custom_id": f"r{n}", "body": {"model": f"openai:m{n % 2}"}} for n in range(6)],
        )
        llm_provider.calls.clear()
        seen = current_llm_batches.exchange(batch.id, "r3", owner="ada")
    assert seen.request is not None
    assert json.loads(seen.request)["custom_id"] == "r3"
    assert "validating" in str(seen.why_no_row) or "in_progress" in str(seen.why_no_row)
    assert not llm_provider.calls_to("GET /files/")


def test_a_request_of_a_file(app: Flask, llm_provider: Simulator) -> None:
    """A request of a batch that was made from a file is read from the file, whatever else is in it."""
    ada = client_of(app, "ada")
    create_batch(ada)
    lines = [b"", *(json.dumps(one | {"body": {"model": "openai:m"}}).encode() for one in requests(3))]
    with app.app_context():
        with current_llm_batches.files.upload(owner="ada") as upload:
            upload.write(b"\n".join(lines))
        batch = current_llm_batches.create(owner="ada", input_file_id=upload.file.id)
        llm_provider.calls.clear()
        seen = current_llm_batches.exchange(batch.id, "r2", owner="ada")
    assert seen.request == lines[3]
