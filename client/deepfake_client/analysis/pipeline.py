"""The way of one input from frames to a verdict, with its stages overlapping.

::

    decode (1 thread) -> detect + crop (worker threads) -> infer (requests in flight) -> tracks -> verdict

Stages hand single frames on as soon as they are ready, and crops in requests of a few. What is alive at any time is
bounded by bytes of frames and by requests in flight, never by the length of the video. This module opens no file and
no connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from deepfake_client.analysis.clocks import Clocks, verdict_of
from deepfake_client.analysis.judging.scoring import Rules, ScoredFrame, judge
from deepfake_client.analysis.stopping import MAX_FRAMES, StopRule
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.verdict import Label, Verdict
from deepfake_client.sources.inputs import next_frame
from deepfake_client.sources.threads import Worker, in_thread
from deepfake_client.transport.protocol import ServedModel, Transport
from deepfake_preprocess.errors import DeepfakeError, InputError, ModelContractError, ServerError
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import FaceDetector, detection_image, faces_in_frame
from deepfake_preprocess.faces.following import DETECT_EVERY, Sighting, find_faces
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.sampling import Sampling

FRAME_BYTES_IN_FLIGHT: Final = 64 * 2**20
"""Decoded frames that may wait for detection, in bytes of RGB: about ten frames of 1080p."""
MIN_FRAMES_IN_FLIGHT: Final = 2
MAX_FRAMES_IN_FLIGHT: Final = 16
CROPS_PER_REQUEST: Final = 4
"""Crops, mostly of several frames, that wait for each other and go to the server together. A request costs client and
server 3 to 4 ms of CPU time besides the inference; with three or four crops in each, that hardly counts."""
BULK_CROPS_PER_REQUEST: Final = 2
"""The same for a connection that lets others go first: a request that a model has begun is finished before another
caller's. With 4, a caller beside a scan waited 2.2 to 2.4 times as long (p99) as alone; with 1, a scan took 1.04
times as long as `analyze_many`."""
SLOW_ANSWER_S: Final = 0.1
"""After an answer that took longer, in seconds, and before the first one, each frame's crops go by themselves: a
large model or a busy server is then at work until the last frame, and other callers wait behind fewer crops."""
JUDGE_EVERY_S: Final = 0.5
"""How often the frames so far are judged for `Progress`; it takes a millisecond or two."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an analysis has come.

    Attributes:
        frames_done: frames whose faces were all scored.
        frames_expected: frames that will be sampled, or None when that is not known beforehand.
        faces_scored: faces scored so far.
        label: what the frames so far say, renewed every `JUDGE_EVERY_S` seconds; None before.
        fake_probability: their score, in [0, 1]; None where `label` is None or INCONCLUSIVE.
    """

    frames_done: int
    frames_expected: int | None
    faces_scored: int
    label: Label | None = None
    fake_probability: float | None = None


OnProgress = Callable[[Progress], None]
Infer = Callable[[NDArray[np.uint8]], Awaitable[NDArray[np.float32]]]
"""Scores uint8 ``[N, H, W, 3]`` RGB crops of the model's input size, any N; returns float32 ``[N]``."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What an analysis runs on: the server, the detector and the threads.

    `detect_pool` runs detection and cropping; each input is decoded in a thread of its own. Crops wait for each other
    until `crops_per_request` can go together, or no others come.
    """

    infer: Infer
    model: ServedModel
    detector: FaceDetector
    detect_pool: Executor
    max_requests_in_flight: int
    crops_per_request: int = CROPS_PER_REQUEST


async def analyze_media(
    media: Media,
    stages: Stages,
    options: AnalyzeOptions,
    *,
    on_progress: OnProgress | None = None,
    release: Callable[[], None] | None = None,
) -> Verdict:
    """Run one opened input through all stages; it stays open.

    A server that fails in the middle ends the analysis; what was scored until then is in the verdict, which is
    INCONCLUSIVE with the reason. No frames are saved where looking at the video several times would not pay.
    `on_progress` and `release` are called in the event loop; `release` when the next frame of an input is not waited
    for any more. An input without it is the caller's to close, and its next frame is waited for.

    Raises ModelContractError when the server answers with tensors of another shape.
    """
    clocks = Clocks()
    sampling, rules = options.sampling, Rules.of(options, stages.model.spec)
    analysis = InputAnalysis(media, stages, sampling, clocks, release)
    if on_progress is not None:
        analysis.on_progress = _ProgressReporter(on_progress, analysis, rules)
    stop_rule = _stop_rule(media, sampling, rules, options.confidence)
    parts = [sampling] if stop_rule is None else stop_rule.parts(sampling)
    for num_passes, part in enumerate(parts, start=1):
        await analysis.drive(part)
        with clocks.aggregate:
            complete = _is_complete(media, sampling, len(analysis.frames))
            judgment = judge(analysis.frames, rules, failure=analysis.failure, complete=complete)
            sure = stop_rule is not None and stop_rule.suffices(
                judgment.frames, judgment.tracks, num_passes=num_passes
            )
        if sure or analysis.failure is not None:
            break
    frames_saved = 0
    if sure and stop_rule is not None:
        num_frames = len(judgment.frames)
        frames_saved = max(0, stop_rule.num_frames - num_frames)
        saved = f"{num_frames} of {stop_rule.num_frames} frames sufficed, at confidence {stop_rule.confidence:.4g}"
        judgment = replace(judgment, notes=(*judgment.notes, saved))
    return verdict_of(media, judgment, rules.threshold, stages.model, clocks, frames_saved=frames_saved)


async def infer_in_chunks(
    transport: Transport, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
) -> NDArray[np.float32]:
    """Score uint8 ``[N, H, W, 3]`` crops in requests of at most the model's batch size; returns float32 ``[N]``.

    `timeout_s` is the deadline of each request, in seconds; the transport's own when None.
    """
    size = model.max_batch_size
    if len(faces) <= size:
        return await transport.infer(model, faces, timeout_s=timeout_s)
    parts = [faces[start : start + size] for start in range(0, len(faces), size)]
    chunks = [transport.infer(model, part, timeout_s=timeout_s) for part in parts]
    return np.concatenate(await asyncio.gather(*chunks))


def frames_in_flight(width_px: int, height_px: int) -> int:
    """Return how many decoded frames of a size may wait for detection."""
    frame_bytes = max(1, width_px * height_px * 3)
    return min(max(FRAME_BYTES_IN_FLIGHT // frame_bytes, MIN_FRAMES_IN_FLIGHT), MAX_FRAMES_IN_FLIGHT)


class InputAnalysis:
    """One input on its way through the stages."""

    def __init__(
        self,
        media: Media,
        stages: Stages,
        sampling: Sampling,
        clocks: Clocks,
        release: Callable[[], None] | None = None,
    ) -> None:
        self.on_progress: OnProgress | None = None
        self.frames: list[ScoredFrame] = []
        self.frames_done: list[ScoredFrame] = []
        self.failure: ServerError | None = None
        self._clocks = clocks
        self._media = media
        self._stages = stages
        self._release = release
        self._frames_expected = _frames_expected(media, sampling)
        self._faces_scored = 0
        self._frames_seen = 0
        self._waiting: list[tuple[ScoredFrame, NDArray[np.uint8]]] = []  # for a request of enough crops
        self._is_slow = True  # the server, judging by its last answer; until there is one, it may be
        self._num_coming = 0  # those from which more crops may come: the decoder, and frames before `_gather`
        self._latest: asyncio.Future[Sighting | None] | None = None
        self._frame_slots = asyncio.Semaphore(frames_in_flight(media.width_px, media.height_px))
        self._request_slots = asyncio.Semaphore(stages.max_requests_in_flight)

    async def drive(self, sampling: Sampling) -> None:
        """Take every sampled frame through detection and inference; returns when all of them are through.

        Frames that an earlier call took are not taken again.
        """
        frames = self._media.frames(sampling)
        decoder = Worker("deepfake-decode")
        taken = {frame.pts_seconds for frame in self.frames}
        decoding: Future[Frame | None] | None = None
        self._num_coming = 1
        try:
            async with asyncio.TaskGroup() as group:
                while self.failure is None:
                    decoding = decoder.submit(next_frame, frames, self._media.name)
                    frame = await asyncio.wrap_future(decoding)
                    if frame is None:
                        break
                    if frame.pts_seconds in taken:
                        continue
                    await self._frame_slots.acquire()
                    scored = ScoredFrame(frame.index, frame.pts_seconds)
                    self.frames.append(scored)
                    self._num_coming += 1
                    group.create_task(self._process(frame, scored))
                    del frame
                self._num_coming -= 1
                if batch := self._next_batch():
                    await self._request_slots.acquire()
                    await self._send(batch)
        except ExceptionGroup as errors:
            # The stages of one input fail together and for one cause: report that cause.
            raise errors.exceptions[0] from None
        finally:
            decoder.end()
            if decoding is not None and not decoding.done():
                if self._release is not None:
                    self._release()
                else:
                    # The decoder must have released the container before the caller closes it.
                    await in_thread(wait, [decoding])
        self.frames.sort(key=lambda item: item.pts_seconds)

    async def score(self, frame: Frame) -> ScoredFrame:
        """Take one frame through detection and inference, for a caller that brings the frames itself."""
        await self._frame_slots.acquire()
        scored = ScoredFrame(frame.index, frame.pts_seconds)
        await self._process(frame, scored, alone=True)
        return scored

    async def _process(self, frame: Frame, scored: ScoredFrame, *, alone: bool = False) -> None:
        """Take one frame through detection, and into a request with others or `alone`, for which nobody is waited."""
        loop = asyncio.get_running_loop()
        # Tasks start in the order of their frames. Which frames start over is fixed, so results do not depend on
        # the threads' speed; those between form a chain, and chains run side by side.
        previous, self._latest = self._latest, loop.create_future()
        latest, starts_over = self._latest, self._frames_seen % DETECT_EVERY == 0
        self._frames_seen += 1
        try:
            before = None if previous is None or starts_over else await previous
            crops, sighting = await loop.run_in_executor(
                self._stages.detect_pool, self._detect, frame, scored, before
            )
            latest.set_result(sighting)
            # The frame's memory is free from here on; only the small crops wait for the server.
            del frame
            batch = self._gather(scored, crops, alone=alone)
            if batch:
                await self._request_slots.acquire()
        finally:
            self._frame_slots.release()
            if not latest.done():
                # This frame failed or was given up; the next one must not wait for it.
                latest.set_result(None)
        if batch:
            await self._send(batch)

    def _gather(
        self, scored: ScoredFrame, crops: NDArray[np.uint8] | None, *, alone: bool
    ) -> list[tuple[ScoredFrame, NDArray[np.uint8]]]:
        """Take the crops of a frame, and return those that are to be sent now, by whoever gets them."""
        if crops is None:
            self._finish(scored)
        if alone:
            return [] if crops is None else [(scored, crops)]
        self._num_coming -= 1
        if crops is not None:
            self._waiting.append((scored, crops))
        return self._next_batch()

    def _next_batch(self) -> list[tuple[ScoredFrame, NDArray[np.uint8]]]:
        """Return the waiting frames if their crops are enough for a request, or no others come; else nothing."""
        enough = 1 if self._is_slow else self._stages.crops_per_request
        if self._num_coming and sum(len(crops) for _, crops in self._waiting) < enough:
            return []
        batch, self._waiting = self._waiting, []
        return batch

    async def _send(self, batch: list[tuple[ScoredFrame, NDArray[np.uint8]]]) -> None:
        """Send the crops of some frames in one request, for which a slot was taken."""
        frames, crops = zip(*batch, strict=True)
        try:
            if self.failure is None:
                started = time.monotonic()
                with self._clocks.infer:
                    found = await self._stages.infer(np.concatenate(crops))
                self._is_slow = time.monotonic() - started > SLOW_ANSWER_S
                ends = np.cumsum([len(part) for part in crops])
                for scored, probabilities in zip(frames, np.split(found, ends[:-1]), strict=True):
                    scored.probabilities = probabilities
        except ModelContractError:
            raise
        except ServerError as exc:
            self.failure = self.failure or exc
            return
        finally:
            self._request_slots.release()
        for scored in frames:
            self._finish(scored)

    def _finish(self, scored: ScoredFrame) -> None:
        self.frames_done.append(scored)
        self._faces_scored += len(scored.faces)
        if self.on_progress is not None:
            self.on_progress(Progress(len(self.frames_done), self._frames_expected, self._faces_scored))

    def _detect(
        self, frame: Frame, scored: ScoredFrame, before: Sighting | None
    ) -> tuple[NDArray[np.uint8] | None, Sighting]:
        """Find, crop and look at the faces of one frame; runs on a worker thread. InputError whatever is raised."""
        try:
            return self._look_at(frame, scored, before)
        except DeepfakeError:
            raise
        except Exception as exc:
            raise InputError(
                f"{self._media.name} cannot be analyzed, because looking for faces in frame {frame.index} raised "
                f"{type(exc).__name__}: {' '.join(str(exc).split())}; leave this input out, and report it"
            ) from exc

    def _look_at(
        self, frame: Frame, scored: ScoredFrame, before: Sighting | None
    ) -> tuple[NDArray[np.uint8] | None, Sighting]:
        spec = self._stages.model.spec
        with self._clocks.detect:
            small = detection_image(frame, self._stages.detector)
            sighting = find_faces(self._stages.detector, small, frame.pts_seconds, before)
            scored.faces = faces_in_frame(frame, small, sighting.faces)
        with self._clocks.crop:
            crops = np.stack([crop_face(frame, face, spec) for face in scored.faces]) if scored.faces else None
            scored.describe(frame, small, crops, spec)
        return crops, sighting


class _ProgressReporter:
    """Passes progress on, together with what the frames so far say."""

    def __init__(self, on_progress: OnProgress, analysis: InputAnalysis, rules: Rules) -> None:
        self._on_progress, self._analysis, self._rules = on_progress, analysis, rules
        self._judged_at = time.monotonic()
        self._label: Label | None = None
        self._fake_probability: float | None = None

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._judged_at >= JUDGE_EVERY_S:
            # Not those under way: a thread may be filling them in.
            frames = sorted(self._analysis.frames_done, key=lambda frame: frame.pts_seconds)
            judgment = judge(frames, self._rules, weigh_motion=False)
            self._label, self._fake_probability = judgment.label, judgment.fake_probability
            self._judged_at = time.monotonic()
        self._on_progress(replace(progress, label=self._label, fake_probability=self._fake_probability))


def _stop_rule(media: Media, sampling: Sampling, rules: Rules, confidence: float | None) -> StopRule | None:
    """Return the rule for an early stop where one is wanted and several passes over the input make sense."""
    num_frames = _frames_expected(media, sampling)
    if confidence is None or media.kind != "video" or num_frames is None or media.duration_s is None:
        return None
    if sampling.mode == "fast":
        return None  # several passes would decode the same few stretches again
    if num_frames > MAX_FRAMES:
        return None  # a length that somebody made up; each position would be reckoned
    if media.frame_rate is not None and num_frames >= media.duration_s * media.frame_rate:
        return None  # every frame is sampled, in the order of decoding
    return StopRule(num_frames, rules.strategy, rules.threshold, confidence)


def _frames_expected(media: Media, sampling: Sampling) -> int | None:
    if media.kind == "image":
        return 1
    if sampling.num_frames is not None:
        return sampling.num_frames
    if sampling.fps is not None and media.duration_s is not None:
        return max(1, round(media.duration_s * sampling.fps))
    return None


def _is_complete(media: Media, sampling: Sampling, num_frames: int) -> bool:
    """Return whether the frames that were taken are all that the input has."""
    if media.stats.unread:
        return False
    if media.kind == "image" or (sampling.num_frames is not None and num_frames < sampling.num_frames):
        return True
    if media.duration_s is not None and media.frame_rate is not None:
        return num_frames >= media.duration_s * media.frame_rate - 0.5
    # A rate is asked for, so everything was decoded.
    return sampling.num_frames is None and num_frames >= media.stats.frames_decoded
