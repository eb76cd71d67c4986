"""The requests of a batch: their sources, their models, and their spool file."""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches import LLMBatchesError, current_llm_batches
from flask_llm_batches.core.temporary import sweep
from flask_llm_batches.errors import ValidationFailed
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.databases import query
from tests.hosts import requests
from tests.test_body import LINES, lines_of, post, wrong
from tests.test_spool import spool_of

MODEL = "openai:m"


def naming(*models: str | int | None) -> list[dict[str, Any]]:
    """Return a request for each model that it names."""
    return [
        {"custom_id": str(number), "body": {} if model is None else {"model": model}}
        for number, model in enumerate(models)
    ]


def create(app: Flask, sources: Any, **fields: Any) -> str:
    with app.app_context():
        return current_llm_batches.create(owner="ada", requests=sources, **{"model": MODEL, **fields}).id


def problems(app: Flask, sources: Any, **fields: Any) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(ValidationFailed) as caught:
        create(app, sources, **fields)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_requests_come_from_anywhere(app: Flask, llm_provider: Simulator, tmp_path: Path) -> None:
    """Dicts, a path, a file, its bytes, its lines and the bytes of an array make the same batch."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(lines_of(3))
    with path.open("rb") as file:
        sources = (
            requests(3),
            iter(requests(3)),
            path,
            file,
            path.read_bytes(),
            path.read_bytes().splitlines(keepends=True),
            b" \n" + json.dumps(requests(3)).encode(),
        )
        for source in sources:
            create(app, source)
    assert len({json.dumps(batch.requests) for batch in llm_provider.batches}) == 1
    assert len(llm_provider.batches) == 7


def test_what_is_no_requests_is_named(app: Flask, llm_provider: Simulator, tmp_path: Path) -> None:
    """Regression: a str, a path and a file that is open as text failed as somebody else's error."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(lines_of(1))
    with path.open() as text:
        for source, words in (
            (str(path), "not str"),
            ({"custom_id": "a", "body": {}}, "not dict"),
            (None, "Missing data for required field."),
            (text, "open it with mode 'rb'"),
        ):
            ((place, message),) = problems(app, source)
            assert place == ("requests",)
            assert message.endswith(words) or words in message
    assert problems(app, tmp_path / "none") == [
        (("requests",), "The file cannot be read: No such file or directory.")
    ]
    assert not llm_provider.calls


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        (dict.fromkeys(map(str, range(17)), ""), ("metadata",)),
        ({"a": 3}, ("metadata", "a")),
        ({"a": "x" * 513}, ("metadata", "a")),
        ({3: "a"}, ("metadata",)),
        ({"": "a"}, ("metadata",)),
        (["a"], ("metadata",)),
    ],
)
def test_metadata_are_checked_in_python_too(
    app: Flask, llm_provider: Simulator, metadata: Any, path: tuple[str, ...]
) -> None:
    """Regression: metadata that no provider takes were found after the upload, or were a TypeError."""
    assert [where for where, _ in problems(app, requests(1), metadata=metadata)] == [path]
    assert not llm_provider.calls


def test_an_unknown_group_is_named(app: Flask) -> None:
    """Regression: ``usage(group_by="x")`` was a KeyError."""
    with app.app_context(), pytest.raises(LLMBatchesError, match="group_by: Must be one of: owner"):
        current_llm_batches.usage(owner="ada", group_by="x")  # type: ignore[arg-type]


def test_another_model_is_refused_in_lines_and_in_python(
    app: Flask, ada: FlaskClient, llm_provider: Simulator
) -> None:
    """Regression: the model of a line was overridden without a word."""
    named = naming("m", MODEL, None, "other")
    message = "Must be 'm', the model of the batch, or left out."
    assert problems(app, named) == [(("requests", 3, "body", "model"), message)]
    data = "\n".join(map(json.dumps, named)).encode()
    assert wrong(post(ada, data)) == [(["body", "lines", 4, "body", "model"], message)]
    assert not llm_provider.calls
    create(app, named[:3])
    assert [line["body"]["model"] for line in llm_provider.batches[0].requests] == ["m"] * 3


def test_another_model_in_json_is_overridden_and_logged(
    ada: FlaskClient, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """In a JSON body the model of the batch counts, as the any-llm gateway does it, and the log says so."""
    body = {"model": MODEL, "requests": naming("m", "n", "o", None)}
    assert ada.post("/v1/batches", json=body).status_code == 200
    assert [line["body"]["model"] for line in llm_provider.batches[0].requests] == ["m"] * 4
    assert "2 requests name another model; all run with 'm'." in caplog.text


@pytest.mark.parametrize("kind", [LINES, "application/json", "python"])
def test_the_model_may_be_that_of_every_request(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, kind: str
) -> None:
    """A batch without a model has those of its requests, each of which names one."""

    def ask(named: list[dict[str, Any]]) -> list[tuple[list[Any], str]]:
        if kind == "python":
            try:
                create(app, named, model=None)
            except ValidationFailed as error:
                return [(["body", *path], message) for path, message, _ in error.problems]
            return []
        is_lines = kind == LINES
        data = "\n".join(map(json.dumps, named)) if is_lines else json.dumps({"requests": named})
        answer = post(ada, data.encode(), kind=kind, query="")
        return [] if answer.status_code == 200 else wrong(answer)

    assert ask(naming(MODEL, MODEL)) == []
    (batch,) = llm_provider.batches
    assert [line["body"]["model"] for line in batch.requests] == ["m", "m"]
    place, first = ("lines", 1) if kind == LINES else ("requests", 0)
    at = ["body", place, first + 1, "body", "model"]
    assert ask(naming(MODEL, None)) == [(at, "Missing data for required field.")]
    ((where, message),) = ask(naming(MODEL, "nobody:m"))
    assert (where, message[:22]) == (at, "Unknown provider 'nobo")
    ((where, message),) = ask(naming(MODEL, 7))
    assert (where, message[:14]) == (at, "Invalid model:")
    ((at, message),) = ask(naming(None))
    assert (at[-1], message) == ("model", "Missing data for required field.")
    assert len(llm_provider.batches) == 1


def test_a_dry_run_may_be_asked_for_in_the_body(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Regression: ``"dry_run": true`` in a JSON body made a real batch."""
    body = {"model": MODEL, "requests": requests(1), "dry_run": True}
    assert ada.post("/v1/batches", json=body).get_json()["valid"] is True
    assert ada.post("/v1/batches?dry_run=false", json=body).get_json()["valid"] is True
    assert not llm_provider.calls


@pytest.mark.parametrize(
    ("name", "meant"),
    [("dryrun", "dry_run"), ("dry-run", "dry_run"), ("modle", "model"), ("request", "requests")],
)
def test_a_misspelt_field_is_named(ada: FlaskClient, llm_provider: Simulator, name: str, meant: str) -> None:
    """Regression: ``"dryrun": true`` made a real batch. What is no known field at all is ignored."""
    body = {"model": MODEL, "requests": requests(1), "input_file_id": "", "messages": []}
    assert ada.post("/v1/batches", json=body).status_code == 200
    answer = ada.post("/v1/batches", json={**body, name: True})
    assert wrong(answer) == [(["body", name], f"Unknown field; did you mean {meant}?")]
    assert len(llm_provider.batches) == 1


def test_many_unknown_fields_take_no_time(ada: FlaskClient) -> None:
    """Regression: every one of 20,000 names was compared with those that are known, for seconds."""
    fields = {f"{number:08}": 1 for number in range(19_000)}
    began = time.monotonic()
    assert ada.post("/v1/batches", json={"model": MODEL, "requests": [], **fields}).status_code == 422
    answer = ada.get("/v1/batches?" + "&".join(fields))
    assert len(wrong(answer)) == 200
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
def test_a_number_that_is_too_large_is_named(ada: FlaskClient, number: str) -> None:
    """Regression: the error said that the body was no object."""
    data = f'{{"model": "{MODEL}", "retries": {number}}}'.encode()
    answer = ada.post("/v1/batches", data=data, content_type="application/json")
    assert wrong(answer) == [(["body", "retries"], "Has a number that is out of range.")]


@pytest.mark.parametrize(
    ("path", "method", "message"),
    [
        ("?dryrun=true", "POST", "Unknown field; did you mean dry_run?"),
        ("?model=openai:m", "POST", "Unknown field; known are: dry_run."),
        ("?limt=1", "GET", "Unknown field; did you mean limit?"),
        ("/b?providr=openai", "GET", "Unknown field; did you mean provider?"),
        ("/b/cancel?x=1", "POST", "Unknown field; known are: provider."),
        ("/b/results?state=failed", "GET", "Unknown field; did you mean status?"),
        ("/usage?groupby=model", "GET", "Unknown field; did you mean group_by?"),
    ],
)
def test_unknown_parameters_are_refused(
    ada: FlaskClient, llm_provider: Simulator, path: str, method: str, message: str
) -> None:
    """Regression: ``?dryrun=true`` made a real batch. On every route, an unknown parameter is a 422."""
    body = {"model": MODEL, "requests": requests(1)} if method == "POST" else None
    answer = ada.open(f"/v1/batches{path}", method=method, json=body)
    name = path.partition("?")[2].partition("=")[0]
    assert wrong(answer) == [(["query", name], message)]
    assert not llm_provider.calls


def test_blank_lines_have_a_limit(ada: FlaskClient) -> None:
    """Regression: 200 MB of line feeds kept a thread busy for half a minute."""
    answer = post(ada, b"\n" * 1_000_000 + lines_of(1))
    assert wrong(answer) == [(["body", "lines"], "More than 100000 lines are blank.")]


def test_a_spool_folder_that_vanished_is_our_error(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, spool_dir: Path
) -> None:
    """Regression: a folder that is gone was a FileNotFoundError. It is a 503 that may be retried."""
    spool_dir.rmdir()
    answer = post(ada, lines_of(1))
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "spool_unavailable")
    assert "X-Should-Retry" not in answer.headers
    assert ada.get("/v1/batches").get_json()["data"] == []
    assert not llm_provider.calls
    spool_dir.mkdir()
    assert post(ada, lines_of(1)).status_code == 200


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Make the disk look full to whoever writes a longer file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("count", [100, 10_000], ids=["at the end", "on the way"])
def test_a_full_disk_is_our_error(tmp_path: Path, count: int) -> None:
    """Regression: a full disk was an OSError. It is a 503 that says so, and nothing is left."""
    with (
        pytest.raises(LLMBatchesError, match="its disk is full") as caught,
        files_of_at_most(4096),
        spool_of(requests(count), tmp_path, max_requests=count),
    ):
        pass
    assert (caught.value.status, caught.value.code) == (503, "spool_unavailable")
    assert caught.value.__cause__ is None
    assert not list(tmp_path.iterdir())


def test_a_lost_spool_file_costs_no_batch(
    make_host: MakeHost, llm_provider: Simulator, spool_dir: Path, tmp_path: Path
) -> None:
    """Regression: a file that somebody deleted made an error of a create that the provider had accepted."""
    ada = client_of(make_host(database=tmp_path / "host.sqlite3"), "ada")
    llm_provider.delay_next(1, on="POST /batches")
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(post(ada, lines_of(2))))
    asking.start()
    deadline = time.monotonic() + 10
    while not llm_provider.calls_to("POST /batches") and time.monotonic() < deadline:
        time.sleep(0.01)
    (spooled,) = spool_dir.iterdir()
    spooled.unlink()
    asking.join()
    assert answers[0].status_code == 200
    assert [batch["id"] for batch in ada.get("/v1/batches").get_json()["data"]] == [
        answers[0].get_json()["id"]
    ]


def test_the_sweep_leaves_alone_what_is_in_use(tmp_path: Path) -> None:
    """Regression: the sweep deleted the file of a worker that had been paused. What nobody holds goes."""
    with spool_of(requests(1), tmp_path) as held:
        left = held.path.with_name("llm-batches-left.jsonl")
        left.touch()
        for path in (held.path, left):
            os.utime(path, (1, 1))
        sweep(str(tmp_path), older_than=60)
        assert list(tmp_path.iterdir()) == [held.path]


def test_long_ids_have_a_manifest(database_app: Flask, llm_provider: Simulator, database_url: str) -> None:
    """Regression: MariaDB refused a manifest of long ids, which did not fit into one of its packets."""
    ids = [chr(0x10000 + number % 1000) * 500 + str(number) for number in range(3000)]
    ada = client_of(database_app, "ada")
    batch_id = create(database_app, [{"custom_id": one, "body": {}} for one in ids])
    longest = query(database_url, "SELECT MAX(LENGTH(custom_ids)) FROM llm_batches_manifest")
    assert longest[0][0] < 300_000
    llm_provider.batches[0].finish()
    rows = ada.get(f"/v1/batches/{batch_id}/results").get_json()["results"]
    assert sorted(row["custom_id"] for row in rows) == sorted(ids)


def test_a_refused_create_leaves_no_manifest(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, tmp_path: Path
) -> None:
    """Regression: the manifests of creates that the provider refused stayed for ever."""
    llm_provider.fail_next(status=400, on="POST /batches")
    assert post(ada, lines_of(1)).status_code == 400
    database = f"sqlite:///{tmp_path / 'host.sqlite3'}"
    assert query(database, "SELECT COUNT(*) FROM llm_batches_manifest") == [(0,)]
    assert query(database, "SELECT state FROM llm_batches_batch") == [("failed",)]
