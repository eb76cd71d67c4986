"""What is stored comes back as it was, is there when it is whole, and leaves nothing when it is not."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from flask_llm_batches import current_llm_batches
from flask_llm_batches.errors import LLMBatchesError, NotStored, StorageUnavailable
from flask_llm_batches.storage.storage import CHUNK, Storage
from flask_llm_batches.store.chunks import Chunks
from tests.conftest import MakeHost
from tests.databases import KINDS, database, query
from tests.servers import s3
from tests.stored import KEY, got, is_whole, put, sealed, storage_of

logger = logging.getLogger(__name__)

SIZE = 3 * CHUNK


@dataclass(frozen=True)
class Place:
    """Where a test stores.

    Attributes:
        database: The URL of the app's database.
        setting: ``LLM_BATCHES_STORAGE``.
        pieces: Gives how many rows, files or uploads there are.
    """

    database: str
    setting: str
    pieces: Callable[[], int]


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(params=[*KINDS, "folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Each place in turn; nothing is there."""
    with database(request.param if request.param in KINDS else "sqlite", tmp_path) as url:
        if request.param in KINDS:
            counts = "SELECT (SELECT count(*) FROM llm_batches_object) + count(*) FROM llm_batches_chunk"
            yield Place(url, "database", lambda: int(query(url, counts)[0][0]))
        elif request.param == "folder":
            folder = tmp_path / "a folder"
            folder.mkdir()
            count = lambda: len([path for path in folder.rglob("*") if path.is_file()])  # noqa: E731
            yield Place(url, folder.as_uri(), count)
        else:
            endpoint = request.getfixturevalue("s3_url")
            bucket = f"{endpoint}/{tmp_path.name.replace('_', '-')}"
            httpx.put(bucket).raise_for_status()
            names = "ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "ALLOW_HTTP"
            for name, value in zip(names, (endpoint, "test", "test", "true"), strict=True):
                monkeypatch.setenv(f"AWS_{name}", value)

            def pieces() -> int:
                listed = [httpx.get(bucket, params=what).text for what in ("list-type=2", "uploads")]
                return listed[0].count("<Key>") + listed[1].count("<UploadId>")

            yield Place(url, f"s3://{bucket.rpartition('/')[2]}/some/path", pieces)


@pytest.fixture
def host(place: Place, make_host: MakeHost) -> Iterator[Flask]:
    app = make_host(database=place.database, storage=place.setting)
    with app.app_context():
        yield app


@pytest.fixture
def storage(host: Flask) -> Storage:
    return storage_of(host)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    pieces=st.lists(st.binary(max_size=300) | st.sampled_from([b"\0", b"'\\%s"]).map(lambda one: one * 9999))
)
def test_what_went_in_comes_out(storage: Storage, pieces: list[bytes]) -> None:
    """Any bytes come back as they were, however they were cut."""
    with storage.write(KEY) as file:
        for piece in pieces:
            file.write(piece)
    assert got(storage) == b"".join(pieces)


def test_long_objects(storage: Storage, place: Place) -> None:
    """An object of many chunks comes back in pieces of some size; deleted, nothing of it stays."""
    data = sealed(40 * CHUNK) + bytes(80 * CHUNK)
    put(storage, data)
    pieces = list(storage.read(KEY))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 1 << 20
    storage.delete(KEY)
    assert place.pieces() == 0


def test_what_is_not_there(storage: Storage) -> None:
    """It is not there from the call on, before anything is read; deleting it is no error."""
    put(storage, b"x", "another")
    with pytest.raises(NotStored):
        storage.read(KEY)
    storage.delete(KEY)


def test_a_write_that_fails_is_nothing(storage: Storage, place: Place) -> None:
    """What was there stays as it was, and nothing of the other one is left."""
    put(storage, b"old")
    before = place.pieces()

    def fail() -> None:
        with storage.write(KEY) as file:
            file.write(sealed(SIZE))
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        fail()
    assert got(storage) == b"old"
    assert place.pieces() == before


def test_a_write_is_invisible_until_it_ends(storage: Storage, place: Place) -> None:
    """Readers see the older object, which is gone after the next sweep."""
    put(storage, b"old")
    pieces = place.pieces()
    with storage.write(KEY) as file:
        file.write(sealed(SIZE))
        assert got(storage) == b"old"
    assert is_whole(got(storage))
    storage.delete(KEY)
    put(storage, b"new")
    storage.sweep(older_than=0)
    assert place.pieces() == pieces


def test_a_reader_has_one_object(storage: Storage) -> None:
    """Whoever reads while the object is replaced, has the old one, or hears that it is gone."""
    data = sealed(10 << 20)
    put(storage, data)
    reading = storage.read(KEY)
    read = [next(reading)]
    put(storage, b"new")
    with suppress(NotStored):
        read += reading
        assert b"".join(read) == data
    assert got(storage) == b"new"


@pytest.mark.parametrize("place", [*KINDS, "folder"], indirect=True)
def test_a_silent_writer_is_swept(storage: Storage, place: Place) -> None:
    """What was written a moment ago stays; later it is deleted, and the writer hears so."""

    def write() -> None:
        with storage.write(KEY) as file:
            file.write(sealed(SIZE))
            before = place.pieces()
            storage.sweep(older_than=60)
            assert place.pieces() == before
            storage.sweep(older_than=0)
            assert place.pieces() == 0

    with pytest.raises(StorageUnavailable):
        write()
    with pytest.raises(NotStored):
        storage.read(KEY)
    assert place.pieces() == 0


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_reconcile_sweeps(storage: Storage, place: Place) -> None:
    """The command that deletes what crashes left deletes old pieces, and no others."""
    put(storage, b"new")
    pieces = place.pieces()
    with storage.write("another"):
        put(storage, b"newer")
        query(place.database, "UPDATE llm_batches_object SET touched_at = 1 WHERE parts = 1")
        current_llm_batches.reconcile()
    storage.delete("another")
    assert place.pieces() == pieces
    assert got(storage) == b"newer"


def test_two_writers_of_one_key(host: Flask, storage: Storage, place: Place) -> None:
    """One of them wins with a whole object; after a sweep, nothing is left of the others."""
    put(storage, sealed(SIZE))
    one = place.pieces()
    together, failed = threading.Barrier(4), list[LLMBatchesError]()

    def write() -> None:
        with host.app_context():
            for _ in range(4):
                together.wait()
                try:
                    put(storage, sealed(SIZE))
                except LLMBatchesError as error:
                    failed.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert is_whole(got(storage))
    storage.sweep(older_than=0)
    assert is_whole(got(storage))
    assert place.pieces() == one


@pytest.mark.parametrize(
    "key", ["", "..", "../x", "/x", "x/", "a//b", "a/../b", "a.b", "A", "a\n", "x" * 129, "ä"]
)
@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_keys(storage: Storage, key: str) -> None:
    """No key leads elsewhere."""
    with pytest.raises(ValueError, match="no key of the storage"):
        storage.read(key)
    with pytest.raises(ValueError, match="no key of the storage"):
        put(storage, b"x", key)


@pytest.mark.parametrize("place", ["folder"], indirect=True)
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damage_is_found(
    storage: Storage, place: Place, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged file is an error, and not taken for what was stored."""
    put(storage, b"text " * 1000)
    (file,) = tmp_path.rglob("*.zst")
    data = file.read_bytes()
    middle = len(data) - 3
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    file.write_bytes({"cut": data[:-1], "flipped": flipped, "empty": b""}[damage])
    with pytest.raises(StorageUnavailable):
        got(storage)
    assert f"{KEY} in the storage is damaged" in caplog.text


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_a_place_that_is_gone(storage: Storage, place: Place, tmp_path: Path) -> None:
    """A folder or a bucket that is gone is an error of ours, and is not made anew."""
    if place.setting.startswith("file"):
        (tmp_path / "a folder").rmdir()
    else:
        bucket = place.setting.split("/")[2]
        httpx.delete(f"{os.environ['AWS_ENDPOINT_URL']}/{bucket}").raise_for_status()
    with pytest.raises(StorageUnavailable):
        put(storage, b"x")
    assert not (tmp_path / "a folder").exists()


@pytest.mark.parametrize("place", ["mariadb"], indirect=True)
def test_packets_are_small(host: Flask) -> None:
    """No statement is longer than the smallest packet that a server may be set to, whatever is in a chunk."""
    lengths = []
    database = current_llm_batches._database
    with host.app_context():

        @event.listens_for(database.engine(), "after_cursor_execute")
        def note(_connection: object, cursor: Any, *_: object) -> None:
            lengths.append(len(cursor._executed))

        with Chunks(database).write(KEY) as keep:
            keep(b"'" * CHUNK)
    assert CHUNK < max(lengths) < 1 << 20


def run(place: Place, what: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HOST_DATABASE": place.database, "HOST_STORAGE": place.setting}
    command = [sys.executable, "-m", "tests.stored", what]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("place", [*KINDS, "folder", "s3"], indirect=True)
def test_killed_writers(storage: Storage, place: Place) -> None:
    """Whenever a writer is killed, what is read is whole, and after a sweep there is no more."""
    chance, left = random.Random(1), 0
    put(storage, sealed(1 << 20))
    one = place.pieces()
    for _ in range(4):
        with run(place, "overwrite") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert is_whole(got(storage))
        left += place.pieces() - one
        storage.sweep(older_than=0)
        assert is_whole(got(storage))
        if not place.setting.startswith("s3"):  # which has rules for that
            assert place.pieces() == one
    logger.warning("%s: %d pieces were left", place.setting, left)


@pytest.mark.slow
def test_memory_is_flat(storage: Storage, place: Place) -> None:
    """A gigabyte goes in and out with little memory."""
    with run(place, "measure") as process:
        figures = json.loads(process.communicate(timeout=120)[0])
    logger.warning("%s: %s", place.setting, figures)
    assert figures["same"]
    assert max(figures["in MiB"], figures["out MiB"]) < 64
