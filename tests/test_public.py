"""The public names and their types, as the code of a host uses them. mypy checks this file, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, assert_type

import pytest
from flask import Flask

import flask_llm_batches
from flask_llm_batches import (
    EVERYONE,
    Batch,
    Checked,
    DeliveredRow,
    File,
    FileContent,
    FilePage,
    Finding,
    LLMBatches,
    LLMBatchesError,
    Page,
    Principal,
    Problem,
    Results,
    Row,
    RowError,
    Service,
    Settled,
    Upload,
    UsageSum,
    current_llm_batches,
    errors,
    signals,
)
from flask_llm_batches.testing import Simulator
from tests.hosts import requests

PUBLIC = {
    *("EVERYONE", "Batch", "Checked", "ConfigurationError", "LLMBatches", "LLMBatchesError", "Owner", "Page"),
    *(
        "DeliveredRow",
        "Detail",
        "Exchange",
        "Failures",
        "File",
        "FileContent",
        "FilePage",
        "Finding",
        "Inspected",
        "InvalidOutput",
        "Limits",
        "Overview",
        "Part",
        "Principal",
        "Problem",
        "Results",
        "Row",
        "RowError",
        "Service",
        "Settled",
        "Upload",
        "UsageSum",
    ),
    "current_llm_batches",
}


def test_no_other_name_is_public() -> None:
    """Whoever adds a public name adds its types here."""
    assert set(flask_llm_batches.__all__) == PUBLIC


def test_a_batch_has_types(app: Flask, llm_provider: Simulator) -> None:
    """Every call and what it returns."""
    with app.app_context():
        assert_type(current_llm_batches, Service)
        checked = current_llm_batches.check(owner="ada", model="openai:m", requests=requests(2))
        assert_type(checked, Checked)
        assert_type(checked.warnings, Sequence[str])
        batch = current_llm_batches.create(
            owner=Principal("ada"), model="openai:m", requests=requests(2), idempotency_key="k"
        )
        assert_type(batch, Batch)
        assert_type(batch.id, str)
        assert_type(batch.metadata, dict[str, str] | None)
        assert_type(batch.owner, str | None)
        assert_type(batch.replayed, bool)
        assert_type(current_llm_batches.retrieve(batch.id, owner=EVERYONE), Batch)
        page = current_llm_batches.list(owner="ada", status="in_progress", limit=5)
        assert_type(page, Page)
        assert_type(page.batches, Sequence[Batch])
        assert [one.owner for one in page.batches] == ["ada"]
        assert_type(current_llm_batches.browse(owner=EVERYONE, search="ada"), Page)
        assert_type(current_llm_batches.checkup(live=True), Iterator[Finding])
        llm_provider.batches[0].finish()
        with_status: Results = current_llm_batches.results(batch.id, owner="ada", status="succeeded")
        assert_type(iter(with_status), Iterator[dict[str, Any]])
        assert len(list(with_status)) == 2
        for group in current_llm_batches.results(batch.id, owner="ada").groups():
            assert_type(group, Sequence[Row] | None)
            for row in group or ():
                assert_type(row.error, RowError | None)
        sums = current_llm_batches.usage(owner="ada", group_by="model")
        assert_type(sums, Sequence[UsageSum])
        assert_type(current_llm_batches.reconcile(), Sequence[Settled])
        assert_type(current_llm_batches.purge(before=0), int)
        assert_type(current_llm_batches.tick(budget=5), int)
        assert_type(current_llm_batches.keys.create(owner="ada"), str)


def test_files_have_types(app: Flask, llm_provider: Simulator) -> None:
    """Every call about files and models, and what it returns."""
    with app.app_context():
        files = current_llm_batches.files
        with files.upload(owner="ada") as upload:
            assert_type(upload, Upload)
            upload.write(b'{"custom_id": "a", "body": {"model": "m"}}')
        file = files.retrieve(upload.file.id, owner=Principal("ada"))
        assert_type(file, File)
        assert_type(file.bytes, int | None)
        assert_type(files.list(owner=EVERYONE, order="asc"), FilePage)
        assert_type(files.content(file.id, owner="ada"), FileContent)
        batch = current_llm_batches.create(owner="ada", input_file_id=file.id, output_expires_after=3600)
        assert_type(batch.input_file_id, str | None)
        assert_type(files.delete(file.id, owner="ada"), File)
        assert [name for name, _ in current_llm_batches.models] == []


def test_errors_have_types(app: Flask) -> None:
    """A status, a code and a message, and of wrong fields where they are."""
    with app.app_context(), pytest.raises(errors.ValidationFailed) as raised:
        current_llm_batches.create(owner="ada", model="openai:m", requests=[])
    error = raised.value
    assert_type(error.status, int)
    assert_type(error.code, str)
    assert_type(error.retry_after, str | None)
    assert_type(error.problems, tuple[Problem, ...])
    assert isinstance(error, LLMBatchesError)
    assert error.status == 422


def test_decorators_keep_types() -> None:
    """What is registered stays what it was."""
    extension = LLMBatches()

    @extension.authenticator
    def principal() -> Principal | None:
        return Principal("ada", admin=True)

    @extension.on_results("label", http=True)
    def label(rows: Sequence[DeliveredRow], batch: Batch) -> None:
        for row in rows:
            assert_type(row.text, str | None)
            assert_type(row.usage, dict[str, Any] | None)
            assert_type(row.error, RowError | None)

    assert_type(label([], Batch(id="b", provider="openai", status="completed", created_at=0)), None)
    assert_type(principal(), Principal | None)
    assert principal() == Principal("ada", admin=True)


def test_signals_are_named() -> None:
    """They are blinker's."""
    names = [signals.batch_submitted.name, signals.batch_finished.name, signals.usage_recorded.name]
    assert names == ["batch-submitted", "batch-finished", "usage-recorded"]
