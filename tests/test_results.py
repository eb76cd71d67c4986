"""Every request has one row, whatever the provider sends, in JSON and NDJSON."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from flask_llm_batches import current_llm_batches
from flask_llm_batches.batch import UNREADABLE, Batch, Row, RowError
from flask_llm_batches.core.results import Results
from flask_llm_batches.core.rows import Counts, each_once
from flask_llm_batches.errors import LLMBatchesError
from flask_llm_batches.providers.adapters import Adapter
from flask_llm_batches.providers.rows import read_rows
from flask_llm_batches.signals import usage_recorded
from flask_llm_batches.store.usage import Tokens
from flask_llm_batches.testing import SimulatedBatch, Simulator
from flask_llm_batches.web.stream import json_stream, ndjson_stream
from tests.conftest import create_batch
from tests.faults import left_in_cycles
from tests.json_texts import bodies, cut, digits_kept

NDJSON = {"Accept": "application/x-ndjson"}
BATCH = Batch(id="b", provider="p", status="completed", created_at=0)


class Reader(Adapter):
    """An adapter without a client."""

    def __init__(self) -> None:
        self.redact = str


def read(chunks: Sequence[bytes]) -> list[Row]:
    return [row for group in read_rows(chunks, Reader(), BATCH, beat=9) for row in group or ()]


def line_of(custom_id: str, body: str, space: str = "") -> str:
    return (
        f'{{{space}"custom_id":{json.dumps(custom_id)},{space}'
        f'"response":{{"status_code":200,{space}"body":{body}}}{space}}}'
    )


def shown(rows: Sequence[Row]) -> list[tuple[str, bytes | None, RowError | None]]:
    """Return rows as values that can be compared."""
    return [(row.custom_id, row.result and bytes(row.result), row.error) for row in rows]


custom_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)


@given(
    st.lists(st.tuples(custom_ids, bodies(" \t\r")), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n", "\n\n \r\n"]),
    st.lists(st.integers(0, 5000), max_size=9),
)
def test_any_rows_are_read_as_they_are(rows: list[tuple[str, str]], end: str, places: list[int]) -> None:
    """Rows are the same however the download is cut, and go out one a line, with every digit."""
    data = "".join(line_of(custom_id, body) + end for custom_id, body in rows).encode()
    found = read(cut(data, places))
    assert shown(found) == [(custom_id, body.encode(), None) for custom_id, body in rows]
    lines = b"".join(ndjson_stream(Results(iter_groups([found])))).decode().splitlines()
    whole = json.loads(
        b"".join(json_stream(Results(iter_groups([found])))),
        object_pairs_hook=list,
        parse_int=str,
        parse_float=str,
    )
    for line, one, (custom_id, body) in zip(lines, dict(whole)["results"], rows, strict=True):
        row = [("custom_id", custom_id), ("result", digits_kept(body)), ("error", None)]
        assert digits_kept(line) == row
        assert one == row


@given(
    st.lists(st.sampled_from(["{", "\xff", '{"custom_id":3}', "<html>", '{"a":"custom_id"}']), min_size=1),
    st.lists(st.integers(0, 5000), max_size=9),
)
def test_damaged_rows_before_a_good_one_do_no_harm(damaged: list[str], places: list[int]) -> None:
    """Regression: the ends of chunks decided whether damaged first lines ended the results."""
    data = "\n".join([*damaged, line_of("a", "{}")]).encode("latin-1")
    assert shown(read(cut(data, places))) == [("", None, UNREADABLE)] * len(damaged) + [("a", b"{}", None)]


@given(
    st.lists(bodies(" "), min_size=1, max_size=3),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 5000), max_size=5),
)
def test_a_truncated_download_is_read_up_to_there(texts: list[str], length: int, places: list[int]) -> None:
    """Rows before the end are whole, the one in which it ends is unreadable and keeps its id if it can."""
    data = "\n".join(line_of(str(number), body) for number, body in enumerate(texts)).encode()
    kept = data[: length % len(data) + 1]
    whole = [(str(number), body.encode(), None) for number, body in enumerate(texts)]
    last = len(kept.split(b"\n")) - 1
    at_an_end = data[len(kept) : len(kept) + 1] in (b"", b"\n")
    if kept.endswith(b"\n") or at_an_end:
        assert shown(read(cut(kept, places))) == whole[: last + at_an_end]
        return
    try:
        found = shown(read(cut(kept, places)))
    except ValueError:
        assert last == 0
    else:
        assert found[:last] == whole[:last]
        assert found[last:] in ([(str(last), None, UNREADABLE)], [("", None, UNREADABLE)])


def test_half_a_character_costs_no_row() -> None:
    """A row with half of a character in it, as answers that were cut off may have, keeps all the rest."""
    body = r'{"v": "\ud83d\ude00 \\ud800 \u00e9 \udc00", "n": 1.00, "w": "\ud83d"}'
    mended = r'{"v": "\ud83d\ude00 \\ud800 \u00e9 \ufffd", "n": 1.00, "w": "\ufffd"}'
    assert shown(read([line_of("a", body).encode()])) == [("a", mended.encode(), None)]


def iter_groups(groups: Sequence[Sequence[Row] | None]) -> Iterator[Sequence[Row] | None]:
    yield from groups


@given(
    st.integers(1, 6),
    st.lists(st.none() | st.lists(st.integers(0, 9), max_size=4), max_size=5),
    st.sampled_from(
        [("completed", "missing"), ("expired", "batch_expired"), ("cancelled", "batch_cancelled")]
    ),
)
def test_every_request_has_one_row(
    submitted: int, given_rows: list[list[int] | None], status_and_code: tuple[str, str]
) -> None:
    """Rows may be left out, given twice or of nobody's: each request has one, the first of its own."""
    status, code = status_and_code
    groups = [
        None if group is None else [Row(str(number), msgspec.Raw(b"{}")) for number in group]
        for group in given_rows
    ]
    ids = [str(number) for number in range(submitted)]
    batch = replace(BATCH, status=status)
    once = each_once(iter_groups(groups), batch=batch, promised=(0, 0), parts=lambda: [ids[:2], ids[2:]])
    rows = [row for group in once for row in group or ()]
    assert sorted(row.custom_id for row in rows) == ids
    first: dict[str, Row] = {}
    for row in (row for group in groups for row in group or ()):
        first.setdefault(row.custom_id, row)
    for row in rows:
        if row.custom_id in first:
            assert row is first[row.custom_id]
        else:
            assert row.error is not None
            assert row.error.code == code


def test_rows_are_counted_as_they_are_read() -> None:
    """Tokens and rows are summed up once, after the last row; a reader who stops before sums up nothing."""
    row = Row("a", msgspec.Raw(b'{"usage":{"prompt_tokens":2,"completion_tokens":3}}'))
    failed = Row("b", error=UNREADABLE)
    seen: list[tuple[Tokens, int, int, int]] = []

    def groups() -> Iterator[Sequence[Row] | None]:
        counts = Counts()
        yield from counts.counted(iter_groups([[row], None, [failed, row]]), "openai", "m")
        (counted,) = counts.of.values()
        seen.append((counted.tokens.tokens, counts.rows, counts.failed, counts.damaged))

    early = Results(groups())
    for _, _ in zip(range(3), early, strict=False):
        early.close()
    some = Results(groups(), status="failed")
    stopped = some.groups()
    while next(stopped) is None or seen:
        pass
    some.close()
    assert seen == []
    assert [row["custom_id"] for row in Results(groups(), status="failed")] == ["b"]
    assert seen == [(Tokens(4, 6, 0, 10), 3, 1, 1)]


def test_the_first_silence_is_heard() -> None:
    """Regression: the first byte came only after two beats without a row."""
    groups: list[Sequence[Row] | None] = [None, [Row("a", msgspec.Raw(b"{}"))], [Row("b", error=UNREADABLE)]]

    def results() -> Results:
        return Results(iter_groups(groups), keep_waiting=lambda: False)

    assert next(json_stream(results())) == b'{"results": [ '
    assert next(ndjson_stream(results())) == b"\n"
    rows = json.loads(b"".join(json_stream(results())))["results"]
    assert [row["custom_id"] for row in rows] == ["a", "b"]


@pytest.mark.parametrize("seen", [True, False])
def test_an_answer_begins_when_nobody_is_seen_to_wait(
    ada: FlaskClient, llm_provider: Simulator, seen: bool
) -> None:
    """White space before the first row goes to a caller who hung up, or whom the server does not show."""
    path, _ = finished(ada, llm_provider)
    llm_provider.delay_next(30, on="GET /files", after=0)
    connection, caller = socket.socketpair()
    caller.close()
    with connection:
        shown = {"werkzeug.socket": connection if seen else None}
        answer = ada.get(path, environ_overrides=shown, buffered=False)
    assert next(answer.iter_encoded()) == b'{"results": [ '
    answer.close()


def finished(client: FlaskClient, simulator: Simulator, count: int = 4) -> tuple[str, SimulatedBatch]:
    """Return the path of the results of a batch that has ended, and the batch."""
    batch_id = create_batch(client, count)
    batch = simulator.batches[-1]
    batch.finish()
    return f"/v1/batches/{batch_id}/results", batch


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line]


@pytest.mark.parametrize(
    ("accept", "mimetype"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("application/json", "application/json"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/jsonl", "application/jsonl"),
        ("application/x-ndjson, */*", "application/x-ndjson"),
        ("application/x-ndjson;q=0.4, application/json;q=0.5", "application/json"),
        ("application/json;q=0.4, application/jsonl;q=0.5", "application/jsonl"),
        ("application/jsonl;q=0, */*;q=0.1", "application/json"),
    ],
)
def test_accept_says_what_rows_are(
    ada: FlaskClient, llm_provider: Simulator, accept: str | None, mimetype: str
) -> None:
    """Rows are JSON unless lines of JSON are wanted more."""
    path, _ = finished(ada, llm_provider)
    answer = ada.get(path, headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.mimetype) == (200, mimetype)
    rows = answer.get_json()["results"] if mimetype == "application/json" else rows_of(answer.text)
    assert sorted(row["custom_id"] for row in rows) == ["r0", "r1", "r2", "r3"]
    assert all(list(row) == ["custom_id", "result", "error"] for row in rows)


@pytest.mark.parametrize("headers", [{}, NDJSON])
def test_rows_are_chosen_by_status(
    ada: FlaskClient, llm_provider: Simulator, headers: dict[str, str]
) -> None:
    """``?status=`` gives the rows with a result, or those with an error; another one is a 422."""
    good = llm_provider.respond
    llm_provider.respond = lambda line: (
        (400, {"error": {"message": "no", "code": "bad"}})
        if line["custom_id"] in ("r1", "r2")
        else good(line)
    )
    path, _ = finished(ada, llm_provider)
    for status, ids in (("failed", ["r1", "r2"]), ("succeeded", ["r0", "r3"])):
        answer = ada.get(f"{path}?status={status}", headers=headers)
        rows = rows_of(answer.text) if headers else answer.get_json()["results"]
        assert sorted(row["custom_id"] for row in rows) == ids
        assert all((row["error"] is None) == (status == "succeeded") for row in rows)
    for status in ("other", "", "Failed"):
        answer = ada.get(f"{path}?status={status}", headers=headers)
        assert answer.status_code == 422
        assert answer.get_json()["detail"][0]["loc"] == ["query", "status"]


def test_odd_downloads_give_every_row_once(
    ada: FlaskClient, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Missing, repeated, unknown and unreadable rows still lead to one row for each request."""
    path, batch = finished(ada, llm_provider, 5)
    batch.outcomes["succeeded"] = 3
    by_id = {json.loads(line)["custom_id"]: line for line in batch.output}
    batch.output[:] = [
        b"\xff{\n",
        by_id["r0"],
        by_id["r1"],
        by_id["r0"],
        by_id["r2"].replace(b'"r2"', b'"nobody"', 1).replace(b'custom_id":"r2"', b'custom_id":"nobody"'),
        b'{"custom_id": "r3", "response": {"status_code": 200, "body": {"v": \n',
        by_id["r3"],
        b"not JSON\n",
    ]
    rows = ada.get(path).get_json()["results"]
    errors = {row["custom_id"]: (row["error"] or {}).get("code") for row in rows}
    assert len(rows) == 5
    assert errors == {"r0": None, "r1": None, "r2": "missing", "r3": "unreadable", "r4": "missing"}
    assert "5 rows are left out" in caplog.text


def test_a_page_instead_of_rows_is_an_error(ada: FlaskClient, llm_provider: Simulator) -> None:
    """A download without any row of a request, as from a proxy, is a 502 and not a row of nobody's."""
    path, batch = finished(ada, llm_provider)
    batch.output[:] = [b"<html>\n", b"<body>secret-words</body>\n", b"</html>"]
    answer = ada.get(path)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")
    assert "secret-words" not in answer.text


def test_usage_is_counted_over_all_rows_once(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """The first full fetch accounts for all rows, also when only some are asked for; no later one does."""
    path, batch = finished(ada, llm_provider)
    tokens = sum(json.loads(line)["response"]["body"]["usage"]["total_tokens"] for line in batch.output)
    events: list[Any] = []
    with usage_recorded.connected_to(lambda _app, usage: events.append(usage), sender=app):
        assert ada.head(path).status_code == 200
        assert events == []
        assert ada.get(f"{path}?status=failed").get_json() == {"results": []}
        assert ada.get(path).status_code == 200
    (event,) = events
    assert event["total_tokens"] == tokens > 0
    assert (event["event"], event["owner"], event["requests"]) == ("results", "ada", 4)


def test_head_downloads_nothing(ada: FlaskClient, llm_provider: Simulator) -> None:
    """HEAD says whether there are results; of a batch that has ended the provider hears nothing."""
    running = create_batch(ada)
    answer = ada.head(f"/v1/batches/{running}/results")
    assert (answer.status_code, answer.headers["Retry-After"]) == (409, "30")
    path, _ = finished(ada, llm_provider)
    ada.get(path.removesuffix("/results"))
    llm_provider.calls.clear()
    for kind in ("application/json", "application/x-ndjson"):
        answer = ada.head(path, headers={"Accept": kind})
        assert (answer.status_code, answer.mimetype, answer.data) == (200, kind, b"")
        assert "Content-Length" not in answer.headers
    assert llm_provider.calls == []


def test_who_stops_early_accounts_for_nothing(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """A caller who hangs up halfway is not accounted, and ends the download; the next full fetch is."""
    path, batch = finished(ada, llm_provider)
    llm_provider.delay_next(30, on="GET /files", after=len(batch.output[0]))
    events: list[Any] = []
    with usage_recorded.connected_to(lambda _app, usage: events.append(usage), sender=app):
        answer = ada.get(path, headers=NDJSON, buffered=False)
        assert rows_of(next(answer.iter_encoded()).decode())
        answer.close()
        assert events == []
        assert len(rows_of(ada.get(path, headers=NDJSON).text)) == 4
    assert len(events) == 1


def test_the_hosts_own_code_reads_rows(app: Flask, ada: FlaskClient, llm_provider: Simulator) -> None:
    """``results`` yields a dict for every row in the host's own code, too."""
    path, _ = finished(ada, llm_provider)
    with app.app_context():
        rows = list(current_llm_batches.results(path.split("/")[3], owner="ada", status="succeeded"))
    assert sorted(row["custom_id"] for row in rows) == ["r0", "r1", "r2", "r3"]
    assert all(row["error"] is None and row["result"]["usage"] for row in rows)


def test_a_record_that_is_away_at_the_end_takes_no_row(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Results end properly though they cannot be accounted for; the next read of them does that."""
    path, _ = finished(ada, llm_provider)
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
    events: list[Any] = []
    with usage_recorded.connected_to(lambda _app, usage: events.append(usage), sender=app):
        for table, other in (("usage", "away"), ("away", "usage")):
            with engine.begin() as connection:
                connection.execute(text(f"ALTER TABLE llm_batches_{table} RENAME TO llm_batches_{other}"))
            answer = ada.get(path)
            assert answer.status_code == 200
            assert len(answer.get_json()["results"]) == 4
            assert len(events) == (table == "away")
    assert "its results are not accounted for yet" in caplog.text


@pytest.mark.parametrize("fault", ["dropped", "refused", "gone", "cut", "a page"])
def test_a_download_that_failed_leaves_no_reference_cycle(
    app: Flask, ada: FlaskClient, llm_provider: Simulator, fault: str
) -> None:
    """Connections and rows of a failed download are free at once, without the garbage collector."""
    path, batch = finished(ada, llm_provider)
    faults: dict[str, Callable[..., None]] = {
        "dropped": llm_provider.drop_next,
        "refused": llm_provider.fail_next,
        "gone": partial(llm_provider.fail_next, 404),
        "cut": partial(llm_provider.drop_next, after=len(batch.output[0]) + 5),
        "a page": partial(llm_provider.fail_next, 200, body="<html>"),
    }

    def fail() -> None:
        faults[fault](on="GET /files")
        with app.app_context(), suppress(LLMBatchesError):
            list(current_llm_batches.results(path.split("/")[3], owner="ada"))
            pytest.fail("no error")

    # Rows and frames of ours count: those of anyio are in a cycle of their own when it had to connect again.
    left = left_in_cycles(fail, Row)
    assert [one for one in left if isinstance(one, Row) or "/flask_llm_batches/" in str(one)] == []
