"""From scored faces to the judgment: cuts, several people, poor faces and the sentences that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from media import astronaut, write_video
from numpy.typing import NDArray

from deepfake_client import AnalyzeOptions, Concern, DeepfakeClient, Label, Reason, Sampling, ServerUnavailableError
from deepfake_client.analysis.judging.aggregation import STRATEGIES
from deepfake_client.analysis.judging.quality import Quality
from deepfake_client.analysis.judging.scoring import FaceAppearance, Rules, ScoredFrame, judge
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.faces.detector import Face

RULES = Rules(STRATEGIES["mean"], 0.5)
COLORS = np.sqrt(np.full(8, 1 / 8, dtype=np.float32))


def frame(index: int, *faces: tuple[float, float, float]) -> ScoredFrame:
    """Each face is the left edge of its box, its probability and its weight."""
    return ScoredFrame(
        index,
        index * 0.3,
        [Face(np.array([x, 0, x + 100, 100], np.float32), 0.99) for x, _, _ in faces],
        np.array([probability for _, probability, _ in faces], np.float32),
        COLORS,
        [FaceAppearance(Quality(w, () if w == 1 else (Concern.BLURRED,)), COLORS) for _, _, w in faces],
    )


def judgment(frames: list[ScoredFrame]):
    return judge(frames, RULES)


def test_one_fake_face_beside_a_real_one_is_named() -> None:
    result = judgment([frame(n, (0, 0.1, 1), (300, 0.9, 1)) for n in range(10)])
    assert result.label is Label.FAKE
    assert result.deciding_track == 1
    assert result.tracks[1].fake_probability == pytest.approx(0.9)
    assert result.fake_probability == pytest.approx(0.89, abs=0.005), "the higher of two is high by chance"
    assert result.interval is not None
    assert result.interval.low <= result.fake_probability <= result.interval.high
    assert result.detail == ""


def test_poor_frames_of_a_track_do_not_decide_it() -> None:
    result = judgment([frame(n, (0, *((0.9, 0.0) if n % 2 else (0.1, 1.0)))) for n in range(12)])
    assert result.label is Label.REAL
    assert result.fake_probability == pytest.approx(0.1)
    assert [face.weight for item in result.frames for face in item.faces] == [1, 0] * 6
    assert result.detail == "6 of 12 pictures of faces count less or not at all (6 blurred)"


def test_nothing_but_poor_faces_is_no_verdict() -> None:
    result = judgment([frame(n, (0, 0.99, 0)) for n in range(12)])
    assert (result.label, result.reason, result.fake_probability) == (Label.INCONCLUSIVE, Reason.POOR_FACES, None)
    assert "12 of 12 faces found are too poor to judge (12 blurred)" in result.detail
    assert result.tracks[0].num_frames == 12


def test_a_poor_face_beside_a_good_one_says_nothing() -> None:
    result = judgment([frame(n, (0, 0.1, 1), (300, 0.99, 0)) for n in range(10)])
    assert (result.label, result.deciding_track) == (Label.REAL, 0)


def test_too_few_sightings_are_not_called_poor() -> None:
    result = judgment([frame(n, *([(0, 0.9, 1)] if n < 2 else [])) for n in range(10)])
    assert result.reason is Reason.TOO_FEW_FRAMES
    assert result.detail.startswith("no face was found often enough: the most frequent one on 2 of 10 frames; sample")


def test_one_frame_is_told_as_one() -> None:
    assert "was found in 1 frame;" in judgment([frame(0)]).detail
    failed = judge([frame(0, (0, 0.9, 1))], RULES, failure=ServerUnavailableError("it went away"))
    assert failed.detail == "after 1 scored frame: it went away"


def test_a_failed_server_is_the_reason_whatever_was_seen() -> None:
    frames = [frame(n, (0, 0.9, 1)) for n in range(10)]
    result = judge(frames, RULES, failure=ServerUnavailableError("it went away"))
    assert (result.label, result.reason) == (Label.INCONCLUSIVE, Reason.SERVER_UNAVAILABLE)


def scene(faces: Sequence[float | None], background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Astronauts on a background, left and right; a number makes one so much darker."""
    picture = np.full((240, 480, 3), background, np.uint8)
    portrait = cv2.resize(astronaut(), (240, 240), interpolation=cv2.INTER_AREA)[:, :220]
    for place, light in enumerate(faces):
        if light is not None:
            picture[:, 20 + place * 240 : 240 + place * 240] = (portrait * light).astype(np.uint8)
    return picture


def darkness(faces: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Call the darkened astronaut fake."""
    middle = faces[:, 80:140, 80:140].reshape(len(faces), -1).mean(axis=1)
    return np.where(middle < 90, 0.95, 0.05).astype(np.float32)


def test_two_people_side_by_side_and_a_hard_cut(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    first, second = scene([1.0, 0.5], (20, 60, 160)), scene([None, 1.0], (180, 90, 10))
    write_video(clip, [first] * 20 + [second] * 20)
    with DeepfakeClient(FakeTransport(darkness)) as client:
        verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=16)))
    assert verdict.label is Label.FAKE
    assert len(verdict.tracks) == 3, "two people before the cut, one after"
    assert [track.num_frames for track in verdict.tracks] == [8, 8, 8]
    (fake,) = (track for track in verdict.tracks if track.label is Label.FAKE)
    assert verdict.deciding_track == fake.track
    assert fake.last_pts_seconds < 0.8
    left_edges = [face.box_xyxy[0] for item in verdict.frames for face in item.faces if face.track == fake.track]
    assert min(left_edges) > 240, "the person on the right"
