"""Runs async code from synchronous code.

An async HTTP client belongs to the event loop that first used it. So small, frequent calls (``Bridge.run``)
and streams (``Bridge.iterate``) run on one loop that is kept, with clients that are kept. Calls that block a
loop for seconds get their own loop and their own client (``Bridge.run_apart``).
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Hashable
from concurrent.futures import CancelledError
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from asgiref.sync import async_to_sync

T = TypeVar("T")

# Seconds that a call may take to clean up after its timeout.
_GRACE = 5.0

# Threads pass errors to each other as values. A task that raised is in a reference cycle with its frames, and
# what they hold is kept until the garbage collector runs. A variable with the error or the task has the same
# effect.
_Outcome = tuple[T | None, BaseException | None]


class _End:
    """Marks the end of the items, with the error of the generator or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def take(self) -> _Outcome[None]:
        error, self.error = self.error, None
        return None, error


async def _as_outcome(coroutine: Coroutine[Any, Any, T]) -> _Outcome[T]:
    try:
        return await coroutine, None
    except Exception as error:  # noqa: BLE001  # the waiting thread raises it
        return None, error


def _value(outcome: _Outcome[T]) -> T:
    value, error = outcome
    if error is None:
        return cast("T", value)
    try:
        raise error
    finally:
        del outcome, error


async def _within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(seconds):
        return await coroutine


@dataclass(slots=True)
class _Loop:
    """An event loop, its thread, and the objects and tasks that belong to it."""

    loop: asyncio.AbstractEventLoop
    pid: int = field(default_factory=os.getpid)
    kept: dict[Hashable, tuple[Any, Callable[[Any], Awaitable[None]]]] = field(default_factory=dict)
    shared: dict[Hashable, asyncio.Task[Any]] = field(default_factory=dict)
    # A loop refers to its tasks weakly. Without this, a task could be collected before it can be cancelled.
    pumps: set[asyncio.Task[None] | None] = field(default_factory=set)
    thread: threading.Thread = field(init=False)

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run, name="llm-batches-bridge", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    async def _close_all(self) -> None:
        current = asyncio.current_task()
        running = [task for task in asyncio.all_tasks() if task is not current]
        for task in running:
            task.cancel()
        closing = [close(value) for value, close in self.kept.values()]
        await asyncio.gather(*running, *closing, return_exceptions=True)
        self.loop.stop()

    def end(self) -> None:
        """Close the kept objects, then the loop. Do nothing in a child process: both are the parent's."""
        if self.pid == os.getpid() and self.thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close_all(), self.loop)
            if self.thread is not threading.current_thread():
                self.thread.join(timeout=_GRACE)


# After a fork, the child keeps the parent's loops: collecting them would close sockets that the parent uses.
_parent_loops: list[_Loop] = []


class Bridge:
    """One event loop in one daemon thread. It is started at the first use, and again after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: _Loop | None = None
        _bridges.add(self)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run a coroutine on the kept loop and wait for what it returns or raises.

        Raises:
            TimeoutError: It took longer than ``timeout`` seconds; it has been cancelled.
        """
        future = asyncio.run_coroutine_threadsafe(
            _as_outcome(_within(timeout, coroutine)), self._running().loop
        )
        try:
            return _value(future.result(timeout + _GRACE))
        except BaseException:
            future.cancel()
            raise
        finally:
            del future

    def run_shared(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Run the coroutine that ``make`` returns, as ``run`` does. Calls with the same key share one run."""
        shared = self._running().shared

        async def join() -> _Outcome[T]:
            task = shared.get(key)
            if task is None:
                task = shared[key] = asyncio.create_task(_as_outcome(_within(timeout, make())))
                task.add_done_callback(lambda done: _forget_shared(shared, key, done))
            return cast("_Outcome[T]", await asyncio.shield(task))

        return _value(self.run(join(), timeout + _GRACE))

    def stop_sharing(self, key: Hashable) -> None:
        """Stop sharing the run of ``key``: its answer may be out of date."""
        current = self._running()
        current.loop.call_soon_threadsafe(current.shared.pop, key, None)

    def run_apart(self, function: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
        """Run a coroutine function on an event loop of its own, and wait for what it returns or raises.

        It runs in a worker thread: in the caller's, ``async_to_sync`` would fail if a loop is running, and
        would use the server's loop under an ASGI server. Under gevent, all threads are greenlets of one
        thread, which can run only one loop, so the kept loop is used.

        Raises:
            TimeoutError: It took longer than ``timeout`` seconds; it has been cancelled.
        """
        if _threads_are_greenlets():
            return self.run(function(), timeout)
        return _run_in_a_thread(function, timeout)

    def iterate(
        self, make: Callable[[], AsyncGenerator[T, None]], *, beat: float, timeout: float
    ) -> Generator[T | None]:
        """Run an async generator on the kept loop and yield its items one by one, never ahead of the reader.

        Yield None after ``beat`` seconds without an item. Closing this generator closes the async one, too.

        Raises:
            TimeoutError: Nothing came for ``timeout`` seconds.
        """
        items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        wanted = asyncio.Semaphore(0)
        current = self._running()

        async def read() -> None:
            async with aclosing(make()) as source:
                while True:
                    async with asyncio.timeout(timeout):
                        item = await anext(source, None)
                    if item is None:
                        return
                    items.put(item)
                    await wanted.acquire()

        async def pump() -> None:
            task = asyncio.current_task()
            current.pumps.add(task)
            try:
                items.put(_End((await _as_outcome(read()))[1]))
            finally:
                current.pumps.discard(task)

        future = asyncio.run_coroutine_threadsafe(pump(), current.loop)
        future.add_done_callback(lambda _: items.put(_End(CancelledError())))
        try:
            while True:
                try:
                    item = items.get(timeout=beat)
                except queue.Empty:
                    yield None
                    continue
                if isinstance(item, _End):
                    _value(item.take())
                    return
                yield item
                current.loop.call_soon_threadsafe(wanted.release)
        finally:
            future.cancel()

    def keep(self, key: Hashable, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> T:
        """Return the object under ``key``. It is made once per process, and closed when the loop ends."""
        current = self._running()
        with self._lock:
            if key not in current.kept:
                current.kept[key] = (make(), close)
            value: T = current.kept[key][0]
        return value

    def forget(self) -> None:
        """Start again in a child process: the parent's loop does not run there, and its lock may be held."""
        self._lock = threading.Lock()
        if self._current is not None:
            _parent_loops.append(self._current)
            self._current = None

    def _running(self) -> _Loop:
        with self._lock:
            if self._current is None:
                self._current = _Loop(asyncio.new_event_loop())
                self._current.start()
                weakref.finalize(self, self._current.end)
            return self._current


def _forget_shared(shared: dict[Hashable, asyncio.Task[Any]], key: Hashable, done: asyncio.Task[Any]) -> None:
    if shared.get(key) is done:
        del shared[key]
    if not done.cancelled():
        done.exception()  # otherwise asyncio logs that it was never retrieved


_bridges: weakref.WeakSet[Bridge] = weakref.WeakSet()


def _forget_parents() -> None:
    for bridge in _bridges:
        bridge.forget()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_parents)


def _threads_are_greenlets() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _run_in_a_thread(function: Callable[[], Coroutine[Any, Any, T]], timeout: float) -> T:
    outcomes: queue.SimpleQueue[_Outcome[T]] = queue.SimpleQueue()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def caught() -> None:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        # Not returned: asgiref would keep it in a variable.
        outcomes.put(await _as_outcome(_within(timeout, function())))

    def work() -> None:
        try:
            async_to_sync(caught)()
        except BaseException as error:  # noqa: BLE001  # the loop itself failed
            outcomes.put((None, error))

    threading.Thread(target=work, name="llm-batches-transfer", daemon=True).start()
    try:
        return _value(outcomes.get(timeout=timeout + _GRACE))
    except BaseException as error:
        while running:  # a task keeps its result
            loop, task = running.pop()
            with suppress(RuntimeError):  # the loop has already ended
                loop.call_soon_threadsafe(cast("asyncio.Task[Any]", task).cancel)
            del task
        if isinstance(error, queue.Empty):
            raise TimeoutError from None
        raise
