"""Batches that are made from input files, as programs for OpenAI make them, at any provider."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from flask_llm_batches import Batch, current_llm_batches, errors
from flask_llm_batches.signals import batch_finished
from flask_llm_batches.testing import Call, Simulator
from tests.conftest import MakeHost, client_of
from tests.hosts import requests
from tests.test_files import NOTHING, left, uploaded, wait_until

CHAT = "/v1/chat/completions"
MODELS = {"openai": "openai:gpt-4o-mini", "anthropic": "anthropic:claude", "mistral": "mistral:small"}


def line(custom_id: str, **changes: Any) -> dict[str, Any]:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"say {custom_id}"}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def lines(*items: dict[str, Any] | bytes) -> bytes:
    return b"\n".join(item if isinstance(item, bytes) else json.dumps(item).encode() for item in items)


def asked(file_id: str, **fields: Any) -> dict[str, Any]:
    return {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields}


def submit(client: FlaskClient, content: bytes, headers: Any = None, **fields: Any) -> Any:
    """Upload a file, make a batch of it and return that."""
    answer = client.post(
        "/v1/batches", json=asked(uploaded(client, content)["id"], **fields), headers=headers
    )
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def retrieved(client: FlaskClient, batch_id: str) -> Any:
    answer = client.get(f"/v1/batches/{batch_id}")
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def read(client: FlaskClient, file_id: str) -> list[dict[str, Any]]:
    """Return the lines of a file of results."""
    answer = client.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("\n")
    return [json.loads(text) for text in answer.text.splitlines()]


@pytest.fixture(params=sorted(MODELS))
def provider(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def mapped(make_host: MakeHost, llm_provider: Simulator, provider: str, tmp_path: Path) -> Flask:
    """An app whose map leads a name of OpenAI's to each provider in turn."""
    return make_host(
        database=tmp_path / "host.sqlite3",
        providers=llm_provider.providers,
        models={"gpt-4o-mini": MODELS[provider]},
    )


def test_a_file_becomes_results(mapped: Flask, llm_provider: Simulator, provider: str) -> None:
    """Upload, create, poll and read: as at OpenAI, with ids of ours, whichever provider runs it."""
    ada = client_of(mapped, "ada")
    llm_provider.respond = lambda line: (
        (429, {"error": {"message": "slow down", "code": "rate_limit_exceeded", "type": "rate_limit_error"}})
        if line["custom_id"] == "b"
        else {"id": "x", "model": "m", "choices": [], "content": [], "usage": {}, "type": "message"}
    )
    content = lines(*(line(name) for name in "abc"))
    metadata = {f"key {number}": "x" * 512 for number in range(16)}
    made = submit(ada, content, metadata=metadata)
    assert made["status"] == "validating"
    assert (made["provider"], made["model"]) == tuple(MODELS[provider].split(":"))
    assert made["request_counts"]["total"] == 0
    running = retrieved(ada, made["id"])
    assert running["status"] in ("validating", "in_progress")
    assert running["request_counts"]["total"] == 3
    (at_provider,) = llm_provider.batches
    assert len(at_provider.metadata or {}) == (0 if provider == "anthropic" else 16)
    at_provider.finish()
    done = retrieved(ada, made["id"])
    assert done["status"] == "completed"
    assert done["metadata"] == metadata
    for name in ("id", "created_at", "input_file_id", "endpoint", "completion_window"):
        assert made[name] == running[name] == done[name]
    output, error = read(ada, done["output_file_id"]), read(ada, done["error_file_id"])
    assert sorted(row["custom_id"] for row in output) == ["a", "c"]
    for row in output:
        assert row.keys() == {"id", "custom_id", "response", "error"}
        assert row["id"].startswith("batch_req_")
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["request_id"]
        assert row["response"]["body"]["choices"] is not None
    (failed,) = error
    assert failed["custom_id"] == "b"
    assert failed["error"] is None
    assert failed["response"]["status_code"] == 429
    assert failed["response"]["body"]["error"]["message"] == "slow down"
    listed = ada.get("/v1/files?purpose=batch_output").get_json()["data"]
    assert {file["id"]: file["bytes"] for file in listed} == {
        file_id: len(ada.get(f"/v1/files/{file_id}/content").data)
        for file_id in (done["output_file_id"], done["error_file_id"])
    }


@pytest.mark.parametrize("how", ["expired", "cancelled"])
def test_rows_that_never_ran_are_in_the_error_file(
    mapped: Flask, llm_provider: Simulator, provider: str, how: str
) -> None:
    """They have no response, and OpenAI's code for why."""
    ada = client_of(mapped, "ada")
    made = submit(ada, lines(*(line(name) for name in "abc")))
    (at_provider,) = llm_provider.batches
    at_provider.look()
    if how == "expired":
        at_provider.expire(after=1)
    else:
        at_provider.advance(1)
        assert ada.post(f"/v1/batches/{made['id']}/cancel", json={}).get_json()["status"] == "cancelling"
        at_provider.finish()
    done = retrieved(ada, made["id"])
    assert done["status"] == how
    assert [row["custom_id"] for row in read(ada, done["output_file_id"])] == ["c"]
    for row in read(ada, done["error_file_id"]):
        assert row["response"] is None
        assert row["error"]["code"] == f"batch_{how}"


def test_a_file_of_nothing_is_null(mapped: Flask, llm_provider: Simulator) -> None:
    """Without failed rows there is no error file, and without results no output file."""
    ada = client_of(mapped, "ada")
    made = submit(ada, lines(line("a")))
    llm_provider.batches[0].finish()
    done = retrieved(ada, made["id"])
    assert done["output_file_id"] is not None
    assert done["error_file_id"] is None
    llm_provider.respond = lambda _: (400, {"error": {"message": "no"}})
    made = submit(ada, lines(line("a")))
    llm_provider.batches[1].finish()
    done = retrieved(ada, made["id"])
    assert done["output_file_id"] is None
    assert done["error_file_id"] is not None


def test_wrong_counts_lose_no_row(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that the provider counts and does not send is in the error file as soon as all rows were read."""
    made = submit(ada, lines(line("a"), line("b")))
    llm_provider.batches[0].finish()
    llm_provider.batches[0].output[0] = b"damaged\n"
    done = retrieved(ada, made["id"])
    assert done["error_file_id"] is None
    now = time.time()
    # Until then it might be whole.
    monkeypatch.setattr("flask_llm_batches.batch.time", lambda: now + 3 * 3600)
    assert [row["custom_id"] for row in read(ada, done["output_file_id"])] == ["a"]
    done = retrieved(ada, made["id"])
    (row,) = read(ada, done["error_file_id"])
    assert (row["custom_id"], row["response"], row["error"]["code"]) == ("b", None, "unreadable")


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (b"", [("empty_file", None, None)]),
        (b"\n \r\n", [("empty_file", None, None)]),
        (lines(line("a"), b"{nope", line("b")), [("invalid_json_line", 2, None)]),
        (lines(b"[]", line("a")), [("invalid_json_line", 1, None)]),
        (lines(line("a"), b"\xff"), [("invalid_json_line", 2, None)]),
        (gzip.compress(lines(line("a")), mtime=0), [("invalid_json_line", 1, None)]),
        (lines(line("a"), line("a")), [("duplicate_custom_id", 2, "custom_id")]),
        (
            lines({"body": {"model": "gpt-4o-mini"}}, line("b")),
            [("missing_required_parameter", 1, "custom_id")],
        ),
        (lines(line(""), line("b")), [("missing_required_parameter", 1, "custom_id")]),
        (lines(line("a"), {"custom_id": "b"}), [("missing_required_parameter", 2, "body")]),
        (lines(line("a", body={})), [("missing_required_parameter", 1, "body.model")]),
        (lines(line("a", method="GET"), line("b")), [("invalid_method", 1, "method")]),
        (lines(line("a", url="/v1/embeddings")), [("invalid_url", 1, "url")]),
        (lines(line("a"), line("b", body={"model": "a:b"})), [("model_not_found", 2, "body.model")]),
        (lines(line("a", body={"model": "nobody:m"})), [("model_not_found", 1, "body.model")]),
        (
            lines(*(line(str(number)) for number in range(2000)), b"{"),
            [("invalid_json_line", 2001, None)],
        ),
    ],
)
def test_a_wrong_file_makes_a_batch_that_fails(
    app: Flask, llm_provider: Simulator, content: bytes, problems: list[tuple[str, int | None, str | None]]
) -> None:
    """The create answers; then the batch has failed, and its errors have OpenAI's codes, lines and fields."""
    ada = client_of(app, "ada")
    seen: list[Batch] = []

    def note(_app: Flask, batch: Batch, **_: Any) -> None:
        seen.append(batch)

    batch_finished.connect(note, app)
    made = submit(ada, content)
    assert made["status"] == "validating"
    failed = retrieved(ada, made["id"])
    assert failed["status"] == "failed"
    assert failed["failed_at"] is not None
    assert failed["errors"]["object"] == "list"
    found = [(one["code"], one["line"], one["param"]) for one in failed["errors"]["data"]]
    assert found == problems
    assert all(one["message"] for one in failed["errors"]["data"])
    assert (failed["output_file_id"], failed["error_file_id"]) == (None, None)
    results = ada.get(f"/v1/batches/{made['id']}/results")
    assert (results.status_code, results.get_json()["error"]["code"]) == (409, "batch_failed")
    assert [batch.id for batch in seen] == [made["id"]]
    assert not llm_provider.calls


def test_one_wrong_line_at_the_end_of_many(
    make_host: MakeHost, llm_provider: Simulator, tmp_path: Path
) -> None:
    """All 100,000 lines are read, and the last one is named."""
    settings = {"mistral": llm_provider.providers["mistral"]}
    ada = client_of(make_host(database=tmp_path / "host.sqlite3", providers=settings), "ada")
    short = b'{"custom_id": "%d", "body": {"model": "small", "messages": []}}\n'
    content = b"".join(short % number for number in range(100_000))
    made = submit(ada, content[: content.rindex(b"\n", 0, -1)] + b"\n{")
    (problem,) = retrieved(ada, made["id"])["errors"]["data"]
    assert (problem["code"], problem["line"]) == ("invalid_json_line", 100_000)
    assert not llm_provider.calls
    made = submit(ada, content)
    assert retrieved(ada, made["id"])["request_counts"]["total"] == 100_000


def test_what_nobody_knows_names_the_line_and_the_setting(
    make_host: MakeHost, llm_provider: Simulator, tmp_path: Path
) -> None:
    """With several providers, the error for an unknown plain name has its line and the setting."""
    app = make_host(database=tmp_path / "host.sqlite3", providers=llm_provider.providers)
    ada = client_of(app, "ada")
    made = submit(ada, lines(b"", line("a")))
    assert made["provider"] == ""
    (problem,) = retrieved(ada, made["id"])["errors"]["data"]
    assert (problem["code"], problem["line"]) == ("model_not_found", 2)
    assert "LLM_BATCHES_MODELS" in problem["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + lines(line("a"), line("b")),
        lines(line("a"), line("b")).replace(b"\n", b"\r\n"),
        lines(line("a"), b"", line("b"), b"", b""),
        lines({"custom_id": "a", "body": line("a")["body"]}, line("b", method=None)),
        lines(line("a", body={**line("a")["body"], "model": "openai:gpt-4o-mini"})).replace(
            b"say a", b"say b"
        )
        + b"\n"
        + lines(line("b", body={**line("b")["body"], "model": "openai:gpt-4o-mini"})),
    ],
)
def test_forms_of_files_that_are_right(ada: FlaskClient, llm_provider: Simulator, content: bytes) -> None:
    """A byte order mark, Windows' line ends, blank lines, lines in short, and the provider in every line."""
    made = submit(ada, content)
    assert retrieved(ada, made["id"])["request_counts"]["total"] == 2
    assert [one["custom_id"] for one in llm_provider.batches[0].requests] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/nothing"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"model": "openai:m"}, "model"),
        ({"metadata": dict.fromkeys(map(str, range(17)), "")}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after"),
        ({"output_expires_after": {"anchor": "never", "seconds": 3600}}, "output_expires_after"),
        ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after"),
        ({"on_results": "nobody"}, "on_results"),
    ],
)
def test_wrong_fields_of_a_create_are_refused(
    make_host: MakeHost, llm_provider: Simulator, fields: dict[str, Any], param: str, tmp_path: Path
) -> None:
    """Other fields are checked at once, and a wrong one makes no batch."""
    app = make_host(
        database=tmp_path / "host.sqlite3",
        providers={"anthropic": llm_provider.providers["anthropic"]},
    )
    ada = client_of(app, "ada")
    answer = ada.post("/v1/batches", json=asked(uploaded(ada, lines(line("a")))["id"], **fields))
    assert answer.status_code == 422, answer.text
    assert answer.get_json()["error"]["param"] == param
    assert ada.get("/v1/batches").get_json()["data"] == []


def test_a_file_is_checked_without_money(ada: FlaskClient, llm_provider: Simulator) -> None:
    """A dry run answers what a create would find, as that of requests does."""
    file_id = uploaded(ada, lines(line("a"), line("b")))["id"]
    answer = ada.post("/v1/batches?dry_run=true", json=asked(file_id)).get_json()
    assert (answer["valid"], answer["requests"], answer["provider"]) == (True, 2, "openai")
    file_id = uploaded(ada, lines(line("a"), b"{"))["id"]
    answer = ada.post("/v1/batches", json=asked(file_id, dry_run=True))
    assert answer.status_code == 422
    assert answer.get_json()["detail"][0]["loc"] == ["body", "lines", 2]
    assert ada.get("/v1/batches").get_json()["data"] == []
    assert not llm_provider.calls


def test_nothing_of_the_provider_is_shown(
    mapped: Flask, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer has an id of a provider's file or a header of a provider."""
    secrets: set[str] = set()

    def spy(_call: Call, response: Any) -> Any:
        response.headers["openai-organization"] = "org-secret"
        if response.is_json:
            answer = response.get_json()
            for name in ("input_file_id", "output_file_id", "error_file_id", "output_file", "error_file"):
                secrets.add(answer.get(name) or "")
            secrets.update(answer.get("input_files") or ())
            secrets.add(answer["id"] if answer.get("object") == "file" else "")
        return response

    llm_provider.rewrite = spy
    ada, admin = client_of(mapped, "ada"), client_of(mapped, None)
    of_file = submit(ada, lines(line("a")))["id"]
    body = {"model": "gpt-4o-mini", "requests": requests(2, max_tokens=9)}
    of_requests = ada.post("/v1/batches", json=body).get_json()["id"]
    answers = []
    for batch in llm_provider.batches:
        batch.advance(1)
        batch.expire(after=1)
    for batch_id in (of_file, of_requests):
        for client in (ada, admin):
            answers += [client.get(f"/v1/batches/{batch_id}"), client.post(f"/v1/batches/{batch_id}/cancel")]
        for kind in ("output_file_id", "error_file_id"):
            if file_id := retrieved(ada, batch_id)[kind]:
                answers += [ada.get(f"/v1/files/{file_id}"), ada.get(f"/v1/files/{file_id}/content")]
    answers += [ada.get("/v1/batches"), ada.get("/v1/files"), admin.get("/v1/files")]
    name = retrieved(ada, of_requests)["provider"]
    answers.append(admin.get(f"/v1/batches?provider={name}"))
    secrets -= {""}
    assert secrets or name == "anthropic"
    for answer in answers:
        assert not any(secret in answer.text for secret in secrets), answer.text
        assert "org-secret" not in answer.text + str(answer.headers)


def test_results_expire_when_they_are_told_to(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``output_expires_after`` counts from the end of the batch."""
    made = submit(ada, lines(line("a")), output_expires_after={"anchor": "created_at", "seconds": 7200})
    llm_provider.batches[0].finish()
    file_id = retrieved(ada, made["id"])["output_file_id"]
    file = ada.get(f"/v1/files/{file_id}").get_json()
    assert file["expires_at"] == file["created_at"] + 7200
    assert file["bytes"] == len(ada.get(f"/v1/files/{file_id}/content").data)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7201)
    assert ada.get(f"/v1/files/{file_id}/content").status_code == 404


def test_a_part_of_the_results(ada: FlaskClient, llm_provider: Simulator) -> None:
    """A range of a file of results is answered, though nobody has read it yet."""
    made = submit(ada, lines(*(line(str(number)) for number in range(100))))
    llm_provider.batches[0].finish()
    url = f"/v1/files/{retrieved(ada, made['id'])['output_file_id']}/content"
    part = ada.get(url, headers={"Range": "bytes=1000-1999"})
    whole = ada.get(url).data
    assert (part.status_code, part.data) == (206, whole[1000:2000])
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(whole)}"
    assert ada.head(url).status_code == 200


def test_deleted_results_are_gone(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """A file of results can be deleted; the results of the batch stay what they are."""
    made = submit(ada, lines(line("a")))
    llm_provider.batches[0].finish()
    file_id = retrieved(ada, made["id"])["output_file_id"]
    assert ada.delete(f"/v1/files/{file_id}").status_code == 200
    assert ada.get(f"/v1/files/{file_id}/content").status_code == 404
    assert ada.get(f"/v1/files/{made['input_file_id']}").status_code == 200
    assert len(ada.get(f"/v1/batches/{made['id']}/results").get_json()["results"]) == 1
    with app.app_context():
        current_llm_batches.tick()
    assert ada.get(f"/v1/files/{file_id}").status_code == 404


def test_a_purge_leaves_no_file_of_results(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """They go with their batch, and with the file that it was made from."""
    submit(ada, lines(line("a")))
    llm_provider.batches[0].finish()
    with app.app_context():
        current_llm_batches.list(owner="ada")
        assert left(app)["files"] == 2
        assert current_llm_batches.purge(before=int(time.time()) + 10) == 1
    assert left(app)["files"] == 0
    assert ada.get("/v1/files?purpose=batch_output").get_json()["data"] == []


def working(app: Flask, name: str = "test") -> None:
    """Let a worker be alive that does nothing by itself."""
    with app.app_context():
        current_llm_batches.tick(worker=name)


def test_a_worker_submits(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """With a worker, a create calls no provider; the batch waits, and its results are a 409 until then."""
    working(app)
    made = submit(ada, lines(line("a")))
    assert not llm_provider.calls
    assert retrieved(ada, made["id"])["status"] == "validating"
    assert [batch["id"] for batch in ada.get("/v1/batches").get_json()["data"]] == [made["id"]]
    answer = ada.get(f"/v1/batches/{made['id']}/results")
    assert (answer.status_code, answer.headers["Retry-After"]) == (409, "2")
    with app.app_context():
        current_llm_batches.tick()
    assert retrieved(ada, made["id"])["status"] in ("validating", "in_progress")
    assert len(llm_provider.batches) == 1


def test_a_batch_is_cancelled_while_it_waits(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """It is cancelled at once, and no provider ever hears of it."""
    working(app)
    made = submit(ada, lines(line("a")))
    cancelled = ada.post(f"/v1/batches/{made['id']}/cancel").get_json()
    assert cancelled["status"] == "cancelled"
    with app.app_context():
        current_llm_batches.tick()
    assert retrieved(ada, made["id"])["status"] == "cancelled"
    answer = ada.get(f"/v1/batches/{made['id']}/results")
    assert (answer.status_code, answer.get_json()["status"]) == (409, "cancelled")
    assert ada.post(f"/v1/batches/{made['id']}/cancel").get_json()["status"] == "cancelled"
    assert not llm_provider.calls


def test_a_batch_is_cancelled_while_its_file_is_uploaded(
    database_app: Flask, llm_provider: Simulator
) -> None:
    """It is cancelled at once, and the provider gets its file and no batch."""
    ada = client_of(database_app, "ada")
    working(database_app)
    made = submit(ada, lines(line("a")))
    llm_provider.delay_next(1, on="POST /files", after=0)

    def tick() -> None:
        with database_app.app_context():
            current_llm_batches.tick()

    worker = threading.Thread(target=tick)
    worker.start()
    wait_until(lambda: bool(llm_provider.calls_to("POST /files")))
    assert ada.post(f"/v1/batches/{made['id']}/cancel").get_json()["status"] == "cancelled"
    worker.join()
    assert retrieved(ada, made["id"])["status"] == "cancelled"
    assert not llm_provider.calls_to("POST /batches")


def test_a_file_is_deleted_while_its_batch_waits(
    app: Flask, ada: FlaskClient, llm_provider: Simulator
) -> None:
    """The batch fails, and says which file is gone; nothing was submitted."""
    working(app)
    made = submit(ada, lines(line("a")))
    assert ada.delete(f"/v1/files/{made['input_file_id']}").status_code == 200
    with app.app_context():
        current_llm_batches.tick()
    failed = retrieved(ada, made["id"])
    assert failed["status"] == "failed"
    assert made["input_file_id"] in failed["errors"]["data"][0]["message"]
    assert not llm_provider.calls


@pytest.mark.parametrize(
    ("status", "on"), [(429, "POST /batches"), (500, "POST /files"), (503, "POST /files")]
)
def test_what_passes_is_tried_again(
    app: Flask,
    ada: FlaskClient,
    llm_provider: Simulator,
    status: int,
    on: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A provider that is too busy costs time and nothing else: the batch waits, and is made once."""
    llm_provider.fail_next(status, on=on)
    made = submit(ada, lines(line("a")))
    assert retrieved(ada, made["id"])["status"] == "validating"
    assert not llm_provider.batches
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 6)
    assert retrieved(ada, made["id"])["request_counts"]["total"] == 1
    assert len(llm_provider.batches) == 1


def test_a_refusal_of_the_provider_fails_the_batch(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Its message is the batch's error."""
    llm_provider.fail_next(400, on="POST /batches", message="Your account has no batches.")
    made = submit(ada, lines(line("a")))
    failed = retrieved(ada, made["id"])
    assert failed["status"] == "failed"
    (problem,) = failed["errors"]["data"]
    assert problem["code"] == "provider_rejected"
    assert "Your account has no batches." in problem["message"]


def test_an_account_without_money_fails_the_batch(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Regression: a batch waited for a day, although this 429 does not pass by itself."""
    error = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
    llm_provider.fail_next(429, on="POST /batches", body=json.dumps({"error": error}))
    batch = submit(ada, lines(line("r0")))
    assert retrieved(ada, batch["id"])["status"] == "failed"


def test_a_create_without_an_answer_is_looked_for(ada: FlaskClient, llm_provider: Simulator) -> None:
    """The provider made the batch and did not say so: it is found, and never made again."""
    llm_provider.fail_next(500, on="POST /batches", done=True)
    made = submit(ada, lines(line("a")))
    (used,) = ada.get("/v1/batches/usage").get_json()["data"]
    assert used["batches"] == 0
    batch = retrieved(ada, made["id"])
    assert batch["id"] == made["id"]
    assert batch["status"] in ("validating", "in_progress")
    llm_provider.batches[0].finish()
    assert retrieved(ada, made["id"])["output_file_id"] is not None
    assert len(llm_provider.batches) == 1


def test_the_same_key_makes_one_batch(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """A create that is repeated returns its batch, whether it waits, runs or has failed."""
    key = {"Idempotency-Key": "k1"}
    file_id = uploaded(ada, lines(line("a")))["id"]
    first = ada.post("/v1/batches", json=asked(file_id), headers=key)
    again = ada.post("/v1/batches", json=asked(file_id), headers=key)
    assert again.get_json()["id"] == first.get_json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    other = ada.post("/v1/batches", json=asked(file_id, metadata={"a": "b"}), headers=key)
    assert other.status_code == 422
    assert len(llm_provider.batches) == 1
    wrong = uploaded(ada, b"{")["id"]
    key = {"Idempotency-Key": "k2"}
    ids = {ada.post("/v1/batches", json=asked(wrong), headers=key).get_json()["id"] for _ in range(3)}
    assert len(ids) == 1


def test_many_polls_submit_once(database_app: Flask, llm_provider: Simulator) -> None:
    """Without a worker the polls do the work, and however many there are, the batch is made once."""
    ada = client_of(database_app, "ada")
    working(database_app)
    made = submit(ada, lines(line("a")))
    with database_app.app_context():
        current_llm_batches._runner._workers.ended("test")  # the worker is gone
    time.sleep(1.1)
    threads = [
        threading.Thread(target=retrieved, args=(client_of(database_app, "ada"), made["id"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(llm_provider.batches) == 1


def test_from_python(app: Flask, llm_provider: Simulator) -> None:
    """The service has the same, and one of the two ways to name the requests must be taken."""
    with app.app_context():
        with current_llm_batches.files.upload(owner="ada") as upload:
            upload.write(lines(line("a")))
        batch = current_llm_batches.create(
            owner="ada", input_file_id=upload.file.id, output_expires_after=3600, on_results=None
        )
        assert batch.input_file_id == upload.file.id
        assert current_llm_batches.check(owner="ada", input_file_id=upload.file.id).requests == 1
        llm_provider.batches[0].finish()
        done = current_llm_batches.retrieve(batch.id, owner="ada")
        assert (done.id, done.status) == (batch.id, "completed")
        content = current_llm_batches.files.content(done.output_file_id or "", owner="ada")
        assert b"".join(content).count(b"\n") == 1
        for wrong in (
            {"input_file_id": upload.file.id, "requests": requests(1)},
            {},
            {"input_file_id": upload.file.id, "output_expires_after": 1},
        ):
            with pytest.raises(errors.ValidationFailed):
                current_llm_batches.create(owner="ada", **wrong)
        usage = current_llm_batches.usage(owner="ada", group_by="batch")
        assert [row.group for row in usage] == [batch.id]
    assert NOTHING.keys() == left(app).keys()
