"""A rolling verdict over a source that is still going on.

::

    source -> decode (1 thread) -> bounded queue -> detect + infer (a few frames at once) -> window -> verdict

Where the server is slower than the source, either the source waits or the oldest frames are dropped and counted, so
that memory is bounded and, with dropping, so is the delay. The window is judged like a video of its length.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from deepfake_client.analysis.clocks import Clocks, verdict_of
from deepfake_client.analysis.judging.scoring import Rules, ScoredFrame, judge
from deepfake_client.analysis.pipeline import MAX_FRAMES_IN_FLIGHT, InputAnalysis, Stages, frames_in_flight
from deepfake_client.analysis.track_ids import StableIds
from deepfake_client.options import WatchOptions
from deepfake_client.result.verdict import Verdict
from deepfake_client.sources.inputs import next_frame
from deepfake_client.sources.threads import in_thread
from deepfake_preprocess.errors import ServerError
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.live import LiveSource
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.sampling import Sampling

_JOIN_S: Final = 1.0


class _Feed:
    """Takes frames from a source in a thread of its own, and keeps few of them until they are asked for."""

    def __init__(self, source: LiveSource, stop: threading.Event, options: WatchOptions) -> None:
        self.dropped = 0
        self._source = source
        self._stop = stop
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, Frame]] = deque()
        self.ended = False
        self._error: BaseException | None = None
        # A daemon: a read that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._read, name="deepfake-live", daemon=True)
        self._thread.start()

    @property
    def drops(self) -> bool:
        """Whether frames are dropped rather than the source made to wait."""
        return not self._source.can_wait if self._options.on_slow is None else self._options.on_slow == "drop"

    async def get(self) -> Frame | None:
        """Return the oldest frame that is not too old; None at the end. Raises what the source raised."""
        while True:
            with self._changed:
                while self._waiting and self.drops and self._is_late(self._waiting[0][0]):
                    self._waiting.popleft()
                    self.dropped += 1
                if self._waiting:
                    self._changed.notify()
                    return self._waiting.popleft()[1]
                if self.ended:
                    break
                self._arrived.clear()
            await self._arrived.wait()
        if self._error is not None:
            raise self._error
        return None

    async def close(self) -> None:
        """Stop the thread; one that hangs in a read ends when that does."""
        self._stop.set()
        with self._changed:
            self._changed.notify()
        await in_thread(self._thread.join, _JOIN_S)

    def _is_late(self, arrived: float) -> bool:
        # Half of the delay is for the queue, the other half for the frames under way.
        return time.monotonic() - arrived > self._options.max_latency_s / 2

    def _read(self) -> None:
        try:
            while (frame := next_frame(self._source.frames, self._source.name)) is not None:
                room = frames_in_flight(frame.width_px, frame.height_px)
                with self._changed:
                    while self.drops and len(self._waiting) >= room:
                        self._waiting.popleft()
                        self.dropped += 1
                    while len(self._waiting) >= room and not self._stop.is_set():
                        self._changed.wait()
                    self._waiting.append((time.monotonic(), frame))
                self._wake()
                if self._stop.is_set():
                    break
        except BaseException as exc:
            self._error = exc
        finally:
            self._source.frames.close()
            with self._changed:
                self.ended = True
            self._wake()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.set)


class _Window:
    """The frames of the last seconds, and the verdict on them that was shown last."""

    def __init__(self, source: LiveSource, feed: _Feed, stages: Stages, options: WatchOptions) -> None:
        self.failure: ServerError | None = None
        self._source = source
        self._feed = feed
        self._stages = stages
        self._options = options
        self.clocks = Clocks()
        self._frames: deque[ScoredFrame] = deque()
        self._num_added = 0
        self._ids = StableIds()
        self._next_step: float | None = None
        self._shown: Verdict | None = None
        self._is_shown = False

    def add(self, frame: ScoredFrame, analysis: InputAnalysis) -> Verdict | None:
        """Take the next frame, and return a verdict when it is time for one and it says something new."""
        if frame.probabilities is not None:
            self.failure = None
        elif frame.faces:
            self.failure = analysis.failure or self.failure
            analysis.failure = None  # the next frames are tried again
        self._frames.append(frame)
        self._num_added += 1
        while self._frames[0].pts_seconds <= frame.pts_seconds - self._options.window_s:
            self._frames.popleft()
        self._is_shown = False
        if self._next_step is None:
            self._next_step = frame.pts_seconds + self._options.step_s
        if frame.pts_seconds < self._next_step:
            return None
        while self._next_step <= frame.pts_seconds:
            self._next_step += self._options.step_s
        verdict = self._judge()
        if self._shown is not None and not self._differs(verdict, self._shown):
            return None
        return self._show(verdict)

    def last(self) -> Verdict | None:
        """Return the verdict at the end, unless it was returned before."""
        # What was shorter than the window is judged like a video.
        verdict = self._judge(as_video=self._num_added == len(self._frames))
        if self._is_shown and self._shown is not None and self._shown.label == verdict.label:
            return None
        return self._show(verdict)

    def _show(self, verdict: Verdict) -> Verdict:
        self._shown, self._is_shown = verdict, True
        return verdict

    def _differs(self, new: Verdict, old: Verdict) -> bool:
        if (new.label, new.reason, new.deciding_track) != (old.label, old.reason, old.deciding_track):
            return True
        return abs((new.fake_probability or 0.0) - (old.fake_probability or 0.0)) >= self._options.min_change

    def _judge(self, *, as_video: bool = False) -> Verdict:
        model = self._stages.model
        rules = (Rules.of if as_video else Rules.of_window)(self._options, model.spec)
        # Before the end there may always be more.
        complete = self._num_added == len(self._frames) == self._source.stats.frames_decoded
        with self.clocks.aggregate:
            judgment = self._ids.apply(
                judge(tuple(self._frames), rules, failure=self.failure, complete=complete and self._feed.ended)
            )
        dropped = self._feed.dropped
        return verdict_of(self._source, judgment, rules.threshold, model, self.clocks, frames_dropped=dropped)


async def watch_frames(
    source: LiveSource, stop: threading.Event, get_stages: Callable[[], Awaitable[Stages]], options: WatchOptions
) -> AsyncGenerator[Verdict, None]:
    """Yield verdicts as they change, and one at the end; `stop` ends the source's frames."""
    stages = await get_stages()
    feed = _Feed(source, stop, options)
    window = _Window(source, feed, stages, options)
    analysis: InputAnalysis | None = None
    # In order of time, with the time at which each was started.
    under_way: deque[tuple[float, asyncio.Task[ScoredFrame]]] = deque()
    getting: asyncio.Task[Frame | None] | None = None
    ended = False
    error: Exception | None = None
    try:
        while True:
            if getting is None and not ended and _may_start(under_way, feed, options):
                getting = asyncio.create_task(feed.get())
            waiting: list[asyncio.Task[Any]] = [task for _, task in list(under_way)[:1]]
            if getting is not None:
                waiting.append(getting)
            if not waiting:
                break
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if getting is not None and getting.done():
                try:
                    frame = getting.result()
                except Exception as exc:
                    frame, error = None, exc
                getting = None
                if frame is None:
                    ended = True
                else:
                    analysis = analysis or _analysis(source, frame, stages, window.clocks, options)
                    under_way.append((time.monotonic(), asyncio.create_task(analysis.score(frame))))
                    del frame
            failed = False
            while under_way and under_way[0][1].done() and analysis is not None and not failed:
                verdict = window.add(under_way.popleft()[1].result(), analysis)
                if verdict is not None:
                    yield verdict
                # A file is still there when the server is back; a camera goes on meanwhile.
                failed = window.failure is not None and not feed.drops
            if failed:
                break
        last = window.last() if error is None or analysis is not None else None
        if last is not None:
            yield last
        if error is not None:
            raise error
    finally:
        tasks = [task for _, task in under_way]
        for task in (*tasks, getting):
            if task is not None:
                task.cancel()
        await asyncio.gather(*tasks, *([getting] if getting else []), return_exceptions=True)
        await feed.close()


def _may_start(under_way: deque[tuple[float, asyncio.Task[ScoredFrame]]], feed: _Feed, options: WatchOptions) -> bool:
    if len(under_way) >= MAX_FRAMES_IN_FLIGHT:
        return False
    # With a slow server each frame more under way is more delay for those after it.
    return not under_way or not feed.drops or time.monotonic() - under_way[0][0] < options.max_latency_s / 2


def _analysis(
    source: LiveSource, frame: Frame, stages: Stages, clocks: Clocks, options: WatchOptions
) -> InputAnalysis:
    media = Media(source.name, "video", frame.width_px, frame.height_px, None, None, "", stats=source.stats)
    return InputAnalysis(media, stages, Sampling(num_frames=None, fps=options.fps), clocks)
