"""Requests become a JSONL file on disk in one pass, or an error that says which of them is wrong."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flask_llm_batches.core.spool import MAX_ERRORS, spooled
from flask_llm_batches.errors import ValidationFailed


def spool(requests: bytes | list[Any], folder: Path, max_requests: int = 1000) -> bytes:
    raw = msgspec.Raw(requests) if isinstance(requests, bytes) else requests
    with spooled(
        raw, model="m", endpoint="/v1/chat/completions", max_requests=max_requests, folder=str(folder)
    ) as file:
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        data = file.path.read_bytes()
        assert file.requests == data.count(b"\n")
    return data


def errors(requests: bytes | list[Any], folder: Path, **options: int) -> Any:
    with pytest.raises(ValidationFailed) as caught:
        spool(requests, folder, **options)
    assert not list(folder.iterdir())
    return caught.value.messages["requests"]


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
    ("request_json", "wrong"),
    [
        (b"3", ["Not a valid mapping type."]),
        (b"null", ["Not a valid mapping type."]),
        (b"{}", {"custom_id": ["Missing data for required field."]}),
        (b'{"custom_id":3,"body":{}}', {"custom_id": ["Not a valid string."]}),
        (b'{"custom_id":null,"body":{}}', {"custom_id": ["Not a valid string."]}),
        (b'{"custom_id":"","body":{}}', {"custom_id": ["Shorter than minimum length 1."]}),
        (b'{"custom_id":"x","body":[]}', {"body": ["Not a valid mapping type."]}),
        (b'{"custom_id":"x"}', {"body": ["Missing data for required field."]}),
        (b'{"custom_id":"good","body":{}}', {"custom_id": ["Not unique: request 0 has the same one."]}),
        (b'{"custom_id":"x","body":{"v":"\xff"}}', ["Not valid UTF-8: invalid start byte at byte 30."]),
    ],
)
def test_wrong_requests_are_named(tmp_path: Path, request_json: bytes, wrong: object) -> None:
    """Each wrong request is named by its index, in marshmallow's form."""
    assert errors(b'[{"custom_id":"good","body":{}},' + request_json + b"]", tmp_path) == {1: wrong}


@pytest.mark.parametrize("body", [{"v": float("nan")}, {"v": object()}, {"v": "\ud800"}])
def test_objects_that_are_no_json_are_named(tmp_path: Path, body: dict[str, Any]) -> None:
    """NaN, objects of other kinds and lone surrogates cannot be sent, and are named by index."""
    ((index, (message,)),) = errors([{"custom_id": "a", "body": body}], tmp_path).items()
    assert index == 0
    assert "Not" in message


def test_only_so_many_are_named(tmp_path: Path) -> None:
    """Of very many wrong requests the first are named, and the others counted."""
    messages = errors([{}] * (MAX_ERRORS + 7), tmp_path)
    assert len(messages) == MAX_ERRORS + 1
    assert messages["_schema"] == ["7 more requests are wrong."]


def test_too_few_and_too_many(tmp_path: Path) -> None:
    """No request at all, and more than allowed, are errors of the whole."""
    good = [{"custom_id": str(number), "body": {}} for number in range(3)]
    assert errors([], tmp_path) == ["Shorter than minimum length 1."]
    assert errors(good, tmp_path, max_requests=2) == ["Longer than maximum length 2."]
    spool(good, tmp_path, max_requests=3)


def test_the_file_is_gone_whatever_happens(tmp_path: Path) -> None:
    """An exception in the block, even one that ends the process, leaves no file."""
    for kind in (RuntimeError, KeyboardInterrupt, SystemExit):
        with (
            pytest.raises(kind),
            spooled(
                [{"custom_id": "a", "body": {}}],
                model="m",
                endpoint="/v1/x",
                max_requests=1,
                folder=str(tmp_path),
            ) as file,
        ):
            assert list(tmp_path.iterdir()) == [file.path]
            raise kind
    assert not list(tmp_path.iterdir())
