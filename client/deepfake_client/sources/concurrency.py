"""Works on many things with a bound on how many at once, and yields the results. Knows no media and no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

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

    Args:
        work: what to do with an item.
        items: read one by one.
        concurrency: how many are worked on at once.
        ordered: keep the order.
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
            found = await asyncio.to_thread(list, islice(items, 1))
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
