"""Downloads that never end, or unpack to very many bytes."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.wrappers import Response

from flask_llm_batches.batch import LONGEST_ROW, TOO_LARGE, Row
from flask_llm_batches.jsonl import Lines
from flask_llm_batches.providers.downloads import unpacked
from flask_llm_batches.providers.rows import read_rows
from flask_llm_batches.testing import Simulator
from flask_llm_batches.testing.simulator import Call
from flask_llm_batches.web.stream import ResultsInterrupted
from tests.conftest import MakeHost, create_batch
from tests.hosts import requests
from tests.json_texts import cut
from tests.test_results import BATCH, Reader, line_of

MEBI = 1 << 20


def read(chunks: Iterable[bytes], beat: float = 9) -> Iterator[Sequence[Row] | None]:
    return read_rows(chunks, Reader(), BATCH, beat=beat)


@given(
    st.lists(st.binary(max_size=9).filter(lambda line: b"\n" not in line), max_size=9),
    st.lists(st.integers(0, 80)),
    st.integers(0, 9),
)
def test_lines_that_are_too_long_are_cut(lines: list[bytes], places: list[int], longest: int) -> None:
    """A line above the limit is cut one byte after it, in whatever chunks it comes; other lines are whole."""
    split = Lines(longest)
    found = [line for chunk in cut(b"\n".join(lines), places) for line in split.feed(chunk)]
    assert [line[: longest + 1] for line in [*found, split.rest()]] == [
        line[: longest + 1] for line in lines or [b""]
    ]
    assert len(split.rest()) <= longest + 1


def test_a_row_that_is_too_large_is_an_error() -> None:
    """It costs no other row, is not kept whole, and says so."""
    start, end = line_of("a", '{"v": "<>"}').encode().split(b"<>")
    large = [start, *repeat(b"x" * MEBI, LONGEST_ROW // MEBI), end, b"\n", line_of("b", "{}").encode()]
    rows = [row for group in read(large) for row in group or ()]
    assert [(row.custom_id, row.error) for row in rows] == [("a", TOO_LARGE), ("b", None)]
    assert not TOO_LARGE.retryable


@pytest.mark.parametrize(
    "junk",
    [b"x" * MEBI, (b" " * 99 + b"\n") * 10_000, b"{}\n" * 9, b'{"custom_id":""}\n' * 9],
    ids=["a line", "blank lines", "objects", "rows"],
)
@pytest.mark.parametrize("begun", [False, True])
def test_junk_without_an_end_ends(junk: bytes, begun: bool) -> None:
    """A line without an end, blank lines and rows of unknown requests are an error after a limit."""
    read_so_far = []

    def chunks() -> Iterator[bytes]:
        if begun:
            yield line_of("a", "{}").encode() + b"\n"
        for chunk in repeat(junk):
            read_so_far.append(len(chunk))
            yield chunk

    with pytest.raises(ValueError, match="too much that is no row"):
        list(read(chunks()))
    assert sum(read_so_far) <= LONGEST_ROW + 65 * MEBI + len(junk)
    assert len(read_so_far) * junk.count(b"{") <= 10_000 + 9


def test_a_caller_is_thought_of_while_junk_flows() -> None:
    """At every beat without a row there is a None, even if junk arrives."""
    chunks = [b"\n", b"{}\n", b"x", line_of("a", "{}").encode()]
    assert [group and len(group) for group in read(chunks, beat=0)] == [None, None, None, None, 2]


class Packed:
    """A response of httpx's, as far as it matters."""

    def __init__(self, encoding: str, chunks: Iterable[bytes]) -> None:
        self.headers = {"Content-Encoding": encoding}
        self.chunks = chunks

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk


def unpack(encoding: str, chunks: Iterable[bytes]) -> list[bytes]:
    async def collect() -> list[bytes]:
        return [piece async for piece in unpacked(Packed(encoding, chunks))]

    return asyncio.run(collect())


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.lists(st.integers(0, 900), max_size=9))
def test_gzip_is_unpacked(members: list[bytes], places: list[int]) -> None:
    """A download packed by gzip, in one member or several, is what was packed, however it is cut."""
    packed = b"".join(map(gzip.compress, members))
    assert b"".join(unpack("GZIP ", cut(packed, places))) == b"".join(members)


def test_a_bomb_comes_in_small_pieces() -> None:
    """However much a chunk unpacks to, at most 64 KiB of it are in memory."""
    pieces = unpack("gzip", [gzip.compress(bytes(20 * MEBI))])
    assert sum(map(len, pieces)) == 20 * MEBI
    assert max(map(len, pieces)) == 1 << 16


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
        ("deflate", zlib.compress),
        ("br", bytes),
        ("gzip", bytes),
    ],
    ids=["twice", "deflate", "br", "not at all"],
)
@pytest.mark.parametrize("provider", ["openai", "anthropic", "mistral"])
def test_other_packing_is_refused(
    make_host: MakeHost,
    llm_provider: Simulator,
    provider: str,
    encoding: str,
    pack: Callable[[bytes], bytes],
) -> None:
    """What is packed twice, otherwise than by gzip, or not to its end is a failure of the provider's."""
    client, path = finished_at(make_host(providers=llm_provider.providers), llm_provider, provider)

    def rewrite(call: Call, response: Response) -> Response:
        if "/content" in call.path or "/results" in call.path:
            response.data = pack(response.data)
            response.headers["Content-Encoding"] = encoding
        return response

    llm_provider.rewrite = rewrite
    answer = client.get(path)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")
    download = llm_provider.calls[-1]
    assert download.headers["Accept-Encoding"] == "gzip"
    encoding, pack = "gzip", gzip.compress
    assert len(client.get(path).get_json()["results"]) == 3
    pack = partial(_cut, by=9)  # at the end of its gzip, after all rows
    with pytest.raises(ResultsInterrupted):
        client.get(path).get_data()


@pytest.mark.parametrize("kind", ["bomb", "long", "in layers"])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "mistral"])
def test_an_answer_that_is_no_download_is_limited(
    make_host: MakeHost, llm_provider: Simulator, provider: str, kind: str
) -> None:
    """Regression: 600 KB of gzip in the answer to a retrieve took gigabytes of memory."""
    client, path = finished_at(make_host(providers=llm_provider.providers), llm_provider, provider)

    def rewrite(call: Call, response: Response) -> Response:
        if kind == "in layers":
            response.data = gzip.compress(gzip.compress(response.data))
            response.headers["Content-Encoding"] = "gzip, gzip"
        else:
            response.data += b" " * (40 * MEBI)
        if kind == "bomb":
            response.data = gzip.compress(response.data)
            response.headers["Content-Encoding"] = "gzip"
        return response

    llm_provider.rewrite = rewrite
    answer = client.get(path.removesuffix("/results"))
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (502, "provider_error")


def _cut(data: bytes, *, by: int) -> bytes:
    return gzip.compress(data)[:-by]


def finished_at(app: Flask, simulator: Simulator, provider: str) -> tuple[FlaskClient, str]:
    """Return a client, and the path of the results of a batch that has ended."""
    client = app.test_client()
    client.environ_base["HTTP_X_USER"] = "ada"
    batch_id = create_batch(client, model=f"{provider}:m", requests=requests(3, max_tokens=9))
    simulator.batches[-1].finish()
    return client, f"/v1/batches/{batch_id}/results"
