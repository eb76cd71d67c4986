"""Providers that report the end of a batch too early, or cut a download without an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.wrappers import Response

from flask_llm_batches.signals import batch_finished
from flask_llm_batches.testing import SimulatedBatch, Simulator
from flask_llm_batches.testing.simulator import Call
from flask_llm_batches.web.stream import ResultsInterrupted
from tests.conftest import MakeHost, client_of, create_batch
from tests.hosts import requests

COUNT = 10
FILES = {"openai": ("output_file_id", "error_file_id"), "mistral": ("output_file", "error_file")}
LONG_AGO = 24 * 3600

each_provider = pytest.mark.parametrize("provider", ["openai", "anthropic", "mistral"])
with_files = pytest.mark.parametrize("provider", FILES)


@pytest.fixture
def app(make_host: MakeHost, llm_provider: Simulator, tmp_path: Path) -> Flask:
    return make_host(providers=llm_provider.providers, database=tmp_path / "host.sqlite3")


def running(client: FlaskClient, simulator: Simulator, provider: str) -> tuple[str, SimulatedBatch]:
    """Create a batch whose request r7 will fail, and return its path and the batch at the provider."""
    good = simulator.respond
    simulator.respond = lambda line: (
        (400, {"error": {"message": "no", "code": "bad", "type": "bad"}})
        if line["custom_id"] == "r7"
        else good(line)
    )
    model = "gpt-4o-mini" if provider == "openai" else "m"
    batch_id = create_batch(client, model=f"{provider}:{model}", requests=requests(COUNT, max_tokens=9))
    return f"/v1/batches/{batch_id}", simulator.batches[-1]


def tell(simulator: Simulator, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every batch object that the provider returns."""

    def rewrite(call: Call, response: Response) -> Response:
        if response.is_json and "/files" not in call.path:
            said = response.get_json()
            change(said)
            response.data = json.dumps(said).encode()
        return response

    simulator.rewrite = rewrite


def cut(simulator: Simulator, change: Callable[[bytes], bytes]) -> None:
    """Change every download in a way that the transport does not show."""

    def rewrite(call: Call, response: Response) -> Response:
        if not call.path.endswith(("/content", "/results")):
            return response
        shown = Response(change(response.data), mimetype=response.mimetype)
        shown.headers["Connection"] = "close"
        del shown.headers["Content-Length"]
        return shown

    simulator.rewrite = rewrite


def _damaged(data: bytes, *, row: bytes, kept: int) -> bytes:
    return data.replace(row, row[:kept] + b"\n")


def rows_of(client: FlaskClient, path: str) -> dict[str, Any]:
    """Return each row's error code by its custom_id."""
    answer = client.get(f"{path}/results")
    assert answer.status_code == 200, answer.text
    rows = answer.get_json()["results"]
    assert len(rows) == COUNT
    return {row["custom_id"]: row["error"] and row["error"]["code"] for row in rows}


ALL = {f"r{number}": "bad" if number == 7 else None for number in range(COUNT)}


def used(client: FlaskClient) -> int:
    """Return the tokens that were accounted for."""
    (row,) = client.get("/v1/batches/usage").get_json()["data"]
    tokens: int = row["total_tokens"]
    return tokens


@with_files
def test_a_batch_that_has_no_files_yet_has_not_ended(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, provider: str
) -> None:
    """Regression: ``completed`` without the files made every row ``missing``, for good and accounted."""
    path, batch = running(ada, llm_provider, provider)
    batch.finish()
    tell(llm_provider, lambda said: said.update(dict.fromkeys(FILES[provider])))
    finished: list[Any] = []
    with batch_finished.connected_to(lambda _app, **heard: finished.append(heard), sender=app):
        for _ in range(2):
            answer = ada.get(path).get_json()
            assert (answer["status"], answer["completed_at"]) == ("finalizing", None)
            assert answer["request_counts"] == {"total": COUNT, "completed": 9, "failed": 1}
            early = ada.get(f"{path}/results")
            assert (early.status_code, early.get_json()["error"]["code"]) == (409, "batch_not_complete")
            assert early.get_json()["status"] == "finalizing"
            assert early.headers["Retry-After"]
        assert finished == []
        llm_provider.rewrite = None
        assert rows_of(ada, path) == ALL
        assert len(finished) == 1
    assert used(ada) > 0
    assert ada.get(path).get_json()["status"] == "completed"


@with_files
def test_files_that_come_one_after_the_other_are_both_read(
    ada: FlaskClient, llm_provider: Simulator, provider: str
) -> None:
    """The error file is looked for again as long as it may come: its rows are ``missing`` until then."""
    path, batch = running(ada, llm_provider, provider)
    batch.finish()
    tell(llm_provider, lambda said: said.update({FILES[provider][1]: None}))
    assert rows_of(ada, path) == ALL | {"r7": "missing"}
    llm_provider.rewrite = None
    assert rows_of(ada, path) == ALL
    llm_provider.calls.clear()
    assert ada.get(path).get_json()["status"] == "completed"
    assert llm_provider.calls == []


@with_files
@pytest.mark.parametrize("how", ["completed", "cancelled", "expired"])
def test_files_that_never_come_are_not_waited_for_without_end(
    ada: FlaskClient, llm_provider: Simulator, provider: str, how: str
) -> None:
    """Hours after the end the batch has ended all the same: its results are gone, or were never there."""
    path, batch = running(ada, llm_provider, provider)
    if how == "completed":
        batch.finish()
    elif how == "expired":
        batch.expire(after=4)
    else:
        batch.advance(4)
        batch.cancel()
        batch.finish()
    tell(llm_provider, lambda said: said.update(dict.fromkeys(FILES[provider])))
    assert ada.get(path).get_json()["status"] == ("cancelling" if how == "cancelled" else "finalizing")
    assert ada.get(f"{path}/results").status_code == 409
    batch.times[f"{how}_at"] -= LONG_AGO
    assert ada.get(path).get_json()["status"] == how
    if how == "completed":
        answer = ada.get(f"{path}/results")
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (410, "results_gone")
    else:
        assert set(rows_of(ada, path).values()) == {f"batch_{how}"}
    assert used(ada) == 0


@each_provider
@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize("seen_by", ["ada", "admin"])
def test_a_download_that_breaks_off_is_no_whole_one(
    app: Flask, llm_provider: Simulator, provider: str, kind: str, seen_by: str
) -> None:
    """Regression: a cut that the transport does not tell ended properly, and was accounted for."""
    client = client_of(app, None if seen_by == "admin" else "ada")
    path, batch = running(client_of(app, "ada"), llm_provider, provider)
    batch.finish()
    whole = rows_of(client, path) if seen_by == "admin" else ALL
    assert whole == ALL
    # A byte more than some rows, so that the last one is damaged, too.
    cut(llm_provider, lambda data: data[: data.find(b"\n", len(data) // 2) + 1 + len(data) % 2])
    answer = client.get(f"{path}/results", headers={"Accept": kind}, buffered=False)
    sent = b""
    with pytest.raises(ResultsInterrupted):
        for part in answer.iter_encoded():
            sent += part
    assert b'"r9"' in sent
    if kind == "application/json":
        with pytest.raises(ValueError, match="delimiter"):
            json.loads(sent)
    else:
        assert json.loads(sent.splitlines()[-1])["error"]["code"] == "provider_error"
    if seen_by == "ada":
        assert used(client) == 0
        llm_provider.rewrite = None
        assert rows_of(client, path) == ALL
        assert used(client) > 0


COUNTS = {
    "openai": ("request_counts",),
    "anthropic": ("request_counts",),
    "mistral": ("total_requests", "succeeded_requests", "failed_requests", "completed_requests"),
}


@each_provider
def test_a_download_that_breaks_off_is_no_whole_one_without_counts_either(
    ada: FlaskClient, llm_provider: Simulator, provider: str
) -> None:
    """Regression: where the provider's counts were damaged, too, rows that were cut off were ``missing``."""
    path, batch = running(ada, llm_provider, provider)
    batch.finish()
    tell(llm_provider, lambda said: said.update(dict.fromkeys(COUNTS[provider], "many")))
    assert ada.get(path).get_json()["status"] == "completed"
    cut(llm_provider, lambda data: data[: data.find(b"\n", len(data) // 2) + 1])
    with pytest.raises(ResultsInterrupted):
        ada.get(f"{path}/results").get_data()
    assert used(ada) == 0
    llm_provider.rewrite = None
    assert rows_of(ada, path) == ALL


def test_a_batch_that_was_not_made_here_breaks_off_too(
    app: Flask, admin: FlaskClient, llm_provider: Simulator
) -> None:
    """Without the submitted ids, the provider's counts tell that rows are lacking."""
    path, batch = running(client_of(app, "ada"), llm_provider, "openai")
    batch.finish()
    other = "batch_of_nobody"
    object.__setattr__(batch, "id", other)
    llm_provider.add(batch)
    path = f"/v1/batches/{other}?provider=openai"
    assert admin.get(path).get_json()["status"] == "completed"
    results = f"/v1/batches/{other}/results?provider=openai"
    assert len(admin.get(results).get_json()["results"]) == COUNT
    cut(llm_provider, lambda data: data[: len(data) // 2])
    with pytest.raises(ResultsInterrupted):
        admin.get(results).get_data()


@each_provider
def test_a_damaged_row_is_accounted_when_it_is_whole(
    ada: FlaskClient, llm_provider: Simulator, provider: str
) -> None:
    """A row that ends too soon is ``unreadable``, and nothing is accounted until it is read."""
    path, batch = running(ada, llm_provider, provider)
    batch.finish()
    whole = batch.output[-1]
    for kept in (40, 15):
        cut(llm_provider, partial(_damaged, row=whole, kept=kept))
        assert rows_of(ada, path) == ALL | {"r0": "unreadable"}
        assert used(ada) == 0
    llm_provider.rewrite = None
    assert rows_of(ada, path) == ALL
    assert used(ada) > 0


def test_a_row_that_stays_damaged_is_accounted_in_the_end(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Hours after the end nothing will mend it: the other rows are accounted for."""
    path, batch = running(ada, llm_provider, "openai")
    batch.finish()
    batch.times["completed_at"] -= LONG_AGO
    batch.output[-1] = batch.output[-1][:40] + b"\n"
    assert list(rows_of(ada, path).values()).count("unreadable") == 1
    assert used(ada) > 0


@pytest.mark.parametrize(
    "counts", [None, {}, {"total": COUNT, "completed": 0, "failed": 0}, {"completed": "9"}]
)
def test_without_counts_rows_may_be_missing(
    ada: FlaskClient, llm_provider: Simulator, counts: dict[str, int] | None
) -> None:
    """Where a provider states no counts, what it left out hours ago is ``missing``, and accounted for."""
    path, batch = running(ada, llm_provider, "openai")
    batch.finish()
    tell(llm_provider, lambda said: said.update(request_counts=counts))
    del batch.output[3:]
    batch.times["completed_at"] -= LONG_AGO
    assert list(rows_of(ada, path).values()).count("missing") == 6
    assert used(ada) > 0


@with_files
@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_nobody_promises_what_was_not_executed(
    ada: FlaskClient, llm_provider: Simulator, provider: str, how: str
) -> None:
    """A batch that ended early has all results that were finished, or breaks off; the rest needs no row."""
    path, batch = running(ada, llm_provider, provider)
    if how == "expired":
        batch.expire(after=5)
    else:
        batch.advance(5)
        batch.cancel()
        batch.finish()
    batch.error_output.clear()
    last = batch.output[-1]
    cut(llm_provider, lambda data: data.replace(last, b""))
    with pytest.raises(ResultsInterrupted):
        ada.get(f"{path}/results").get_data()
    assert used(ada) == 0
    llm_provider.rewrite = None
    assert list(rows_of(ada, path).values()).count(f"batch_{how}") == COUNT - 4
    assert used(ada) > 0
