"""A body within the limit takes a bounded multiple of the limit, whatever is in it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.hosts import create_host, dispose
from tests.json_texts import values
from tests.memory import LIMIT, TIMES
from tests.test_body import LINES

pytestmark = pytest.mark.slow

logger = logging.getLogger(__name__)

JSON = "application/json"
EXAMPLES = int(os.environ.get("TEST_MEMORY_EXAMPLES", "12"))

_LINE = '{"custom_id":"a","body":{'
_CHAT = '"max_tokens":9,"messages":['
PLACES = {
    "top": ('{"model":"openai:m",', '"x":1,"requests":[' + _LINE + "}}]}"),
    "metadata": ('{"model":"openai:m","metadata":{', '"x":""},"requests":[' + _LINE + "}}]}"),
    "requests": ('{"model":"openai:m","requests":[', _LINE + "}}]}"),
    "request": ('{"model":"openai:m","requests":[{', '"custom_id":"a","body":{}}]}'),
    "method": ('{"model":"openai:m","requests":[{"custom_id":"a","body":{},"method":[', "1]}]}"),
    "id": ('{"model":"openai:m","requests":[{"body":{},"custom_id":"', '"}]}'),
    "body": ('{"model":"openai:m","requests":[' + _LINE, '"x":1}}]}'),
    "text": ('{"model":"openai:m","requests":[' + _LINE + '"input":"', '"}}]}'),
    "messages": ('{"model":"anthropic:m","requests":[' + _LINE + _CHAT, '{"role":"user"}]}}]}'),
    "message": ('{"model":"anthropic:m","requests":[' + _LINE + _CHAT + "{", '"role":"system"}]}}]}'),
    "blocks": (
        '{"model":"anthropic:m","requests":[' + _LINE + _CHAT + '{"role":"system","content":""},'
        '{"role":"system","content":[',
        "1]}]}}]}",
    ),
}
"""Where in a body something may be that is long: what comes before, and what comes after."""

UNITS = ["{},", "[],", "1,", '"",', '"#":1,', '"#":{},', " ", "\n", "x", "😀", "\\ud83d\\ude00", "[", '{"":']

NEXT = {JSON: ",", LINES: "\n"}
SIZES = [1, 16, 64, LIMIT >> 20]

Ask = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A process with little memory: it is given a body, and returns the status and the MiB that it took."""
    folder = tmp_path_factory.mktemp("memory")
    database = f"sqlite:///{folder / 'host.sqlite3'}"
    dispose(create_host(database=database))
    environment = {
        **os.environ,
        "HOST_DATABASE": database,
        "HOST_SPOOL": str(folder),
        "MALLOC_ARENA_MAX": "1",  # each one takes 64 MiB of addresses
        "MALLOC_TRIM_THRESHOLD_": "131072",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.memory"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        reader, writer = process.stdout, process.stdin
        assert reader.readline() == "ready\n"

        def send(*body: str | int) -> tuple[int, int]:
            writer.write(json.dumps(body) + "\n")
            writer.flush()
            status, took = json.loads(reader.readline())
            return status, took

        yield send
        writer.close()


@given(
    kind=st.sampled_from([JSON, LINES]),
    place=st.sampled_from(sorted(PLACES)),
    unit=st.sampled_from(UNITS) | values(" ").map(lambda value: f"{value},"),
    size=st.sampled_from(SIZES),
    several=st.booleans(),
)
@example(kind=JSON, place="top", unit='"#":1,', size=256, several=False)
@example(kind=JSON, place="requests", unit="1,", size=256, several=False)
@example(kind=JSON, place="requests", unit='{"custom_id":"#","body":{}},', size=256, several=False)
@example(kind=JSON, place="request", unit='"#":1,', size=256, several=False)
@example(kind=JSON, place="method", unit="{},", size=256, several=False)
@example(kind=JSON, place="id", unit="😀", size=256, several=False)
@example(kind=JSON, place="body", unit='"#":1,', size=256, several=False)
@example(kind=JSON, place="text", unit="\n", size=256, several=False)
@example(kind=JSON, place="messages", unit="{},", size=256, several=False)
@example(kind=JSON, place="message", unit='"#":1,', size=256, several=False)
@example(kind=JSON, place="blocks", unit="1,", size=256, several=False)
@example(kind=LINES, place="body", unit='"#":1,', size=256, several=False)
@example(kind=LINES, place="text", unit="x", size=256, several=False)
@example(kind=JSON, place="body", unit='"#":1,', size=256, several=True)
@example(kind=JSON, place="text", unit="x", size=256, several=True)
@example(kind=JSON, place="text", unit="\\ud83d\\ude00", size=256, several=True)
@example(kind=JSON, place="messages", unit='{"role":"user","content":""},', size=256, several=True)
@example(kind=JSON, place="blocks", unit="{},", size=256, several=True)
@example(kind=LINES, place="text", unit="x", size=256, several=True)
@example(kind=LINES, place="messages", unit="{},", size=256, several=True)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_body_takes_more_than_three_times_the_limit(
    ask: Ask, kind: str, place: str, unit: str, size: int, several: bool
) -> None:
    """Regression: 60 KB of gzip, 256 MiB unpacked, took 1.4 to 4.3 GB."""
    head, tail = PLACES[place]
    begin, end = head[head.find("[") + 1 :], tail[: tail.rfind("]")]
    if kind == LINES:
        head, tail = begin or _LINE, end
    between = ""
    if several and begin.startswith("{") and place not in ("top", "metadata"):
        between = end + (NEXT[kind]) + begin.replace('"custom_id":"a"', '"custom_id":"a#"')
    status, took = ask(kind, size, head, unit, between, tail)
    logger.warning("%d MiB of %s, %s of %r: %d, %d MiB", size, kind, place, unit, status, took)
    assert status in (200, 400, 413, 422, 502, 504), "not an answer of ours"
    assert took < TIMES * LIMIT >> 20
