"""Work on many things at once, and between threads and event loops. Knows no media and no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, suppress
from itertools import islice
from typing import Any, Final, Generic, Self, TypeGuard, TypeVar

from deepfake_client.sources.threads import in_thread

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WAITING: Final = 8
"""Results that may wait to be taken, as a multiple of the concurrency. A verdict is small."""


async def each_finished(
    work: Callable[[Item], Coroutine[Any, Any, Result]], items: Iterator[Item], *, concurrency: int, ordered: bool
) -> AsyncGenerator[Result, None]:
    """Yield the result of `work` for each of `items` as it is finished, or in the order of `items`.

    The iterator is advanced in a thread, since it may block, and only when work on another item can start. An error
    of `work` ends everything at once, one of the iterator after what is under way. Closing the generator cancels it.
    """
    running = asyncio.Semaphore(concurrency)
    untaken = asyncio.Semaphore(concurrency * MAX_WAITING)
    tasks: list[asyncio.Task[Result]] = []
    changed = asyncio.Event()

    def finish(task: asyncio.Task[Result]) -> None:
        running.release()
        changed.set()

    async def start_all() -> None:
        while True:
            await untaken.acquire()
            await running.acquire()
            found = await in_thread(_first_of, items)
            if not found:
                return
            task = asyncio.create_task(work(found[0]))
            task.add_done_callback(finish)
            tasks.append(task)

    starter = asyncio.create_task(start_all())
    starter.add_done_callback(lambda _: changed.set())
    try:
        while tasks or not starter.done():
            await changed.wait()
            changed.clear()
            while ready := [task for task in tasks[: 1 if ordered else None] if task.done()]:
                tasks.remove(ready[0])
                untaken.release()
                yield ready[0].result()
    finally:
        for unfinished in (starter, *tasks):
            unfinished.cancel()
        await asyncio.gather(starter, *tasks, return_exceptions=True)
    starter.result()


def _first_of(items: Iterator[Item]) -> list[Item]:
    return list(islice(items, 1))


class ClosingIterator(Generic[T]):
    """A blocking iterator over an asynchronous iterable, for one thread at a time; an asynchronous context manager.

    An item is taken only when a thread asks for it, so nothing piles up. All are taken in one task, as an
    ``async for`` would: a generator may keep a connection or a timeout open from item to item. It is closed with the
    context. Made on the event loop that the iterable belongs to.
    """

    def __init__(self, items: AsyncIterable[T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._answer: Future[T] = Future()
        self._task = self._loop.create_task(self._take(items))
        self._task.add_done_callback(lambda _: self._end())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        answer: Future[T] = Future()
        self._loop.call_soon_threadsafe(self._ask, answer)
        return answer.result()

    def cancel(self) -> None:
        """Take no more items; a thread that waits for one finds the end. Called on the event loop."""
        self._task.cancel()

    def _ask(self, answer: Future[T]) -> None:
        self._answer = answer
        self._asked.set()
        if self._task.done():
            self._end()

    async def _take(self, items: AsyncIterable[T]) -> None:
        iterator = aiter(items)
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                self._answer.set_result(await anext(iterator))
        except StopAsyncIteration:
            pass
        except Exception as exc:
            self._answer.set_exception(exc)
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()

    def _end(self) -> None:
        if not self._answer.done():
            self._answer.set_exception(StopIteration())


def is_async(items: AsyncIterable[T] | object) -> TypeGuard[AsyncIterable[T]]:
    """Return whether `items` can only be iterated with ``async for``; a stream of bytes is not meant."""
    return isinstance(items, AsyncIterable) and not isinstance(items, Iterable) and not hasattr(items, "read")


async def each_over(
    items: AsyncIterable[T], work: Callable[[Iterable[T]], AsyncGenerator[Result, Any]]
) -> AsyncGenerator[Result, None]:
    """Yield what `work` makes of asynchronous items; it iterates them in a thread."""
    pulled = ClosingIterator(items)
    async with aclosing(work(pulled)) as results, pulled:
        async for result in results:
            yield result
