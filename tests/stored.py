"""Processes: ``python -m tests.stored overwrite`` writes until it is killed, ``measure`` moves 1 GB."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator

from flask import Flask

from flask_llm_batches.storage.storage import Storage
from tests.hosts import create_host
from tests.memory import forget_peak, peak

KEY = "batches/0f/results"


def storage_of(app: Flask) -> Storage:
    storage: Storage = app.extensions["llm_batches"]._storage
    return storage


def put(storage: Storage, data: bytes, key: str = KEY) -> None:
    with storage.write(key) as file:
        file.write(data)


def got(storage: Storage, key: str = KEY) -> bytes:
    return b"".join(storage.read(key))


def sealed(size: int) -> bytes:
    """Make bytes that cannot be compressed, and that show whether they are complete."""
    data = random.randbytes(size)
    return data + hashlib.sha256(data).digest()


def is_whole(data: bytes) -> bool:
    return hashlib.sha256(data[:-32]).digest() == data[-32:]


def rows(size: int) -> Iterator[bytes]:
    """Make rows of results, about a megabyte at a time: their texts are words from a lexicon."""
    chance = random.Random(1)
    words = ["".join(chance.choices("aeioulnrst", k=chance.randint(2, 10))) for _ in range(5000)]
    texts = [" ".join(chance.choices(words, k=200)) for _ in range(300)]
    for _ in range(size >> 20):
        yield "".join(
            f'{{"custom_id":"r{chance.random()}","result":{{"text":"{text}"}},"error":null}}\n'
            for text in chance.choices(texts, k=740)
        ).encode()


def overwrite(storage: Storage) -> None:
    while True:
        data = sealed(1 << 20)
        with storage.write(KEY) as file:
            for start in range(0, len(data), 1 << 16):
                file.write(data[start : start + (1 << 16)])
        print("written", flush=True)  # noqa: T201


def measure(storage: Storage) -> None:
    put(storage, b"x")  # what is imported late
    got(storage)
    came = list(rows(1 << 20))
    del came
    gc.collect()
    before, began = forget_peak(), time.monotonic()
    went, came_back = hashlib.sha256(), hashlib.sha256()
    size = 0
    with storage.write(KEY) as file:
        for piece in rows(1 << 30):
            file.write(piece)
            went.update(piece)
            size += len(piece)
    written, peak_in = time.monotonic(), peak()
    forget_peak()
    for piece in storage.read(KEY):
        came_back.update(piece)
    read, peak_out = time.monotonic(), peak()
    figures = {
        "MB": size // 10**6,
        "in s": round(written - began, 1),
        "out s": round(read - written, 1),
        "in MiB": (peak_in - before) >> 20,
        "out MiB": (peak_out - before) >> 20,
        "same": went.digest() == came_back.digest(),
    }
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    app = create_host(database=os.environ["HOST_DATABASE"], storage=os.environ["HOST_STORAGE"])
    with app.app_context():
        {"overwrite": overwrite, "measure": measure}[sys.argv[1]](storage_of(app))
