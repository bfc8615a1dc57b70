"""Inputs of asynchronous code: opened without blocking the event loop, and asked for one after another by threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeGuard, TypeVar

from deepfake_client.sources.inputs import AsyncSource, name_of, open_source
from deepfake_preprocess.media.frames_source import GivenFrame, open_frames
from deepfake_preprocess.media.opening import Media

T = TypeVar("T")
Result = TypeVar("Result")


class Pulled(Generic[T]):
    """A blocking iterator over an asynchronous iterable, for one thread at a time; an asynchronous context manager.

    An item is taken only when a thread asks for it, so that nothing piles up. All are taken in one task, as an
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

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
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


@asynccontextmanager
async def opened(
    source: AsyncSource, *, name: str | None = None
) -> AsyncIterator[tuple[Media, Callable[[], None] | None]]:
    """Open one input of any kind, and close it in the end unless it is a `Media` of the caller's.

    Args:
        source: the input.
        name: see `deepfake_client.sources.inputs.open_source`.

    Yields:
        The input, and what makes a wait for its next frame end; None where nothing does.

    Raises:
        InputError: it cannot be opened.
    """
    if is_async(source):
        frames: Pulled[GivenFrame] = Pulled(source)
        async with frames:
            name = name or name_of(source) or "the given frames"
            yield await asyncio.to_thread(open_frames, frames, name=name), frames.cancel
        return
    media = await asyncio.to_thread(open_source, source, name=name)
    try:
        yield media, None
    finally:
        if media is not source:
            await asyncio.to_thread(media.close)


async def each_over(
    items: AsyncIterable[T], work: Callable[[Iterable[T]], AsyncGenerator[Result, Any]]
) -> AsyncGenerator[Result, None]:
    """Yield what `work` makes of asynchronous items; it iterates them in a thread."""
    pulled = Pulled(items)
    async with aclosing(work(pulled)) as results, pulled:
        async for result in results:
            yield result
