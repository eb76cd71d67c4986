"""Async code runs on the kept loop, or on a loop of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flask_llm_batches.providers.bridge import Bridge


async def loop_id() -> int:
    return id(asyncio.get_running_loop())


class Thing:
    """A kept object that records when it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def close(self) -> None:
        self.closed.set()


def bridge_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "llm-batches-bridge"}


def test_calls_share_one_loop_started_late() -> None:
    """Nothing is started before the first call, and every call runs on the same loop."""
    before = bridge_threads()
    bridge = Bridge()
    assert bridge_threads() == before
    assert bridge.run(loop_id(), 5) == bridge.run(loop_id(), 5)
    assert len(bridge_threads() - before) == 1


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_raised_comes_back(apart: bool) -> None:
    """An exception of the coroutine is raised in the calling thread."""

    async def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        Bridge().run_apart(fail, 5) if apart else Bridge().run(fail(), 5)


@pytest.mark.parametrize("apart", [False, True])
def test_time_is_limited(apart: bool) -> None:
    """A call that takes too long is cancelled, may clean up, and raises TimeoutError."""
    ended = threading.Event()

    async def sleep() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    start = time.monotonic()
    with pytest.raises(TimeoutError):
        Bridge().run_apart(sleep, 0.1) if apart else Bridge().run(sleep(), 0.1)
    assert ended.is_set()
    assert time.monotonic() - start < 5


def test_threads_call_at_the_same_time() -> None:
    """Calls from many threads run side by side on the one loop."""
    bridge, meeting = Bridge(), []
    all_there = asyncio.Event()

    async def meet() -> None:
        meeting.append(1)
        if len(meeting) == 8:
            all_there.set()
        await all_there.wait()

    threads = [threading.Thread(target=bridge.run, args=(meet(), 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(meeting) == 8


@pytest.mark.parametrize("fails", [False, True])
def test_simultaneous_questions_are_asked_once(fails: bool) -> None:
    """Calls with the same key at the same time share an answer or error; a later call asks again."""
    bridge, asked = Bridge(), []
    go = threading.Event()

    async def ask() -> int:
        asked.append(1)
        await asyncio.to_thread(go.wait, 5)
        if fails:
            raise LookupError("gone")
        return len(asked)

    def call(_: int) -> object:
        try:
            return bridge.run_shared("key", ask, 5)
        except LookupError as error:
            return str(error)

    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(call, range(8))
        time.sleep(0.2)
        go.set()
        assert set(answers) == {"gone" if fails else 1}
    assert call(0) == ("gone" if fails else 2)


def test_nobody_shares_what_is_out_of_date() -> None:
    """After ``stop_sharing``, a call asks again although the old one still runs."""
    bridge, asked = Bridge(), []

    async def ask() -> int:
        asked.append(1)
        number = len(asked)
        await asyncio.sleep(0.3)
        return number

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(bridge.run_shared, "key", ask, 5)
        while not asked:
            time.sleep(0.01)
        bridge.stop_sharing("key")
        second = threads.submit(bridge.run_shared, "key", ask, 5)
        assert (first.result(), second.result()) == (1, 2)


def test_what_is_kept_is_made_once_and_closed() -> None:
    """A kept object is made once, and closed on the loop when the bridge is gone."""
    bridge, before = Bridge(), bridge_threads()
    thing = bridge.keep("a", Thing, Thing.close)
    assert bridge.keep("a", Thing, Thing.close) is thing
    assert bridge.keep("b", Thing, Thing.close) is not thing
    del bridge
    gc.collect()
    assert thing.closed.is_set()
    assert bridge_threads() <= before


def test_a_loop_of_ones_own_is_another() -> None:
    """``run_apart`` uses another loop, also if the caller's own loop is running."""
    bridge = Bridge()
    kept = bridge.run(loop_id(), 5)

    async def caller() -> tuple[int, int]:
        return await loop_id(), bridge.run_apart(loop_id, 5)

    own, apart = asyncio.run(caller())
    assert len({kept, own, apart}) == 3


def test_failed_calls_apart_leave_no_thread() -> None:
    """Regression: threads of failed calls stayed until the garbage collector ran."""
    bridge = Bridge()

    async def fail() -> None:
        raise LookupError("gone")

    gc.disable()
    try:
        before = threading.active_count()
        for _ in range(20):
            with pytest.raises(LookupError):
                bridge.run_apart(fail, 5)
        deadline = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_process_starts_anew() -> None:
    """After a fork the child has a loop and kept objects of its own, even if a lock was held."""
    bridge = Bridge()
    thing = bridge.keep("a", Thing, Thing.close)
    with bridge._lock:
        child = os.fork()
        if child == 0:
            try:
                other = bridge.keep("a", Thing, Thing.close)
                ok = other is not thing and isinstance(bridge.run(loop_id(), 5), int)
                os._exit(0 if ok else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert bridge.keep("a", Thing, Thing.close) is thing
    assert not thing.closed.is_set()
    bridge.run(loop_id(), 5)


class Source:
    """Counts to so many, and knows how far it got and when it was closed."""

    def __init__(self, count: int, *, pause: float = 0, error: Exception | None = None) -> None:
        self.count, self.pause, self.error = count, pause, error
        self.given = 0
        self.closed = threading.Event()

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.count):
                self.given += 1
                yield number
                await asyncio.sleep(self.pause)
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


def test_items_come_one_at_a_time() -> None:
    """The source never runs ahead of the reader, and is closed when it has ended."""
    source = Source(4)
    for number, item in enumerate(Bridge().iterate(source.items, beat=5, timeout=5)):
        assert item == number
        time.sleep(0.02)
        assert source.given == number + 1
    assert source.given == 4
    assert source.closed.is_set()


def test_a_source_without_items_ends() -> None:
    """A source that has nothing to give is an empty iteration."""
    assert list(Bridge().iterate(Source(0).items, beat=5, timeout=5)) == []


def test_nothing_starts_before_it_is_read() -> None:
    """An iteration that is never read starts no source, and need not be closed."""
    source, before = Source(1), bridge_threads()
    Bridge().iterate(source.items, beat=5, timeout=5).close()
    assert (source.given, bridge_threads()) == (0, before)


def test_silence_is_heard() -> None:
    """While the source yields nothing, there is a None at every beat."""
    source = Source(2, pause=0.35)
    assert list(Bridge().iterate(source.items, beat=0.1, timeout=5)) == [0, *[None] * 3, 1, *[None] * 3]


def test_a_source_is_given_up_when_its_time_is_over() -> None:
    """A source that is silent for too long is closed, and the reader gets TimeoutError."""
    source = Source(2, pause=60)
    with pytest.raises(TimeoutError):
        list(Bridge().iterate(source.items, beat=0.1, timeout=0.25))
    assert source.closed.is_set()


def test_a_readers_time_is_not_the_sources() -> None:
    """A slow reader does not make the source time out."""
    items = Bridge().iterate(Source(3).items, beat=0.02, timeout=0.05)
    for item in items:
        if item is not None:
            time.sleep(0.1)


def test_errors_of_a_source_cross() -> None:
    """The reader gets an error of the source after the items before it."""
    source = Source(2, error=LookupError("gone"))
    items = Bridge().iterate(source.items, beat=5, timeout=5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(LookupError, match="gone"):
        next(items)
    assert source.closed.is_set()


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("how", ["close", "forget", "raise"])
def test_a_reader_who_stops_closes_the_source(how: str, silent: bool) -> None:
    """The cleanup of the source runs at once, also while the source waits."""
    source, bridge = Source(9, pause=60), Bridge()
    items = bridge.iterate(source.items, beat=0.02, timeout=60)
    assert next(items) == 0
    if silent:
        assert next(items) is None
    start = time.monotonic()
    if how == "close":
        items.close()
    elif how == "forget":
        del items
    else:
        with pytest.raises(LookupError):
            items.throw(LookupError())
    assert source.closed.wait(2)
    assert time.monotonic() - start < 1
    assert source.given == 1


def test_many_read_at_the_same_time() -> None:
    """Many iterations run side by side on the one loop, beside other calls."""
    bridge = Bridge()

    def read(count: int) -> list[int | None]:
        bridge.run(loop_id(), 5)
        return list(bridge.iterate(Source(count, pause=0.001).items, beat=5, timeout=5))

    with ThreadPoolExecutor(8) as threads:
        assert [len(items) for items in threads.map(read, range(20))] == [*range(20)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_process_reads_too() -> None:
    """After a fork the child iterates on a loop of its own, and the parent's reader goes on."""
    bridge = Bridge()
    items = bridge.iterate(Source(3).items, beat=5, timeout=5)
    assert next(items) == 0
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if list(bridge.iterate(Source(3).items, beat=5, timeout=5)) == [0, 1, 2] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert list(items) == [1, 2]


GEVENT = """
from gevent import monkey; monkey.patch_all()
import asyncio, gevent, time
from flask_llm_batches.providers.bridge import Bridge
closed, ticks, bridge = [], [], Bridge()

async def source():
    try:
        for number in range(3):
            yield number
            await asyncio.sleep(0.25 if number < 2 else 60)
    finally:
        closed.append(number)

def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.01)

gevent.spawn(tick)
items = bridge.iterate(source, beat=0.1, timeout=5)
seen = [next(items) for _ in range(8)]
items.close()
gevent.sleep(0.2)
assert seen == [0, None, None, 1, None, None, 2, None], seen
assert closed == [2], closed
assert len(ticks) > 20, len(ticks)
"""


def test_greenlets_read_too() -> None:
    """Under gevent an iteration holds up nobody else, and ends as it does with threads."""
    run = subprocess.run(
        [sys.executable, "-c", GEVENT], capture_output=True, text=True, check=False, timeout=30
    )
    assert run.returncode == 0, run.stderr


def test_a_reader_that_is_garbage_closes_its_source() -> None:
    """A reader in a reference cycle ends its source when the garbage collector comes by."""
    bridge, source = Bridge(), Source(5)
    reader = bridge.iterate(source.items, beat=5, timeout=5)
    assert next(reader) == 0
    cycle: list[Any] = [reader]
    cycle.append(cycle)
    del reader, cycle
    gc.collect()
    assert source.closed.wait(5)


@pytest.mark.parametrize("how", ["run", "run_shared", "run_apart", "iterate"])
def test_errors_leave_no_reference_cycle(how: str) -> None:
    """Objects of a failed call are freed at once, without the garbage collector."""

    class Held:
        """As large as what came of a download."""

    async def fail() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        await asyncio.sleep(0)
        raise LookupError("gone")

    async def items() -> AsyncGenerator[int, None]:
        yield 1
        await fail()

    def call() -> None:
        if how == "iterate":
            list(bridge.iterate(items, beat=5, timeout=5))
        elif how == "run":
            bridge.run(fail(), 5)
        elif how == "run_shared":
            bridge.run_shared("key", fail, 5)
        else:
            bridge.run_apart(fail, 5)

    bridge, seen = Bridge(), list[weakref.ref[Held]]()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(LookupError):
                call()
        deadline = time.monotonic() + 5  # the other thread may be about to let go
        while any(ref() is not None for ref in seen) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [ref() for ref in seen] == [None] * 3
    finally:
        gc.enable()
