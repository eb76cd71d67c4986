"""Requests become a JSONL file on disk in one pass, or an error that says which of them is wrong."""

from __future__ import annotations

import json
import stat
import tempfile
import tracemalloc
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llm_batches.config import Settings
from flask_llm_batches.core.numbers import Numbers
from flask_llm_batches.core.requests import MAX_ERRORS, Incoming
from flask_llm_batches.core.spool import Model, Route, Splitting, Spool, spooled
from flask_llm_batches.errors import ValidationFailed
from flask_llm_batches.jsonl import split_lines
from flask_llm_batches.providers.adapters import Adapter
from flask_llm_batches.untrusted import is_longer
from tests.json_texts import bodies, cut, digits_kept


def spool_of(
    requests: Any, folder: Path, max_requests: int = 1000, adapter: type[Adapter] = Adapter
) -> AbstractContextManager[Spool]:
    return spooled(
        Incoming(requests, limit=max_requests),
        model=Model("m", "p:m", is_given=True),
        endpoint="/v1/chat/completions",
        provider="p",
        adapter=adapter,
        settings=Settings(max_requests=max_requests, spool_dir=str(folder)),
        splitting=Splitting(None, lambda _: None, lambda name: Route("p", name, adapter)),
    )


def spool(requests: bytes | list[Any], folder: Path, max_requests: int = 1000) -> bytes:
    raw = msgspec.Raw(requests) if isinstance(requests, bytes) else requests
    with spool_of(raw, folder, max_requests) as file:
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        data = file.path.read_bytes()
        assert len(file.custom_ids) == data.count(b"\n")
    return data


def errors(
    requests: bytes | list[Any], folder: Path, **options: int
) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(ValidationFailed) as caught:
        spool(requests, folder, **options)
    assert not list(folder.iterdir())
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_every_request_is_a_line(tmp_path: Path) -> None:
    """A pretty-printed array becomes one compact line a request, with the model over the body's own."""
    data = spool(
        b'[ {"custom_id": "a",\n "body": {"model": "x",\r\n\t"n": [1, 2]}},\n{"body":{}, "custom_id":"b"}]',
        tmp_path,
    )
    assert [json.loads(line) for line in data.splitlines()] == [
        {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "n": [1, 2]},
        },
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}},
    ]


@pytest.mark.parametrize(
    "value",
    [
        "123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        "1e400",
        "-0",
        '"\\u2028\u2028\\u0000\\ud83d\\ude00"',
        '"\\/"',
        '{"a":1,"a":2}',
    ],
)
def test_values_are_passed_on_as_they_came(tmp_path: Path, value: str) -> None:
    """Numbers keep every digit, and strings every escape."""
    data = spool(f'[{{"custom_id": "a", "body": {{"v": {value}}}}}]'.encode(), tmp_path)
    assert f'"v":{value}'.encode() in data


def test_the_hosts_own_objects_are_written_too(tmp_path: Path) -> None:
    """Requests may be Python objects, with integers of any size."""
    data = spool([{"custom_id": "ü", "body": {"v": 10**40}}], tmp_path)
    assert json.loads(data)["body"]["v"] == 10**40
    assert json.loads(data)["custom_id"] == "ü"


@pytest.mark.parametrize(
    ("request_json", "field", "message"),
    [
        (b"3", "", "Not a valid mapping type."),
        (b"null", "", "Not a valid mapping type."),
        (b"{}", "custom_id", "Missing data for required field."),
        (b'{"custom_id":3,"body":{}}', "custom_id", "Not a valid string."),
        (b'{"custom_id":null,"body":{}}', "custom_id", "Not a valid string."),
        (b'{"custom_id":"","body":{}}', "custom_id", "Shorter than minimum length 1."),
        (b'{"custom_id":"x","body":[]}', "body", "Not a valid mapping type."),
        (b'{"custom_id":"x"}', "body", "Missing data for required field."),
        (b'{"custom_id":"good","body":{}}', "custom_id", "Not unique: request 0 has the same one."),
        (b'{"custom_id":"x","body":{"v":"\xff"}}', "", "Not valid UTF-8: invalid start byte at byte 30."),
    ],
)
def test_wrong_requests_are_named(tmp_path: Path, request_json: bytes, field: str, message: str) -> None:
    """Each wrong request is named by its index and its field."""
    path = ("requests", 1, field) if field else ("requests", 1)
    assert errors(b'[{"custom_id":"good","body":{}},' + request_json + b"]", tmp_path) == [(path, message)]


@pytest.mark.parametrize("body", [{"v": float("nan")}, {"v": object()}, {"v": "\ud800"}])
def test_objects_that_are_no_json_are_named(tmp_path: Path, body: dict[str, Any]) -> None:
    """NaN, objects of other kinds and lone surrogates cannot be sent, and are named by index."""
    ((path, message),) = errors([{"custom_id": "a", "body": body}], tmp_path)
    assert path == ("requests", 0)
    assert "Not" in message


def test_only_so_many_are_named(tmp_path: Path) -> None:
    """Of very many wrong requests the first are named, and the others counted."""
    messages = errors([{}] * (MAX_ERRORS + 7), tmp_path)
    assert len(messages) == MAX_ERRORS + 1
    assert messages[-1] == (("requests",), "7 more requests are wrong.")


def test_too_few_and_too_many(tmp_path: Path) -> None:
    """No request at all, and more than allowed, are errors of the whole."""
    good = [{"custom_id": str(number), "body": {}} for number in range(3)]
    assert errors([], tmp_path) == [(("requests",), "Shorter than minimum length 1.")]
    assert errors(good, tmp_path, max_requests=2) == [
        (("requests",), "Longer than maximum length 2, the limit of this server.")
    ]
    spool(good, tmp_path, max_requests=3)


def test_a_high_limit_costs_nothing() -> None:
    """Regression: one request took 190 MB when 5 million were allowed."""
    one = b'[{"custom_id": "r", "body": {"text": "%b"}}]' % (b"x" * 20_000_000)
    tracemalloc.start()
    try:
        assert not is_longer(one, 5_000_000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_the_file_is_gone_whatever_happens(tmp_path: Path) -> None:
    """An exception in the block, even one that ends the process, leaves no file."""
    for kind in (RuntimeError, KeyboardInterrupt, SystemExit):
        with (
            pytest.raises(kind),
            spool_of([{"custom_id": "a", "body": {}}], tmp_path) as file,
        ):
            assert list(tmp_path.iterdir()) == [file.path]
            raise kind
    assert not list(tmp_path.iterdir())


def _sent(data: bytes) -> list[Any]:
    lines = data.decode().split("\n")
    assert lines.pop() == ""
    return [dict(digits_kept(line))["body"] for line in lines]


def _with_model(body: str) -> list[Any]:
    """Return what should be sent: the last value of a key that appears twice, and the model of the batch."""
    return sorted((dict(digits_kept(body)) | {"model": "m"}).items())


@given(st.lists(bodies(" \t\r\n"), min_size=1, max_size=4))
def test_any_array_is_passed_on(requests: list[str]) -> None:
    """Every value goes on as it came, on one line, whatever stands in it and however it is laid out."""
    items = [f'\n{{"custom_id":\t"{number}"\r\n,"body": {body}}}' for number, body in enumerate(requests)]
    with tempfile.TemporaryDirectory() as folder:
        data = spool(f"[{','.join(items)} ]".encode(), Path(folder))
    assert [sorted(map(tuple, body)) for body in _sent(data)] == [*map(_with_model, requests)]


@given(
    st.lists(bodies(" \t\r"), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n", "\n\n", "\n \t\r\n"]),
    st.lists(st.integers(0, 1000)),
)
def test_any_lines_are_passed_on(requests: list[str], end: str, places: list[int]) -> None:
    """JSONL makes the same file however its bytes are cut into chunks and its lines end."""
    items = [f'{{"custom_id": "{number}", "body":{body}}}{end}' for number, body in enumerate(requests)]
    with tempfile.TemporaryDirectory() as folder:
        data = spool(list(split_lines(cut("".join(items).encode(), places))), Path(folder))
    assert [sorted(map(tuple, body)) for body in _sent(data)] == [*map(_with_model, requests)]


@given(bodies(" \r"), st.integers(1, 1000))
def test_a_truncated_line_is_named(body: str, missing: int) -> None:
    """A last line that lacks its end is an error with its number."""
    line = f'{{"custom_id":"b","body":{body}}}'.encode()
    lines = [b'{"custom_id":"a","body":{}}', line[: -(missing % (len(line) - 1) + 1)]]
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(ValidationFailed) as caught:
            spool(lines, Path(folder))
        assert not list(Path(folder).iterdir())
    assert [path[:2] for path, *_ in caught.value.problems] == [("lines", 2)]


@pytest.mark.parametrize("text", [rb"\ud800", rb"\udc00", rb"\ud800\ud800", rb"\ud800x"])
@pytest.mark.parametrize("line", [b'{"custom_id":"%b","body":{}}', b'{"custom_id":"a","body":{"v":["%b"]}}'])
def test_lone_surrogates_are_refused(tmp_path: Path, text: bytes, line: bytes) -> None:
    """Half of a character cannot be sent, and is named by its line."""
    with pytest.raises(ValidationFailed) as caught:
        spool([line % text], tmp_path)
    assert [path[:2] for path, *_ in caught.value.problems] == [("lines", 1)]


@pytest.mark.parametrize("array", [b"[{]", b"{}", b"[" * 100_000, rb'[{"custom_id":"\ud800"}]'])
def test_the_hosts_own_bytes_are_an_array(tmp_path: Path, array: bytes) -> None:
    """Regression: bytes of the host's own that are no JSON array came out as the parser's error."""
    ((_, message),) = errors(array, tmp_path)
    assert message.startswith("Not valid JSON: ")


def test_a_duplicate_is_found_among_many() -> None:
    """Every name is known by its first number, however many there are; each takes 36 bytes at most."""
    numbers = Numbers()
    names = [f"request-{number}" for number in range(100_000)]
    assert all(numbers.first(name, number) == number for number, name in enumerate(names, 1))
    assert all(numbers.first(name, 0) == number for number, name in enumerate(names, 1))
    assert 12 * len(numbers._keys) <= 36 * len(names)
