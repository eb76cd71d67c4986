"""The large calls: how long, how soon, and how much memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from openai import OpenAI

from flask_llm_batches.testing import Simulator
from tests.benchmarks.measure import Figure
from tests.benchmarks.servers import Contender, both, ours
from tests.benchmarks.upstream import ROW_BYTES
from tests.benchmarks.wire import MODEL, Answer, call, check_created, check_results, json_body, lines

COUNT = 50_000
MANY = 200_000
SIZE = 400  # bytes of a request, so 20 MB
LARGE_SIZE = 4_000  # 200 MB
ROUNDS = 5
NAIVE_ROUNDS = 3  # it is slow
MEMORY = "  extra memory, at most"

T = TypeVar("T")


@dataclass(frozen=True)
class Taken:
    """What one call took: seconds, and MB of the worker's memory."""

    seconds: float
    first_byte: float = 0.0
    first_row: float = 0.0
    peak: float = 0.0
    kept: float = 0.0


def bench_create(simulator: Simulator) -> list[Figure]:
    """Submit 50,000 requests as 20 MB of JSON."""
    body = json_body(COUNT, SIZE)

    def create(contender: Contender) -> Taken:
        return measured(contender, lambda: call(contender.url, method="POST", body=body), _created)

    with (
        tempfile.TemporaryDirectory() as folder,
        both(simulator, Path(folder)) as (our, naive),
        _bare_upload(simulator, SIZE) as upload,
    ):
        mine, obvious, alone = in_turns(
            (lambda: create(our), ROUNDS), (lambda: create(naive), NAIVE_ROUNDS), (upload, ROUNDS)
        )
    seconds = seconds_of(mine)
    whole = ("body", len(body) / 1e6)
    return [
        Figure(f"create {COUNT:,}, JSON", "s", seconds, seconds_of(obvious), bar="<= 0.25 x naive"),
        _share(alone, seconds),
        Figure("  extra memory, at most", "MB", peaks(mine), peaks(obvious), beside=whole, bar="<= 3 x body"),
        _kept(mine, obvious),
    ]


def bench_jsonl(simulator: Simulator) -> list[Figure]:
    """Submit 50,000 requests as 200 MB of JSONL, in chunks."""
    name = f"create {COUNT:,}, JSONL"
    body = b"\n".join(lines(COUNT, LARGE_SIZE))
    pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]

    def create(contender: Contender, pieces: list[bytes]) -> Answer:
        url = f"{contender.url}?model={MODEL}"
        return call(url, method="POST", kind="application/jsonl", body=pieces)

    with (
        tempfile.TemporaryDirectory() as folder,
        ours(simulator, Path(folder)) as our,
        _bare_upload(simulator, LARGE_SIZE) as upload,
    ):
        mine, alone = in_turns(
            (lambda: measured(our, lambda: create(our, pieces), _created), ROUNDS), (upload, ROUNDS)
        )
    seconds = seconds_of(mine)
    return [
        Figure(name, "s", seconds),
        _share(alone, seconds),
        Figure("  speed", "MB/s", [len(body) / 1e6 / one for one in seconds]),
        Figure(MEMORY, "MB", peaks(mine), bar="< 64 MB"),
        _kept(mine),
    ]


def bench_results(simulator: Simulator) -> list[Figure]:
    """Fetch 50,000 results, 42 MB at the provider, and 200,000."""
    with tempfile.TemporaryDirectory() as folder:
        with ours(simulator, Path(folder)) as our:  # not the worker that is measured
            batches = [our.create(COUNT) for _ in range(ROUNDS)]
            large = [our.create(MANY) for _ in range(ROUNDS)]

        with both(simulator, Path(folder)) as (our, naive):
            mine, obvious, alone = in_turns(
                (lambda: fetched(our, our.at(batches.pop(), "/results"), COUNT), ROUNDS),
                (
                    lambda: fetched(naive, naive.at(f"batch_{COUNT}_completed_x", "/results"), COUNT),
                    NAIVE_ROUNDS,
                ),
                (lambda: _bare_download(simulator, COUNT), ROUNDS),
            )
            many, many_alone = in_turns(
                (lambda: fetched(our, our.at(large.pop(), "/results"), MANY), ROUNDS),
                (lambda: _bare_download(simulator, MANY), ROUNDS),
            )
    return [
        *_results(COUNT, mine, obvious, alone, ("<= 0.125 x naive", "<= 100 ms", "<= 32 MB")),
        *_results(MANY, many, [], many_alone, ("", "", "<= 64 MB")),
    ]


def _results(
    count: int,
    ours: list[Taken],
    naive: list[Taken],
    alone: list[Taken],
    bars: tuple[str, str, str],
) -> list[Figure]:
    seconds = seconds_of(ours)
    first, naive_first = ([one.first_byte * 1000 for one in many] for many in (ours, naive))
    row, naive_row = ([one.first_row * 1000 for one in many] for many in (ours, naive))
    return [
        Figure(f"results of {count:,}", "s", seconds, seconds_of(naive), bar=bars[0]),
        _share(alone, seconds),
        Figure("  first byte", "ms", first, naive_first, bar=bars[1]),
        Figure("  first row", "ms", row, naive_row),
        Figure(MEMORY, "MB", peaks(ours), peaks(naive), bar=bars[2]),
        _kept(ours, naive),
    ]


def _share(alone: list[Taken], seconds: list[float]) -> Figure:
    whole = ("of it", statistics.median(seconds))
    return Figure("  the provider's share: bare SDK", "s", seconds_of(alone), beside=whole)


def _kept(ours: list[Taken], naive: Sequence[Taken] = ()) -> Figure:
    last, naive_last = ([one.kept for one in many[-1:]] for many in (ours, naive))
    return Figure("  memory kept after the last", "MB", last, naive_last)


def measured(contender: Contender, ask: Callable[[], Answer], check: Callable[[Answer], object]) -> Taken:
    """Measure one call."""
    contender.memory.reset()
    answer = ask()
    peak, kept = contender.memory.peak(), contender.memory.kept()
    check(answer)
    return Taken(answer.seconds, answer.first_byte, answer.first_row or 0.0, peak, kept)


def fetched(contender: Contender, url: str, count: int) -> Taken:
    """Fetch results, and check that they are all there."""
    return measured(contender, lambda: call(url), lambda answer: check_results(answer, count))


def _created(answer: Answer) -> None:
    check_created(answer, COUNT)


def in_turns(*contenders: tuple[Callable[[], T], int]) -> list[list[T]]:
    """Let each do its work so many times, one after the other, so that they see the same machine."""
    done: list[list[T]] = [[] for _ in contenders]
    for round_ in range(max(rounds for _, rounds in contenders)):
        for (work, rounds), one in zip(contenders, done, strict=True):
            if round_ < rounds:
                one.append(work())
    return done


def seconds_of(many: list[Taken]) -> list[float]:
    """Return the seconds of each."""
    return [one.seconds for one in many]


def peaks(many: list[Taken]) -> list[float]:
    # The most of all rounds, no median: a later call may get by with what an earlier one left behind.
    return [max(one.peak for one in many)] if many else []


@contextmanager
def _bare_upload(simulator: Simulator, size: int) -> Iterator[Callable[[], Taken]]:
    """Yield a function that times the upload of an existing file and the create."""
    head = b'{"method":"POST","url":"/v1/chat/completions",'
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file, _sdk(simulator) as client:
        file.writelines(head + line[1:] + b"\n" for line in lines(COUNT, size))
        file.flush()

        def upload() -> Taken:
            started = time.perf_counter()
            with Path(file.name).open("rb") as content:
                uploaded = client.files.create(file=content, purpose="batch")
            client.batches.create(
                input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            seconds = time.perf_counter() - started
            assert uploaded.id == f"file-{COUNT}", uploaded.id
            return Taken(seconds)

        upload()
        yield upload


def _bare_download(simulator: Simulator, count: int) -> Taken:
    """Time the download of an output file."""
    with _sdk(simulator) as client:
        client.batches.retrieve(f"batch_{count}_completed_x")
        started = time.perf_counter()
        with client.files.with_streaming_response.content(f"file-{count}") as answer:
            size = sum(len(piece) for piece in answer.iter_bytes())
        seconds = time.perf_counter() - started
    assert size == count * ROW_BYTES, size
    return Taken(seconds)


def _sdk(simulator: Simulator) -> OpenAI:
    return OpenAI(api_key=simulator.api_key, base_url=simulator.base_url)
