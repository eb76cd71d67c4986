"""The files of OpenAI's API: uploaded, listed, read and deleted, each by its owner alone."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from sqlalchemy import func, select

from flask_llm_batches import LLMBatches, Principal, current_llm_batches, errors
from flask_llm_batches.store.models import ChunkRow, FileRow, ObjectRow
from flask_llm_batches.testing import Simulator
from flask_llm_batches.testing.simulator.server import Server
from tests.conftest import MakeHost, client_of
from tests.hosts import MASTER_KEY

CONTENT = b'{"custom_id": "a"}\r\n\xff not text\n' * 3


def upload(client: FlaskClient, content: bytes = CONTENT, name: str = "in.jsonl", fields: Any = ()) -> Any:
    """Upload a file and return the answer."""
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{text}\r\n'
        for field, text in {"purpose": "batch", **dict(fields)}.items()
    ]
    head = f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = "".join([*parts, head]).encode() + content + b"\r\n--B--\r\n"
    return client.post("/v1/files", data=body, content_type="multipart/form-data; boundary=B")


def uploaded(client: FlaskClient, content: bytes = CONTENT, name: str = "in.jsonl", fields: Any = ()) -> Any:
    """Upload a file and return it."""
    answer = upload(client, content, name, fields)
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def left(app: Flask) -> dict[str, int]:
    """Return how many rows the tables of files and of the storage have."""
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        return {
            name: connection.scalar(select(func.count()).select_from(table)) for name, table in TABLES.items()
        }


TABLES = {"files": FileRow, "objects": ObjectRow, "chunks": ChunkRow}
NOTHING = {"files": 0, "objects": 0, "chunks": 0}


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """Serve an app on a real socket, and return its URL."""
    server = Server(0, app.wsgi_app)
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture(params=["simulator", "ours"])
def openai_client(request: pytest.FixtureRequest, llm_provider: Simulator) -> Iterator[openai.OpenAI]:
    """OpenAI's client, at the simulated OpenAI and at an app."""
    if request.param == "simulator":
        with openai.OpenAI(api_key=llm_provider.api_key, base_url=llm_provider.base_url) as client:
            yield client
        return
    with (
        serving(request.getfixturevalue("app")) as url,
        openai.OpenAI(api_key=MASTER_KEY, base_url=f"{url}/v1", max_retries=0) as client,
    ):
        yield client


def test_what_openai_promises_of_files(openai_client: openai.OpenAI) -> None:
    """A file that was uploaded is ready at once, and has its name, its size and its content."""
    file = openai_client.files.create(file=("my requests.jsonl", CONTENT), purpose="batch")
    assert (file.object, file.purpose, file.status) == ("file", "batch", "processed")
    assert (file.filename, file.bytes) == ("my requests.jsonl", len(CONTENT))
    assert abs(file.created_at - time.time()) < 60
    assert openai_client.files.wait_for_processing(file.id).id == file.id
    assert openai_client.files.retrieve(file.id) == file
    assert openai_client.files.content(file.id).content == CONTENT


def test_what_openai_promises_of_wrong_files(openai_client: openai.OpenAI) -> None:
    """A file that is not there is a 404, and another purpose than a known one is refused."""
    for call in (openai_client.files.retrieve, openai_client.files.content):
        with pytest.raises(openai.NotFoundError, match="No such File object: file-none"):
            call("file-none")
    with pytest.raises(openai.APIStatusError) as caught:
        openai_client.files.create(file=("a.jsonl", b""), purpose="no-purpose")  # type: ignore[arg-type]
    assert caught.value.param == "purpose"
    assert caught.value.status_code in (400, 422)


def test_files_are_listed(ada: FlaskClient, app: Flask) -> None:
    """Newest first or oldest first, page by page, with OpenAI's fields."""
    ids = [uploaded(ada, name="the same.jsonl")["id"] for _ in range(5)]
    uploaded(client_of(app, "bob"))
    page = ada.get("/v1/files?limit=2").get_json()
    assert [file["id"] for file in page["data"]] == [page["first_id"], page["last_id"]] == ids[:2:-1]
    assert page["has_more"] is True
    rest = ada.get(f"/v1/files?after={page['last_id']}").get_json()
    assert [file["id"] for file in rest["data"]] == ids[2::-1]
    assert rest["has_more"] is False
    oldest = ada.get(f"/v1/files?order=asc&purpose=batch&after={ids[0]}&limit=1").get_json()
    assert [file["id"] for file in oldest["data"]] == [ids[1]]
    assert ada.get("/v1/files?purpose=batch_output").get_json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("?limit=0", "limit"),
        ("?limit=10001", "limit"),
        ("?order=up", "order"),
        ("?after=file-none", "after"),
        ("?purpos=batch", "purpos"),
    ],
)
def test_wrong_lists_are_named(ada: FlaskClient, path: str, field: str) -> None:
    """A query that cannot be answered is a 422 with its field."""
    answer = ada.get(f"/v1/files{path}")
    assert answer.status_code == 422
    assert answer.get_json()["error"]["param"] == field


def test_files_of_others_do_not_exist(app: Flask, ada: FlaskClient, admin: FlaskClient) -> None:
    """Another owner's file is a 404 on every route, as one that does not exist; an admin has all."""
    file_id = uploaded(ada)["id"]
    bob = client_of(app, "bob")
    create = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for answer in (
        bob.get(f"/v1/files/{file_id}"),
        bob.get(f"/v1/files/{file_id}/content"),
        bob.head(f"/v1/files/{file_id}/content"),
        bob.delete(f"/v1/files/{file_id}"),
        bob.post("/v1/batches", json=create),
        bob.post("/v1/batches?dry_run=true", json=create),
    ):
        assert answer.status_code == 404
    assert bob.get(f"/v1/files?after={file_id}").status_code == 422
    assert bob.get("/v1/files").get_json()["data"] == []
    assert app.test_client().get(f"/v1/files/{file_id}").status_code == 401
    assert app.test_client().get("/v1/models").status_code == 401
    assert admin.get(f"/v1/files/{file_id}/content").data == CONTENT
    assert [file["id"] for file in admin.get("/v1/files").get_json()["data"]] == [file_id]


def test_a_deleted_file_leaves_nothing(database_app: Flask) -> None:
    """Its bytes and its record are gone, and a second delete is a 404."""
    ada = client_of(database_app, "ada")
    file_id = uploaded(ada, CONTENT * 1000)["id"]
    assert left(database_app)["chunks"] > 0
    assert ada.delete(f"/v1/files/{file_id}").get_json() == {"id": file_id, "object": "file", "deleted": True}
    assert left(database_app) == NOTHING
    assert ada.delete(f"/v1/files/{file_id}").status_code == 404


def test_a_file_expires(app: Flask, ada: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """From that time on, it is a 404 on every route, and the next upload or tick deletes it."""
    after = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = uploaded(ada, fields=after)
    assert file["expires_at"] == file["created_at"] + 3600
    by_default = uploaded(ada)
    assert by_default["expires_at"] == by_default["created_at"] + 30 * 24 * 3600
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert ada.get(f"/v1/files/{file['id']}").status_code == 404
    assert ada.get(f"/v1/files/{file['id']}/content").status_code == 404
    assert [one["id"] for one in ada.get("/v1/files").get_json()["data"]] == [by_default["id"]]
    with app.app_context():
        current_llm_batches.tick()
    assert left(app)["files"] == left(app)["objects"] == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "2592001"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "an hour"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "last_active_at"}, "expires_after[anchor]"),
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpos": "batch"}, "purpos"),
        ({"note": "x" * 5000}, "note"),
    ],
)
def test_wrong_fields_are_named(app: Flask, ada: FlaskClient, fields: dict[str, str], param: str) -> None:
    """A form that is wrong is a 422 with its field, and leaves nothing."""
    answer = upload(ada, fields=fields)
    assert answer.status_code == 422, answer.text
    assert answer.get_json()["error"]["param"] == param
    assert answer.get_json()["detail"][0]["loc"][0] == "body"
    assert left(app) == NOTHING


PURPOSE = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (FILE + PURPOSE + b"--B--\r\n", "multipart/form-data; boundary=B", 200),
        (b"", "multipart/form-data; boundary=B", 422),
        (PURPOSE + b"--B--\r\n", "multipart/form-data; boundary=B", 422),
        (FILE + b"--B--\r\n", "multipart/form-data; boundary=B", 422),
        (FILE + FILE + PURPOSE + b"--B--\r\n", "multipart/form-data; boundary=B", 422),
        (FILE.replace(b'"file"', b'"document"') + PURPOSE + b"--B--", "multipart/form-data; boundary=B", 422),
        (PURPOSE + FILE, "multipart/form-data; boundary=B", 422),
        (PURPOSE + FILE[:-2], "multipart/form-data; boundary=B", 422),
        (b"--B\r\n\r\nx\r\n--B--\r\n", "multipart/form-data; boundary=B", 422),
        (
            b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--\r\n",
            "multipart/form-data; boundary=B",
            422,
        ),
        (b"--B\r\n\xff\xfe: x\r\n\r\n", "multipart/form-data; boundary=B", 422),
        (PURPOSE * 21 + FILE + b"--B--\r\n", "multipart/form-data; boundary=B", 413),
        (b"--B\r\nX: " + b"x" * 300_000, "multipart/form-data; boundary=B", 413),
        (PURPOSE + FILE, "multipart/form-data", 415),
        (b"{}", "application/json", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
    ],
)
def test_every_body_has_an_answer(
    app: Flask, ada: FlaskClient, body: bytes, content_type: str, status: int
) -> None:
    """What is no form with one file and its purpose is refused, and leaves nothing."""
    answer = ada.post("/v1/files", data=body, content_type=content_type)
    assert answer.status_code == status, answer.text
    if status == 413:  # the limit of the server is another one
        assert "more than 20 parts" in answer.get_json()["error"]["message"]
    assert left(app) == (NOTHING if status != 200 else {"files": 1, "objects": 1, "chunks": 1})


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\x7f\x85\u2028b", "a___b"),
        ("überfällig 😀.txt", "überfällig 😀.txt"),
        ("n" * 300, "n" * 255),
    ],
)
def test_any_name_is_taken(ada: FlaskClient, name: str, shown: str) -> None:
    """A name is what its owner says, without control characters, and never a path or a header of its own."""
    file = uploaded(ada, name=name)
    assert file["filename"] == shown
    content = ada.get(f"/v1/files/{file['id']}/content")
    disposition = content.headers["Content-Disposition"]
    assert disposition.startswith("attachment; filename")
    assert disposition.isascii()
    assert disposition.isprintable()
    assert content.headers["X-Content-Type-Options"] == "nosniff"


def test_a_range_is_answered(ada: FlaskClient) -> None:
    """A part of a file is a 206, one that is not there a 416; without a range it is the whole file."""
    content = bytes(range(256)) * 20_000
    url = f"/v1/files/{uploaded(ada, content)['id']}/content"
    whole = ada.get(url)
    assert whole.data == content
    assert whole.headers["Content-Length"] == str(len(content))
    assert ada.head(url).headers["Content-Length"] == str(len(content))
    part = ada.get(url, headers={"Range": "bytes=3000000-3000099"})
    assert (part.status_code, part.data) == (206, content[3_000_000:3_000_100])
    assert part.headers["Content-Range"] == f"bytes 3000000-3000099/{len(content)}"
    assert ada.get(url, headers={"Range": "bytes=-5"}).data == content[-5:]
    beyond = ada.get(url, headers={"Range": f"bytes={len(content)}-"})
    assert beyond.status_code == 416
    assert beyond.get_json()["error"]["code"] == "range_not_satisfiable"
    for other in ("items=0-1", "bytes=a-b", "bytes", "bytes=0-1,3-4"):
        whole = ada.get(url, headers={"Range": other})
        assert (whole.status_code, whole.data == content) == (200, True), other
        assert whole.headers["Accept-Ranges"] == "bytes"


def test_an_empty_file_is_a_file(ada: FlaskClient) -> None:
    """Nothing is wrong with it before a batch is made of it."""
    file = uploaded(ada, b"")
    assert file["bytes"] == 0
    assert ada.get(f"/v1/files/{file['id']}/content").data == b""


def test_gzip_is_unpacked_if_it_is_an_encoding(ada: FlaskClient) -> None:
    """A body that is sent as gzip is unpacked; a file that is gzip stays as it is."""
    body = PURPOSE + FILE + b"--B--\r\n"
    headers = {"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=B"}
    file = ada.post("/v1/files", data=gzip.compress(body), headers=headers).get_json()
    assert ada.get(f"/v1/files/{file['id']}/content").data == b"x"
    packed = gzip.compress(CONTENT)
    assert ada.get(f"/v1/files/{uploaded(ada, packed)['id']}/content").data == packed


def test_a_file_has_a_limit(make_host: MakeHost, tmp_path: Path) -> None:
    """A body above the limit of this server is a 413, and leaves nothing."""
    app = make_host(database=tmp_path / "host.sqlite3", max_content_length=100_000)
    assert upload(client_of(app, "ada"), b"x" * 100_000).status_code == 413
    assert left(app) == NOTHING


def test_a_broken_upload_leaves_nothing(app: Flask) -> None:
    """A caller who hangs up in the middle leaves no file, no object and no chunk."""
    with serving(app) as url:

        def half() -> Iterator[bytes]:
            yield PURPOSE + FILE[:-3]
            yield b"y" * 100_000
            wait_until(lambda: left(app)["files"] == 1)
            raise ConnectionAbortedError

        headers = {
            "X-User": "ada",
            "Content-Type": "multipart/form-data; boundary=B",
            "Content-Length": "9999999",
        }
        with pytest.raises(ConnectionAbortedError):
            httpx.post(f"{url}/v1/files", content=half(), headers=headers)
        wait_until(lambda: left(app) == NOTHING)


def test_what_a_kill_left_is_deleted(app: Flask, ada: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload whose process died is no file, and after a day nothing is left of it."""
    with app.app_context():
        opened = current_llm_batches.files.upload(owner="ada")
        opened.__enter__().write(b"x" * 100)  # and nothing more: its process is killed
        assert ada.get("/v1/files").get_json()["data"] == []
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 24 * 3600 + 700)
        current_llm_batches.reconcile()
    assert left(app) == NOTHING
    monkeypatch.undo()
    with app.app_context(), pytest.raises(errors.LLMBatchesError, match="was deleted"):
        opened.__exit__(None, None, None)
    assert left(app) == NOTHING


def test_odd_ids(database_app: Flask) -> None:
    """Regression: with PostgreSQL, a NUL in the id of a file was a 503."""
    ada = client_of(database_app, "ada")
    for path, status in (("/file-%00", 404), ("/file-%00/content", 404), ("?after=file-%00", 422)):
        assert ada.get(f"/v1/files{path}").status_code == status
    assert ada.delete("/v1/files/file-%00").status_code == 404
    assert ada.post("/v1/batches", json={"input_file_id": "file-\0"}).status_code == 404


def test_many_upload_at_once(database_app: Flask) -> None:
    """32 uploads of one name at once are 32 files, each with its own content."""
    with serving(database_app) as url:

        def store(number: int) -> tuple[str, bytes]:
            content = f"{number}\n".encode() * 5000
            answer = httpx.post(
                f"{url}/v1/files",
                files={"file": ("same.jsonl", content)},
                data={"purpose": "batch"},
                headers={"X-User": "ada"},
                timeout=60,
            )
            return answer.json()["id"], content

        with ThreadPoolExecutor(32) as pool:
            stored = list(pool.map(store, range(32)))
        assert len({file_id for file_id, _ in stored}) == 32
        for file_id, content in stored:
            got = httpx.get(f"{url}/v1/files/{file_id}/content", headers={"X-User": "ada"})
            assert got.content == content


def test_a_server_that_keeps_nothing_says_so(make_host: MakeHost, tmp_path: Path) -> None:
    """Without retention there are no input files, and the answer has the setting."""
    app = make_host(database=tmp_path / "host.sqlite3", retention=0)
    answer = upload(client_of(app, "ada"))
    assert answer.status_code == 501
    assert answer.get_json()["error"]["code"] == "files_not_kept"
    assert "LLM_BATCHES_RETENTION is 0" in answer.get_json()["error"]["message"]
    assert answer.headers["X-Should-Retry"] == "false"


@pytest.mark.parametrize(
    ("settings", "there", "not_there"),
    [
        ({}, ["/v1/files", "/v1/models"], ["/files"]),
        ({"url_prefix": ["/a/batches", "/b/batches"]}, ["/a/files", "/b/files", "/b/models"], ["/v1/files"]),
        ({"url_prefix": "/batches"}, [], ["/files", "/v1/files"]),
        (
            {"url_prefix": "/batches", "files_url_prefix": "/my/documents"},
            ["/my/documents", "/my/models"],
            [],
        ),
        ({"files_url_prefix": None}, [], ["/v1/files", "/v1/models"]),
    ],
)
def test_files_are_beside_the_batches(
    make_host: MakeHost, settings: dict[str, Any], there: list[str], not_there: list[str]
) -> None:
    """By default, where OpenAI's clients look for them; a setting puts them elsewhere, or nowhere."""
    admin = client_of(make_host(**settings), None)
    assert [admin.get(path).status_code for path in there] == [200] * len(there)
    assert [admin.get(path).status_code for path in not_there] == [404] * len(not_there)


def test_files_are_beside_a_blueprint_of_the_host(make_host: MakeHost, llm_provider: Simulator) -> None:
    """A host that registers the blueprint itself has the files beside it, too."""
    app = Flask("host")
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    app.config["LLM_BATCHES_MASTER_KEY"] = MASTER_KEY
    extension = LLMBatches()
    extension.init_app(app, register_blueprint=False)
    app.register_blueprint(extension.blueprint, url_prefix="/internal/batches")
    assert client_of(app, None).get("/internal/files").status_code == 200


def test_a_setting_that_comes_too_late(llm_provider: Simulator) -> None:
    """Regression: files that the settings leave out were there if init_app came after the registration."""
    app = Flask("host")
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    app.config["LLM_BATCHES_FILES_URL_PREFIX"] = None
    extension = LLMBatches()
    app.register_blueprint(extension.blueprint, url_prefix="/internal/batches")
    with pytest.raises(RuntimeError, match="came too late"):
        extension.init_app(app, register_blueprint=False)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/file-x", "/v1/files/file-x/content", "/v1/models"])
def test_wrong_methods_are_ours(ada: FlaskClient, path: str) -> None:
    """A wrong method is a 405 in our form, and OPTIONS says what there is."""
    answer = ada.patch(path)
    assert answer.status_code == 405
    assert answer.get_json()["error"]["code"] == "method_not_allowed"
    assert "GET" in ada.options(path).headers["Allow"]


@pytest.mark.parametrize("file_id", ["file-\n", "file-%2e%2e", "x" * 600, "file-a/b", "file-output-", "😀"])
def test_odd_ids_are_not_found(ada: FlaskClient, file_id: str) -> None:
    """What is no id of a file is a 404 in our form."""
    answer = ada.get(f"/v1/files/{file_id}")
    assert answer.status_code == 404
    assert answer.get_json()["error"]["code"] == "not_found"


def test_an_authenticator_may_read_the_form(llm_provider: Simulator) -> None:
    """The file is not lost if the host's authenticator has read the form, as Flask-WTF does."""
    app = Flask("host")
    app.config["LLM_BATCHES_PROVIDERS"] = {"openai": llm_provider.settings}
    extension = LLMBatches(app)

    @extension.authenticator
    def principal() -> Principal | None:
        return Principal("ada") if request.form.get("token") == "t" else None

    client = app.test_client()
    form = {"purpose": "batch", "token": "t", "file": (io.BytesIO(CONTENT), "a.jsonl")}
    file = client.post("/v1/files", data=form).get_json()
    assert file["bytes"] == len(CONTENT)
    two = [(io.BytesIO(CONTENT), "a.jsonl"), (io.BytesIO(CONTENT), "b.jsonl")]
    assert client.post("/v1/files", data={"purpose": "batch", "token": "t", "file": two}).status_code == 422
    form = {"purpose": "batch", "file": (io.BytesIO(CONTENT), "a.jsonl")}
    assert client.post("/v1/files", data=form).status_code == 401


def test_files_from_python(app: Flask) -> None:
    """The service has what the endpoints have."""
    with app.app_context():
        files = current_llm_batches.files
        with files.upload(owner="ada") as opened:
            opened.write(b"one")
            opened.filename = "mine"
        file = files.retrieve(opened.file.id, owner=Principal("ada"))
        assert (file.filename, file.bytes, file.purpose) == ("mine", 3, "batch")
        assert b"".join(files.content(file.id, owner="ada")) == b"one"
        assert list(files.list(owner="ada").files) == [file]
        with pytest.raises(errors.NoSuchFile), files.upload(owner="ada") as other:
            other.write(b"x")
            files.delete("file-none", owner="ada")
        assert files.list(owner="ada", limit=1).has_more is False
        with pytest.raises(TypeError), files.upload(owner=None):  # type: ignore[arg-type]
            pass
        files.delete(file.id, owner="ada")
        assert left(app) == NOTHING


def test_a_file_is_read_while_it_is_deleted(app: Flask, ada: FlaskClient) -> None:
    """A reader whose file is deleted meanwhile gets an error, and never half a file that looks whole."""
    file = uploaded(ada, bytes(range(256)) * 40_000)
    with app.app_context():
        chunks = iter(current_llm_batches.files.content(file["id"], owner="ada"))
        next(chunks)
        assert ada.delete(f"/v1/files/{file['id']}").status_code == 200
        try:
            read = sum(map(len, chunks))
        except errors.NoSuchFile:
            read = 0
    assert read == 0 or read >= 256 * 40_000 - 2**20
