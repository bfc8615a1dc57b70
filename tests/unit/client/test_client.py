"""The client without a server: what it sends, how it decides, and what it answers when something fails."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fixed_detector import LEFT, RIGHT, FixedDetector
from media import write_video
from numpy.typing import NDArray

from deepfake_client import (
    AnalyzeOptions,
    AsyncDeepfakeClient,
    Connection,
    DeepfakeClient,
    DeepfakeError,
    InferenceError,
    InputError,
    Label,
    MediaNotFoundError,
    MediaOpenError,
    ModelNotFoundError,
    ModelReplacedError,
    OptionError,
    Progress,
    Reason,
    Sampling,
    ServedModel,
    ServerTimeoutError,
    ServerUnavailableError,
    Transport,
    open_media,
)
from deepfake_client.analysis import pipeline
from deepfake_client.analysis.judging import scoring
from deepfake_client.analysis.judging.scoring import Judgment, ScoredFrame
from deepfake_client.analysis.pipeline import BULK_CROPS_PER_REQUEST, CROPS_PER_REQUEST
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.faces.detector import Face, FaceDetector


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames: the left half is nearly black, the right half nearly white."""
    image = np.full((120, 160, 3), 25, np.uint8)
    image[:, 80:] = 230
    path = tmp_path_factory.mktemp("media") / "halves.mp4"
    write_video(path, [image] * 40, fps=20)
    return path


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def client(transport: FakeTransport) -> Iterator[DeepfakeClient]:
    with DeepfakeClient(transport, detector=FixedDetector(LEFT, RIGHT)) as client:
        yield client


def test_the_fakes_follow_the_protocols() -> None:
    assert isinstance(FakeTransport(), Transport)
    assert isinstance(FixedDetector(), FaceDetector)


def test_the_bright_face_decides_and_each_face_has_its_track(client: DeepfakeClient, clip: Path) -> None:
    verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=10)))
    assert verdict.label is Label.FAKE
    assert verdict.source == str(clip)
    assert [track.label for track in verdict.tracks] == [Label.REAL, Label.FAKE]
    assert verdict.deciding_track == 1
    assert verdict.fake_probability == pytest.approx(verdict.tracks[1].fake_probability - 0.0275, abs=0.001), (
        "the higher of two is high by chance"
    )
    # The crop's margin reaches beyond the frame, where it is black.
    assert verdict.tracks[0].fake_probability < 0.25 < 0.5 < verdict.tracks[1].fake_probability
    assert len(verdict.frames) == 10
    times = [frame.pts_seconds for frame in verdict.frames]
    assert times == sorted(times)
    for frame in verdict.frames:
        left, right = frame.faces
        assert left.box_xyxy == pytest.approx((16, 24, 64, 96), abs=0.1)
        assert (left.track, right.track) == (0, 1)
    assert verdict.timing_s.total > 0


def test_json_has_the_promised_fields(client: DeepfakeClient, clip: Path) -> None:
    data = json.loads(json.dumps(client.analyze(clip).to_dict()))
    assert {
        "source", "label", "fake_probability", "threshold", "reason", "tracks", "frames", "model", "timing_s",
    } <= set(data)  # fmt: skip
    assert set(data["frames"][0]) == {"index", "pts_seconds", "faces", "size_wh"}
    assert set(data["frames"][0]["faces"][0]) == {
        "track", "box_xyxy", "detection_confidence", "fake_probability", "weight", "concerns",
        "landmarks_xy",
    }  # fmt: skip
    assert set(data["model"]) == {"name", "version", "checkpoint_sha256", "caution"}
    assert set(data["timing_s"]) == {"decode", "detect", "crop", "infer", "aggregate", "total"}
    assert data["label"] == "FAKE"
    assert data["reason"] is None


def test_requests_stay_within_the_servers_batch(clip: Path) -> None:
    transport = FakeTransport(max_batch_size=1)
    with DeepfakeClient(transport, detector=FixedDetector(LEFT, RIGHT)) as client:
        client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=5)))
    assert transport.batches == [1] * 10
    assert transport.closed


class Answering(FakeTransport):
    """Says when it has answered for the first time."""

    def __init__(self, latency_s: float) -> None:
        super().__init__(latency_s=latency_s)
        self.answered = threading.Event()

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        found = await super().infer(model, faces, timeout_s=timeout_s)
        self.answered.set()
        return found


@pytest.mark.parametrize(
    ("latency_s", "bulk", "batches"),
    [
        (0.0, False, [1] + [CROPS_PER_REQUEST] * 2 + [2]),
        (2 * pipeline.SLOW_ANSWER_S, False, [1] * 11),
        (0.0, True, [1] + [BULK_CROPS_PER_REQUEST] * 5),
    ],
)
def test_crops_of_several_frames_share_a_request_unless_the_server_is_slow_or_others_go_first(
    latency_s: float, bulk: bool, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = Answering(latency_s)
    monkeypatch.setattr("deepfake_client.async_client.connect", lambda connection: transport)

    def frames() -> Iterator[NDArray[np.uint8]]:
        for number in range(sum(batches)):
            if number == 2:  # the first is known to be on screen when the second comes
                assert transport.answered.wait(30)
            yield np.full((120, 160, 3), 20 + 10 * number, np.uint8)

    with DeepfakeClient(Connection(bulk=bulk), detector=FixedDetector(LEFT)) as client:
        verdict = client.analyze(frames(), options=AnalyzeOptions(sampling=Sampling(num_frames=None, fps=25)))
    assert transport.batches == batches
    scores = [face.fake_probability for frame in verdict.frames for face in frame.faces]
    assert len(scores) == sum(batches)
    assert scores == sorted(set(scores)), "brighter frames have higher scores"


def test_no_frame_waits_for_faces_that_do_not_come(clip: Path) -> None:
    transport = FakeTransport()
    with DeepfakeClient(transport, detector=FixedDetector(LEFT, until=CROPS_PER_REQUEST + 1)) as client:
        verdict = client.analyze(clip)
    assert sum(transport.batches) == CROPS_PER_REQUEST + 1
    assert sum(face.fake_probability is not None for frame in verdict.frames for face in frame.faces) == 5


def test_bytes_file_objects_images_and_opened_media_are_inputs_too(client: DeepfakeClient, clip: Path) -> None:
    expected = client.analyze(clip).fake_probability
    assert client.analyze(clip.read_bytes()).fake_probability == expected
    assert client.analyze(io.BytesIO(clip.read_bytes())).fake_probability == expected
    with open_media(clip) as media:
        assert client.analyze(media).fake_probability == expected
        assert next(media.frames()).width_px == 160, "the client must not close what it did not open"
    image = np.full((90, 120, 3), 200, np.uint8)
    verdict = client.analyze(cv2.imencode(".png", image)[1].tobytes())
    assert verdict.label is Label.FAKE
    assert len(verdict.frames) == 1


def test_the_callers_threshold_and_rule_are_used(client: DeepfakeClient, clip: Path) -> None:
    assert client.analyze(clip, options=AnalyzeOptions(threshold=0.99)).label is Label.REAL
    assert client.analyze(clip, options=AnalyzeOptions(aggregation="vote")).fake_probability == pytest.approx(
        1.0, abs=1e-5
    )
    with pytest.raises(OptionError, match="`aggregation` is 'best'"):
        client.analyze(clip, options=AnalyzeOptions(aggregation="best"))
    with pytest.raises(OptionError, match="strictly between 0 and 1"):
        client.analyze(clip, options=AnalyzeOptions(threshold=1.0))


def test_progress_is_reported_for_every_frame(client: DeepfakeClient, clip: Path) -> None:
    seen: list[Progress] = []
    client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=8)), on_progress=seen.append)
    assert [item.frames_done for item in seen] == list(range(1, 9))
    last = seen[-1]
    assert (last.frames_done, last.frames_expected, last.faces_scored) == (8, 8, 16)


def test_progress_tells_what_the_frames_so_far_say(
    client: DeepfakeClient, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "JUDGE_EVERY_S", 0.0)
    seen: list[Progress] = []
    verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=8)), on_progress=seen.append)
    assert seen[-1].label is verdict.label is Label.FAKE
    assert seen[-1].fake_probability == verdict.fake_probability


def test_progress_leaves_frames_under_way_alone(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread may be filling them in; judging one then ended the analysis with an error."""

    class TwoAtOnce(FakeTransport):
        """Answers nothing before a second frame has come as far as the first."""

        def __init__(self) -> None:
            super().__init__()
            self.waiting = 0
            self.second = asyncio.Event()

        async def infer(
            self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
        ) -> NDArray[np.float32]:
            self.waiting += 1
            if self.waiting == 2:
                self.second.set()
            await self.second.wait()
            return await super().infer(model, faces, timeout_s=timeout_s)

    judged: list[list[bool]] = []

    def judge(scored: Sequence[ScoredFrame], *args: Any, **options: Any) -> Judgment:
        judged.append([frame.probabilities is not None for frame in scored])
        return scoring.judge(scored, *args, **options)

    monkeypatch.setattr(pipeline, "JUDGE_EVERY_S", 0.0)
    monkeypatch.setattr(pipeline, "judge", judge)
    with DeepfakeClient(TwoAtOnce(), detector=FixedDetector(LEFT)) as client:
        client.analyze(
            clip, options=AnalyzeOptions(sampling=Sampling(num_frames=8)), on_progress=lambda progress: None
        )
    *so_far, last = judged
    assert [len(frames) for frames in so_far] == list(range(1, 9))
    assert all(all(frames) for frames in judged)
    assert len(last) == 8


def test_no_face_is_inconclusive(clip: Path) -> None:
    transport = FakeTransport()
    with DeepfakeClient(transport, detector=FixedDetector()) as client:
        verdict = client.analyze(clip)
    assert (verdict.label, verdict.reason, verdict.fake_probability) == (Label.INCONCLUSIVE, Reason.NO_FACE, None)
    assert len(verdict.frames) == 32
    assert transport.batches == []


def test_a_face_on_two_of_many_frames_is_inconclusive(clip: Path) -> None:
    with DeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT, until=2), detect_threads=1) as client:
        verdict = client.analyze(clip)
    assert (verdict.label, verdict.reason) == (Label.INCONCLUSIVE, Reason.TOO_FEW_FRAMES)
    assert [track.counted for track in verdict.tracks] == [False]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ServerUnavailableError("gone"), Reason.SERVER_UNAVAILABLE),
        (InferenceError("out of memory"), Reason.SERVER_ERROR),
    ],
)
def test_what_was_scored_before_the_server_failed_is_kept(clip: Path, error: DeepfakeError, reason: Reason) -> None:
    transport = FakeTransport(fail_after=4, error=error)
    with DeepfakeClient(transport, detector=FixedDetector(LEFT), detect_threads=1) as client:
        verdict = client.analyze(clip)
    assert (verdict.label, verdict.reason) == (Label.INCONCLUSIVE, reason)
    assert str(error) in verdict.detail
    scored = [face for frame in verdict.frames for face in frame.faces if face.fake_probability is not None]
    assert len(transport.batches) == 4
    assert len(scored) == verdict.tracks[0].num_frames == sum(transport.batches)


def test_a_server_that_is_not_there_raises(clip: Path) -> None:
    with DeepfakeClient("127.0.0.1:1") as client, pytest.raises(ServerUnavailableError, match="deepfake serve"):
        client.analyze(clip)


@pytest.mark.parametrize("url", ["127.0.0.1:1", "no-such-host.invalid:8001"])
def test_a_bad_input_is_found_before_any_server_is_asked(tmp_path: Path, url: str) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is no video")
    with DeepfakeClient(url) as client:
        with pytest.raises(MediaNotFoundError, match=r"none\.mp4"):
            client.analyze(tmp_path / "none.mp4")
        with pytest.raises(MediaOpenError, match=r"text\.mp4"):
            client.analyze(text)


def test_an_unknown_model_is_named_with_those_offered(clip: Path, transport: FakeTransport) -> None:
    with (
        DeepfakeClient(transport, model="other") as client,
        pytest.raises(ModelNotFoundError, match="no model 'other'; it offers fake_model"),
    ):
        client.analyze(clip)
    assert ModelNotFoundError.exit_code == 2  # the name is the user's mistake, and not the server's failure


def test_crops_can_be_scored_directly(client: DeepfakeClient, transport: FakeTransport) -> None:
    faces = np.stack([np.full((224, 224, 3), value, np.uint8) for value in range(0, 250, 12)])
    scores = client.score(faces)
    assert scores.shape == (21,)
    np.testing.assert_allclose(scores, np.arange(0, 250, 12) / 255, atol=1e-6)
    assert sorted(transport.batches) == [5, 8, 8]
    assert client.score(faces[:0]).shape == (0,)
    with pytest.raises(OptionError, match=r"\[N, 224, 224, 3\], got uint8 \[1, 10, 10, 3\]"):
        client.score(np.zeros((1, 10, 10, 3), np.uint8))
    with pytest.raises(OptionError, match="got float64"):
        client.score(np.zeros((1, 224, 224, 3)))  # type: ignore[arg-type]


def test_an_error_in_the_detector_reaches_the_caller(clip: Path) -> None:
    class Broken(FixedDetector):
        def detect(self, images_rgb: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
            raise RuntimeError("broken detector")

    with (
        DeepfakeClient(FakeTransport(), detector=Broken(LEFT)) as client,
        pytest.raises(InputError, match="raised RuntimeError: broken detector"),
    ):
        client.analyze(clip)


def test_many_analyses_share_one_client(client: DeepfakeClient, clip: Path) -> None:
    verdicts = []

    def work() -> None:
        verdicts.append(client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=6))))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({verdict.fake_probability for verdict in verdicts}) == 1
    assert len(verdicts) == 6


def test_the_async_client_gives_the_same_verdict(client: DeepfakeClient, clip: Path) -> None:
    async def analyze() -> float | None:
        async with AsyncDeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT, RIGHT)) as other:
            first, second = await asyncio.gather(other.analyze(clip), other.analyze(clip))
            assert first.frames == second.frames
            return first.fake_probability

    assert asyncio.run(analyze()) == client.analyze(clip).fake_probability


def test_a_cancelled_analysis_lets_go_of_everything(clip: Path) -> None:
    class Slow(FakeTransport):
        async def infer(
            self, model: object, faces: NDArray[np.uint8], *, timeout_s: float | None = None
        ) -> NDArray[np.float32]:
            waiting.set()
            await asyncio.Event().wait()
            raise AssertionError

    waiting = asyncio.Event()

    async def scenario() -> None:
        async with AsyncDeepfakeClient(Slow(), detector=FixedDetector(LEFT)) as client:
            task = asyncio.create_task(client.analyze(clip))
            await waiting.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="`timeout_s` must be positive, got 0"):
        Connection(timeout_s=0)
    with pytest.raises(OptionError, match="`max_requests_in_flight` must be at least 1, got 0"):
        DeepfakeClient(max_requests_in_flight=0)
    with pytest.raises(OptionError, match="`detect_threads` must be at least 1"):
        DeepfakeClient(detect_threads=0)


def test_one_call_can_have_a_deadline_of_its_own() -> None:
    faces = np.zeros((3, 224, 224, 3), np.uint8)
    with DeepfakeClient(FakeTransport(latency_s=0.05, max_batch_size=2)) as client:
        with pytest.raises(ServerTimeoutError, match=r"within 0\.01 s"):
            client.score(faces, timeout_s=0.01)
        assert len(client.score(faces)) == 3
        with pytest.raises(OptionError, match="`timeout_s` must be positive, got 0"):
            client.score(faces, timeout_s=0)


def test_an_analysis_passes_its_deadline_on(clip: Path) -> None:
    transport = FakeTransport(latency_s=0.05)
    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client:
        verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=3), timeout_s=0.01))
        assert (verdict.reason, "within 0.01 s" in verdict.detail) == (Reason.SERVER_UNAVAILABLE, True)
        late = next(
            client.analyze_many([clip], options=AnalyzeOptions(sampling=Sampling(num_frames=3), timeout_s=0.01))
        ).verdict
        assert late is not None
        assert late.reason is Reason.SERVER_UNAVAILABLE
        with pytest.raises(OptionError, match="`timeout_s` must be positive, got -1"):
            client.analyze_many([clip], options=AnalyzeOptions(timeout_s=-1))


def test_a_client_goes_on_with_the_model_that_replaced_its_own() -> None:
    class Replaced(FakeTransport):
        version, margin = 1, 0.3

        async def describe(self, model: str) -> ServedModel:
            found = await super().describe(model)
            crop = dataclasses.replace(found.spec.crop, margin=self.margin)
            return dataclasses.replace(found, version=self.version, spec=dataclasses.replace(found.spec, crop=crop))

        async def infer(
            self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
        ) -> NDArray[np.float32]:
            if model.version != self.version:
                raise ModelReplacedError(f"version was {model.version} and is {self.version}")
            return await super().infer(model, faces, timeout_s=timeout_s)

    transport = Replaced()
    faces = np.zeros((1, 224, 224, 3), np.uint8)
    with DeepfakeClient(transport) as client:
        client.score(faces)
        transport.version = 2
        assert len(client.score(faces)) == 1
        assert client.model().version == 2
        transport.version, transport.margin = 3, 0.1
        with pytest.raises(ModelReplacedError, match="version was 2 and is 3"):  # which wants other crops
            client.score(faces)
        assert len(client.score(faces)) == 1


def test_an_input_whose_model_is_replaced_is_analyzed_again_as_a_whole(clip: Path) -> None:
    class Replaced(FakeTransport):
        version = 1

        async def describe(self, model: str) -> ServedModel:
            return dataclasses.replace(await super().describe(model), version=self.version)

        async def infer(
            self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
        ) -> NDArray[np.float32]:
            if len(self.batches) == 1:
                self.version = 2
            if model.version != self.version:
                raise ModelReplacedError(f"version was {model.version} and is {self.version}")
            return await super().infer(model, faces, timeout_s=timeout_s)

    options = AnalyzeOptions(sampling=Sampling(num_frames=6))
    with DeepfakeClient(Replaced(), detector=FixedDetector(LEFT)) as client:
        verdict = client.analyze(clip, options=options)
    assert (verdict.model.version, len(verdict.frames)) == (2, 6)
    with DeepfakeClient(Replaced(), detector=FixedDetector(LEFT)) as client, open_media(clip) as media:
        frames = [frame.to_rgb() for frame in media.frames(Sampling(num_frames=6))]
        with pytest.raises(ModelReplacedError):  # frames that come once cannot be had again
            client.analyze(iter(frames), options=options)
