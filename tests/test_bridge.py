"""Both ways across: the kept loop, and a loop of one's own."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_llm_batches.providers.bridge import Bridge


async def loop_id() -> int:
    return id(asyncio.get_running_loop())


class Thing:
    """Something that is kept, and knows when it was closed."""

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
    """A call that takes too long is cancelled, has wound itself up, and raises TimeoutError."""
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
    """Who comes with the same key meanwhile gets the same answer or error; who comes later asks anew."""
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


def test_nobody_joins_what_is_parted() -> None:
    """After ``part`` a question is asked anew, though the old one still runs."""
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
        bridge.part("key")
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
    """Apart from the others means another loop, also where the caller's own loop is running."""
    bridge = Bridge()
    kept = bridge.run(loop_id(), 5)

    async def caller() -> tuple[int, int]:
        return await loop_id(), bridge.run_apart(loop_id, 5)

    own, apart = asyncio.run(caller())
    assert len({kept, own, apart}) == 3


def test_failed_calls_apart_leave_no_thread() -> None:
    """Regression: threads of calls that failed stayed until the garbage collector came by."""
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
