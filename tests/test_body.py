"""Bodies of creates: JSON and JSONL, with and without gzip, up to the limits."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from flask_llm_batches.providers.adapters.openai import OpenAIAdapter
from flask_llm_batches.testing import Simulator
from tests.conftest import MakeHost, client_of
from tests.hosts import requests
from tests.servers import Running, gunicorn

LINES = "application/jsonl"
BOM = b"\xef\xbb\xbf"


def lines_of(count: int) -> bytes:
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests(count))


def json_of(count: int, **fields: Any) -> bytes:
    return json.dumps({"model": "openai:m", "requests": requests(count), **fields}).encode()


def post(
    client: FlaskClient,
    data: bytes,
    *,
    kind: str = LINES,
    query: str | None = None,
    encoding: str | None = None,
) -> TestResponse:
    headers = {"Content-Encoding": encoding} if encoding else {}
    if query is None:
        query = "" if kind == "application/json" else "model=openai:m"
    return client.post(f"/v1/batches?{query}", data=data, content_type=kind, headers=headers)


def wrong(answer: TestResponse, status: int = 422) -> list[tuple[list[Any], str]]:
    """Return where a body is wrong, and why."""
    assert answer.status_code == status, answer.text
    body = answer.get_json()
    return [(item["loc"], item["msg"]) for item in body["detail"]]


@pytest.mark.parametrize("kind", [LINES, "application/x-ndjson", "application/jsonl; charset=utf-8"])
def test_lines_make_a_batch(ada: FlaskClient, llm_provider: Simulator, kind: str) -> None:
    """A line of either form is a request; what is no request is in the query."""
    data = (
        b'{"custom_id": "a", "body": {"input": "x"}}\n'
        b'{"custom_id": "b", "method": "POST", "url": "/v1/embeddings", "body": {"model": "openai:m"}}\n'
    )
    query = 'model=openai:m&endpoint=/v1/embeddings&completion_window=24h&user=ada&metadata={"team":"search"}'
    answer = post(ada, data, kind=kind, query=query)
    assert answer.status_code == 200, answer.text
    batch = answer.get_json()
    assert (batch["model"], batch["endpoint"], batch["completion_window"]) == ("m", "/v1/embeddings", "24h")
    assert batch["metadata"] == {"team": "search"}
    (simulated,) = llm_provider.batches
    assert [line["custom_id"] for line in simulated.requests] == ["a", "b"]
    assert {line["body"]["model"] for line in simulated.requests} == {"m"}


@pytest.mark.parametrize(
    "data",
    [
        lines_of(3).replace(b"\n", b"\r\n"),
        lines_of(3).rstrip(),
        b"\n \r\n\t\n" + lines_of(3).replace(b"\n", b"\n\n"),
        BOM + lines_of(3),
    ],
    ids=["crlf", "no end", "blank lines", "bom"],
)
def test_lines_end_as_they_like(ada: FlaskClient, llm_provider: Simulator, data: bytes) -> None:
    """CRLF, a missing last line feed, blank lines and a byte order mark change nothing."""
    assert post(ada, data).status_code == 200
    assert [line["custom_id"] for line in llm_provider.batches[0].requests] == ["r0", "r1", "r2"]


def test_a_byte_order_mark_of_json_is_skipped(ada: FlaskClient) -> None:
    """JSON may begin with a byte order mark, as Flask's own reader takes it."""
    assert post(ada, BOM + json_of(1), kind="application/json").status_code == 200


@pytest.mark.parametrize(
    ("line", "path", "message"),
    [
        (b'{"body":{}}', ["custom_id"], "Missing data for required field."),
        (b'{"custom_id":"","body":{}}', ["custom_id"], "Shorter than minimum length 1."),
        (b'{"custom_id":"r0","body":{}}', ["custom_id"], "Not unique: line 1 has the same one."),
        (b'{"custom_id":"x"}', ["body"], "Missing data for required field."),
        (b'{"custom_id":"x","body":{},"method":"GET"}', ["method"], "Must be POST."),
        (
            b'{"custom_id":"x","body":{},"url":"/v1/embeddings"}',
            ["url"],
            "Must be /v1/chat/completions, the endpoint of the batch.",
        ),
        (b"[]", [], "Not a valid mapping type."),
        (b"{", [], "Not valid JSON: Input data was truncated."),
        # Regression: a wrong type and broken syntax in one line were a 500.
        (b'{"custom_id": 1, "body": {}', [], "Not valid JSON: Input data was truncated."),
        (b'{"custom_id":1}}', [], "Not valid JSON: JSON is malformed: trailing characters (byte 16)."),
        (b'{"custom_id": "x", "body": {"\xff": 1}}', [], "Not valid UTF-8: invalid start byte at byte 29."),
        (b'{"custom_id":"%b","body":{}}' % (b"x" * 513), ["custom_id"], "Longer than maximum length 512."),
        (b'{"custom_id":"x","body":[]}', ["body"], "Not a valid mapping type."),
        (
            b'{"custom_id":"x","body":{"model":"n"}}',
            ["body", "model"],
            "Must be 'm', the model of the batch, or left out.",
        ),
    ],
)
def test_wrong_lines_are_numbered(
    ada: FlaskClient, llm_provider: Simulator, line: bytes, path: list[str], message: str
) -> None:
    """A wrong line is named by its number as editors count, blank ones too, and nothing is sent."""
    answer = post(ada, lines_of(1) + b"\n\n" + line + b"\n")
    assert wrong(answer) == [(["body", "lines", 4, *path], message)]
    assert not llm_provider.calls


def test_only_known_fields_are_read(ada: FlaskClient, llm_provider: Simulator) -> None:
    """Unknown fields may have any value, and known fields have a maximum size."""
    fields: dict[str, Any] = {"model": "openai:m", "requests": requests(1), "junk": [[]] * 200_000}
    assert post(ada, json.dumps(fields).encode(), kind="application/json").status_code == 200
    fields["metadata"] = {"a": "b" * 300_000}
    answer = post(ada, json.dumps(fields).encode(), kind="application/json")
    assert wrong(answer) == [(["body", "metadata"], "Larger than 262144 bytes.")]
    assert len(llm_provider.batches) == 1


@pytest.mark.parametrize("data", [b"", b"\n \n", BOM])
def test_no_lines_are_no_batch(ada: FlaskClient, data: bytes) -> None:
    """JSONL without a request is a 422."""
    assert wrong(post(ada, data)) == [(["body", "lines"], "Shorter than minimum length 1.")]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("", "model"),
        ("model=", "model"),
        ("model=openai:m&endpoint=x", "endpoint"),
        ("model=openai:m&completion_window=", "completion_window"),
        ("model=openai:m&user=", "user"),
        ("model=openai:m&dry_run=perhaps", "dry_run"),
        ("model=openai:m&metadata=a", "metadata"),
        ("model=openai:m&metadata=[]", "metadata"),
    ],
)
def test_wrong_queries_are_named(ada: FlaskClient, query: str, name: str) -> None:
    """With JSONL a missing or wrong parameter is one of the query."""
    assert [loc for loc, _ in wrong(post(ada, lines_of(1), query=query))] == [["query", name]]


def test_a_wrong_dry_run_is_of_the_query_with_json_too(ada: FlaskClient) -> None:
    """``dry_run`` is in the query whatever the body is."""
    answer = post(ada, json_of(1), kind="application/json", query="dry_run=perhaps")
    assert [loc for loc, _ in wrong(answer)] == [["query", "dry_run"]]


@pytest.mark.parametrize("kind", ["text/plain", "text/csv", "multipart/form-data; boundary=x", ""])
def test_other_types_are_refused(ada: FlaskClient, kind: str) -> None:
    """A body of another type is a 415 that names the three."""
    answer = post(ada, lines_of(1), kind=kind)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (415, "unsupported_media_type")
    for name in ("application/json", "application/x-ndjson", LINES):
        assert name in answer.get_json()["detail"]


@pytest.mark.parametrize("kind", [LINES, "application/json"])
@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
def test_bodies_may_be_packed(ada: FlaskClient, llm_provider: Simulator, kind: str, encoding: str) -> None:
    """Gzip in one member or in several, empty ones among them, is unpacked."""
    data = lines_of(200) if kind == LINES else json_of(200)
    for packed in (gzip.compress(data), b"".join(map(gzip.compress, (b"", data[:7], data[7:], b"")))):
        assert post(ada, packed, kind=kind, encoding=encoding).status_code == 200
    assert [len(batch.requests) for batch in llm_provider.batches] == [200, 200]


@pytest.mark.parametrize("kind", [LINES, "application/json"])
@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (gzip.compress(lines_of(9), mtime=0)[:-9], "The body ends before its gzip does."),
        (gzip.compress(lines_of(9), mtime=0) + b"\x1f\x8b", "The body ends before its gzip does."),
        (lines_of(9), "The body is not gzip, as its Content-Encoding says."),
        (zlib.compress(lines_of(9)), "The body is not gzip, as its Content-Encoding says."),
        (
            gzip.compress(lines_of(9), mtime=0) + b"more",
            "The body is not gzip, as its Content-Encoding says.",
        ),
        # Regression: 200 MB of empty members kept a thread busy for seconds.
        (
            gzip.compress(lines_of(9), mtime=0) + 20_001 * gzip.compress(b"", mtime=0),
            "The body has more than 20000 gzip members.",
        ),
    ],
    ids=["truncated", "second truncated", "plain", "zlib", "something after", "empty members"],
)
def test_what_is_no_gzip_is_refused(
    ada: FlaskClient, llm_provider: Simulator, kind: str, packed: bytes, message: str
) -> None:
    """A body that is not what its Content-Encoding says is a 422, and nothing is sent."""
    assert wrong(post(ada, packed, kind=kind, encoding="gzip")) == [(["body"], message)]
    assert not llm_provider.calls


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip"])
def test_other_encodings_are_refused(ada: FlaskClient, encoding: str) -> None:
    """An encoding that is not known is a 415."""
    answer = post(ada, lines_of(1), encoding=encoding)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (415, "unsupported_media_type")
    assert post(ada, lines_of(1), encoding="identity").status_code == 200


@pytest.mark.parametrize("kind", [LINES, "application/json"])
@pytest.mark.parametrize("packed", [False, True])
def test_too_many_bytes_are_refused(
    make_host: MakeHost, llm_provider: Simulator, spool_dir: Path, kind: str, packed: bool
) -> None:
    """The server's limit applies to the unpacked bytes, and the answer says whose limit it is."""
    limit = len(lines_of(50) if kind == LINES else json_of(50))
    ada = client_of(make_host(max_content_length=limit), "ada")
    for count, status in ((50, 200), (51, 413)):
        data = lines_of(count) if kind == LINES else json_of(count)
        answer = post(
            ada, gzip.compress(data) if packed else data, kind=kind, encoding="gzip" if packed else None
        )
        assert answer.status_code == status, answer.text
    assert answer.get_json()["error"]["code"] == "too_large"
    assert answer.get_json()["detail"].endswith(f"{limit} bytes, the limit of this server")
    assert len(llm_provider.batches) == 1
    assert not list(spool_dir.iterdir())


def test_too_many_lines_are_refused(make_host: MakeHost, llm_provider: Simulator) -> None:
    """The server's limit of requests counts no blank lines."""
    ada = client_of(make_host(max_requests=2), "ada")
    assert post(ada, b"\n\n\n" + lines_of(2)).status_code == 200
    assert wrong(post(ada, lines_of(3))) == [
        (["body", "lines"], "Longer than maximum length 2, the limit of this server.")
    ]
    assert len(llm_provider.batches) == 1


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_request_above_the_providers_limit_is_refused(
    ada: FlaskClient, llm_provider: Simulator, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """A request that is larger than a whole batch may be is refused before the provider is called."""
    query = f"model=openai:m&dry_run={str(dry_run).lower()}"
    monkeypatch.setattr(OpenAIAdapter, "max_bytes", 100)
    answer = post(ada, lines_of(1), query=query)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (413, "too_large")
    assert answer.get_json()["detail"].endswith("larger than 100 bytes, the limit of provider 'openai'")
    assert not llm_provider.calls


@pytest.mark.parametrize("kind", [LINES, "application/json"])
def test_a_dry_run_checks_and_does_nothing(
    ada: FlaskClient, llm_provider: Simulator, spool_dir: Path, kind: str
) -> None:
    """A dry run answers what would be sent, and neither sends nor records anything."""
    data = lines_of(3) if kind == LINES else json_of(3)
    query = "model=openai:m&" if kind == LINES else ""
    answer = post(ada, data, kind=kind, query=f"{query}dry_run=true")
    assert answer.status_code == 200, answer.text
    checked = answer.get_json()
    size = checked.pop("bytes")
    assert checked.pop("estimated_tokens") == size // 4
    assert (checked.pop("estimated_cost"), checked.pop("standard_cost")) == (None, None)
    assert checked == {"valid": True, "requests": 3, "parts": 1, "provider": "openai", "warnings": []}
    assert not llm_provider.calls
    assert ada.get("/v1/batches").get_json()["data"] == []
    assert not list(spool_dir.iterdir())
    assert post(ada, data, kind=kind, query=f"{query}dry_run=false").status_code == 200
    (upload,) = llm_provider.calls_to("POST /files")
    assert 0 < int(upload.headers["Content-Length"]) - size < 1000


def test_a_dry_run_says_what_would_be_otherwise(ada: FlaskClient) -> None:
    """Requests that name another model are run with the batch's, and a dry run says so."""
    named = [
        {"custom_id": name, "body": {"model": model}} for name, model in (("a", "m"), ("b", "n"), ("c", "n"))
    ]
    answer = ada.post("/v1/batches?dry_run=1", json={"model": "openai:m", "requests": named})
    assert answer.get_json()["warnings"] == ["2 requests name another model; all run with 'm'."]


def test_a_dry_run_needs_what_the_create_needs(make_host: MakeHost, llm_provider: Simulator) -> None:
    """A dry run also reports a provider without a key, and an invalid Idempotency-Key."""
    mine = {**llm_provider.settings, "provider": "openai"}
    ada = client_of(make_host(providers={"openai": {}, "mine": mine}), "ada")
    for query in ("model=openai:m&dry_run=true", "model=openai:m"):
        assert post(ada, lines_of(1), query=query).status_code == 503
    for query in ("model=mine:m&dry_run=true", "model=mine:m"):
        ada.environ_base["HTTP_IDEMPOTENCY_KEY"] = "no key"
        assert wrong(post(ada, lines_of(1), query=query))[0][0][-1] == "Idempotency-Key"
    assert not llm_provider.calls


def test_a_dry_run_fails_as_the_create_would(ada: FlaskClient, llm_provider: Simulator) -> None:
    """What is wrong gets the same answer from a dry run."""
    for kind, data in ((LINES, b"{}\n{"), ("application/json", json_of(0)), ("application/json", b"{")):
        answers = [
            post(ada, data, kind=kind, query=f"model=openai:m&dry_run={run}") for run in ("true", "false")
        ]
        assert answers[0].status_code == answers[1].status_code == 422
        assert answers[0].get_json() == answers[1].get_json()
    assert not llm_provider.calls


@pytest.mark.parametrize("kind", [LINES, "application/json"])
def test_a_body_that_breaks_off_is_no_batch(ada: FlaskClient, llm_provider: Simulator, kind: str) -> None:
    """Regression: under gunicorn a body that was shorter than announced made a batch of what was there."""
    data = lines_of(3) if kind == LINES else json_of(3)
    answer = ada.post(
        "/v1/batches?model=openai:m",
        data=data,
        content_type=kind,
        environ_overrides={"wsgi.input_terminated": True, "CONTENT_LENGTH": str(len(data) + 1)},
    )
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "bad_request")
    assert not llm_provider.calls


def chunked(data: bytes, size: int = 1000) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def peak_memory(server: Running) -> int:
    """Return the most bytes that a worker has had."""
    (worker,) = server.workers()
    status = Path(f"/proc/{worker}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def hang_up(server: Running, kind: str, head: bytes, sent: bytes) -> None:
    """Send a part of a create and hang up."""
    url = urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port)) as connection:
        connection.sendall(
            b"POST /v1/batches?model=openai:m HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n"
            + f"Content-Type: {kind}\r\n".encode()
            + head
            + b"\r\n\r\n"
            + sent
        )
        time.sleep(0.1)


@pytest.mark.slow
def test_bodies_come_over_a_real_wire(tmp_path: Path) -> None:
    """Bodies come in chunks or with a length. A caller who hangs up makes no batch and no log line."""
    with (
        Simulator() as simulator,
        gunicorn(simulator, tmp_path, "--threads=4") as server,
        httpx.Client(base_url=server.url, headers={"X-User": "ada"}, timeout=30) as http,
    ):
        for kind, data in ((LINES, lines_of(99)), ("application/json", json_of(99))):
            url = "/v1/batches?model=openai:m" if kind == LINES else "/v1/batches"
            for more, body in (
                ({}, data),
                ({}, chunked(data)),
                ({"Content-Encoding": "gzip"}, chunked(gzip.compress(data), 10)),
            ):
                answer = http.post(url, content=body, headers={"Content-Type": kind, **more})
                assert answer.status_code == 200, answer.text
        assert [len(batch.requests) for batch in simulator.batches] == [99] * 6
        calls = len(simulator.calls)
        for kind, data in ((LINES, lines_of(9)), ("application/json", json_of(9))):
            for head, sent in (
                (f"Content-Length: {len(data) + 1}", data),
                ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (len(data), data)),
                ("Transfer-Encoding: chunked", b"%x\r\n%b" % (len(data) + 1, data)),
                ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n" % (len(data), data)),
            ):
                hang_up(server, kind, head.encode(), sent)
        time.sleep(0.2)
        assert http.get("/v1/batches").status_code == 200
        assert not [call for call in simulator.calls[calls:] if call.method == "POST"]
        assert not list(server.spool.iterdir())
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_a_bomb_does_no_harm(tmp_path: Path) -> None:
    """A gzip bomb is unpacked up to the limit only, and its lines are not kept."""
    pad = zlib.compressobj(wbits=31)
    blank = b"".join(pad.compress(b" " * 4999 + b"\n") for _ in range(56_000)) + pad.flush()
    with (
        Simulator() as simulator,
        gunicorn(simulator, tmp_path, "--threads=4") as server,
        httpx.Client(base_url=server.url, headers={"X-User": "ada"}, timeout=60) as http,
    ):
        headers = {"Content-Encoding": "gzip", "Content-Type": LINES}
        http.post("/v1/batches?model=openai:m", content=lines_of(9), headers={"Content-Type": LINES})
        before = peak_memory(server)
        answer = http.post("/v1/batches?model=openai:m", content=blank, headers=headers)
        assert answer.status_code == 413
        assert peak_memory(server) - before < 5 * 2**20
        headers["Content-Type"] = "application/json"
        # Regression: what took 130 KB on the wire took 4.5 GB here.
        nulls = zlib.compressobj(wbits=31)
        parts = (b'{"model":"openai:m","requests":[', b"0," * 2**26, b"0]}")
        content = b"".join(map(nulls.compress, parts)) + nulls.flush()
        answer = http.post("/v1/batches", content=content, headers=headers)
        assert answer.json()["detail"][0]["msg"].startswith("Longer than maximum length 100000")
        assert peak_memory(server) - before < 300 * 2**20
        answer = http.post("/v1/batches", content=blank, headers=headers)
        assert answer.status_code == 413
        assert peak_memory(server) - before < 300 * 2**20
        assert not list(server.spool.iterdir())
