"""Threads of the client's own: none of them keeps a process from ending, and none is waited for after a fork."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future, wait
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakSet

from deepfake_preprocess.errors import ClientUseError

P = ParamSpec("P")
Result = TypeVar("Result")

EXIT_S: Final = 2.0
"""How long the end of the process waits for what is under way, which is canceled."""

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class ForkGuard:
    """Remembers the process that something was made in; the threads and locks of another one are of no use."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made_after = _forks

    @property
    def is_forked(self) -> bool:
        """Whether this is a child of the process that it was made in."""
        return self._made_after != _forks

    def check(self) -> None:
        """Raise ClientUseError in a child of the process that it was made in."""
        if self.is_forked:
            raise ClientUseError(
                f"{self._name} was made before this process was forked, and its threads and connection did not come "
                "along; make one in each process, after the fork"
            )


class Worker:
    """A daemon thread that makes one call after another.

    For calls that may never return (a caller's generator, a device): the threads of a `ThreadPoolExecutor` would keep
    the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()
        _workers.add(self)

    def submit(self, call: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """Make a call when those before it have returned."""
        result: Future[Result] = Future()
        context = copy_context()

        def make() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                result.set_result(context.run(call, *args, **kwargs))
            except BaseException as exc:
                result.set_exception(exc)

        self._calls.put(make)
        return result

    def end(self) -> None:
        """End the thread after the calls so far, without waiting for it."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # it holds its result


async def in_thread(call: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Make a call in a daemon thread (see `Worker`). Canceled, it is not waited for."""
    worker = Worker(f"deepfake-{getattr(call, '__name__', 'call').strip('_')}")
    result = worker.submit(call, *args, **kwargs)
    worker.end()
    return await asyncio.wrap_future(result)


class LoopThread:
    """An event loop in a thread of its own, started with the first piece of work.

    For callers that have no loop, or each another one. All methods raise ClientUseError where it cannot be used any
    more, naming the `owner` of the loop.
    """

    def __init__(self, owner: str) -> None:
        self.is_stopped = False
        self._owner = owner
        self._fork = ForkGuard(owner)
        self._lock = threading.Lock()
        self._started: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None
        _loops.add(self)

    @property
    def can_wait(self) -> bool:
        """Whether `wait_for` works here: not stopped, not in a forked child, and not on the thread of the loop."""
        return not self.is_stopped and not self._fork.is_forked and not self._is_current()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        self._fork.check()
        with self._lock:
            if self.is_stopped:
                raise ClientUseError(f"{self._owner} was closed; make a new one")
            if self._started is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(loop,), name="deepfake-loop", daemon=True)
                thread.start()
                self._started = loop, thread
            return self._started[0]

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine there, from any other loop; canceling the caller cancels it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def wait_for(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine there, from a thread without a loop. Interrupted (Ctrl-C), it first cancels the work."""
        try:
            loop = self._other_loop()
        except ClientUseError:
            work.close()
            raise
        result: Future[Result] = Future()
        task: asyncio.Task[Result] | None = None

        def start() -> None:
            nonlocal task
            task = loop.create_task(work)
            task.add_done_callback(pass_on)

        def pass_on(done: asyncio.Task[Result]) -> None:
            if done.cancelled():
                result.set_exception(CancelledError())
            elif (error := done.exception()) is not None:
                result.set_exception(error)
            else:
                result.set_result(done.result())

        def cancel() -> None:
            if task is not None:
                task.cancel()
            else:  # interrupted before it was handed over
                work.close()
                result.set_exception(CancelledError())

        try:
            loop.call_soon_threadsafe(start)
            return result.result()
        except CancelledError:
            raise ClientUseError(f"{self._owner} was closed while it was at work; make a new one") from None
        except BaseException:
            # Ctrl-C arrives in the caller's thread: the work must have ended before the error goes on.
            if not result.done():
                loop.call_soon_threadsafe(cancel)
                wait([result])
            raise

    def each(self, items: AsyncGenerator[Result, None]) -> Generator[Result, None, None]:
        """Yield the items of an asynchronous generator that runs there."""

        # Inside coroutines, so the loop sees the generator's first step and `stop` can end it.
        async def step() -> Result:
            return await anext(items)

        async def end() -> None:
            await items.aclose()

        try:
            while True:
                try:
                    item = self.wait_for(step())
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if self.can_wait:
                self.wait_for(end())

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Cancel what is under way, do `last` there, and end loop and thread; blocks. Stopping twice is harmless.

        In a forked child nothing is left to be stopped.
        """
        if self.is_stopped or self._fork.is_forked:
            return
        if last is not None or self._started is not None:
            self.wait_for(_end_all(last))
        with self._lock:
            self.is_stopped = True
            started, self._started = self._started, None
        if started is not None:
            loop, thread = started
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def abandon(self, timeout_s: float) -> None:
        """Cancel what is under way, and refuse all else, whether or not it ends within `timeout_s`."""
        if self.is_stopped or self._fork.is_forked:
            return
        started, self.is_stopped = self._started, True
        if started is not None:
            ended = asyncio.run_coroutine_threadsafe(_end_all(None), started[0])
            wait([ended], timeout_s)

    def _other_loop(self) -> asyncio.AbstractEventLoop:
        if self._is_current():
            raise ClientUseError(
                f"{self._owner} was called from its own thread, which runs `on_progress`, and would wait for itself; "
                "call it when the callback has returned, or from another thread"
            )
        return self.loop

    def _is_current(self) -> bool:
        return self._started is not None and threading.current_thread() is self._started[1]


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped, also when a call in it leaves the program: that is for whoever waits for it."""
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):  # of a callback, or of a caller's generator
            continue
        return


async def _end_all(last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    if last is not None:
        await last()


_loops: WeakSet[LoopThread] = WeakSet()
_workers: WeakSet[Worker] = WeakSet()


@atexit.register
def _end_process() -> None:
    """Let go of what a caller has left open: afterwards no thread answers, and a generator would wait for one."""
    deadline = time.monotonic() + EXIT_S
    for loop in list(_loops):
        loop.abandon(max(0.0, deadline - time.monotonic()))
    # Code that does not expect the interpreter to end (OpenCV) aborts the process when it comes back too late.
    for worker in list(_workers):
        worker.thread.join(max(0.0, deadline - time.monotonic()))
