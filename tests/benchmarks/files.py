"""OpenAI's files: an upload beside a copy to disk, and a file of results beside our own NDJSON."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from flask_llm_batches.testing import Simulator
from tests.benchmarks.bulk import (
    COUNT,
    LARGE_SIZE,
    MEMORY,
    ROUNDS,
    Taken,
    in_turns,
    measured,
    peaks,
    seconds_of,
)
from tests.benchmarks.measure import Figure
from tests.benchmarks.servers import Contender, ours
from tests.benchmarks.wire import Answer, call, lines

_FORM = "multipart/form-data; boundary=B"
_HEAD = (
    b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
)
_TAIL = b"\r\n--B--\r\n"


def bench_files(simulator: Simulator) -> list[Figure]:
    """Upload 200 MB to the database and to a folder; read the output file of 50,000 rows."""
    content = b"\n".join(lines(COUNT, LARGE_SIZE))
    pieces = [content[at : at + 65536] for at in range(0, len(content), 65536)]
    stored = [figure for name in ("database", "folder") for figure in _uploads(simulator, name, pieces)]
    return [*stored, *_output(simulator)]


def _uploads(simulator: Simulator, name: str, pieces: list[bytes]) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        storage = name if name == "database" else f"file://{folder}"
        with ours(simulator, Path(folder), f"storage={storage!r}") as our:
            stored, copied = in_turns(
                (lambda: _upload(our, pieces), ROUNDS), (lambda: _copy(folder, pieces), ROUNDS)
            )
    beside = ("disk", statistics.median(seconds_of(copied)))
    return [
        Figure(f"upload of 200 MB, {name}", "s", seconds_of(stored), beside=beside),
        Figure(MEMORY, "MB", peaks(stored), bar="< 32 MB"),
    ]


def _output(simulator: Simulator) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, ours(simulator, Path(folder)) as our:
        batches = [our.create(COUNT) for _ in range(2 * ROUNDS)]
        files = [call(our.at(batch)).json()["output_file_id"] for batch in batches]
        content = f"{our.url.removesuffix('batches')}files/{{}}/content"
        one, other = in_turns(
            (lambda: measured(our, lambda: call(content.format(files.pop())), _whole), ROUNDS),
            (
                lambda: measured(
                    our,
                    lambda: call(our.at(batches.pop(0), "/results"), accept="application/x-ndjson"),
                    _whole,
                ),
                ROUNDS,
            ),
        )
    beside = ("NDJSON", statistics.median(seconds_of(other)))
    return [
        Figure(f"output file of {COUNT:,} rows", "s", seconds_of(one), beside=beside),
        Figure("  first byte", "ms", [taken.first_byte * 1000 for taken in one]),
        Figure(MEMORY, "MB", peaks(one), beside=("NDJSON", peaks(other)[0]), bar="<= 32 MB"),
    ]


def _upload(our: Contender, pieces: list[bytes]) -> Taken:
    def body() -> Iterator[bytes]:
        yield _HEAD
        yield from pieces
        yield _TAIL

    url = f"{our.url.removesuffix('batches')}files"
    return measured(
        our, lambda: call(url, method="POST", kind=_FORM, body=body()), lambda answer: answer.json()["id"]
    )


def _copy(folder: str, pieces: list[bytes]) -> Taken:
    """Write the same bytes to a file, until they are on the disk."""
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    return Taken(time.perf_counter() - started)


def _whole(answer: Answer) -> None:
    assert answer.body.count(b"\n") >= COUNT
