"""What a verdict rests on is found again in its source: the same faces, the same pixels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from media import write_video
from numpy.typing import NDArray

from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling, Verdict, open_media
from deepfake_client.explain.evidence import gather, suspicious_faces
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.detector import Face

SPEC = ModelSpec(name="fake_model", architecture="timm:efficientnet_b0")
PICTURES = [np.full((120, 160, 3), 4 * number, np.uint8) for number in range(40)]


class TwoFaces:
    def detection_size_wh(self, width_px: int, height_px: int) -> tuple[int, int]:
        return width_px, height_px

    def detect(self, images_rgb: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        landmarks = np.array([[20, 30], [50, 40], [35, 50], [25, 65], [45, 65]], np.float32)
        boxes = ([10.3, 20.7, 60.1, 80.9], [100, 20, 150, 80])
        return [[Face(np.array(box, np.float32), 0.9, landmarks) for box in boxes] for _ in images_rgb]


@pytest.fixture
def seen() -> list[NDArray[np.uint8]]:
    return []


@pytest.fixture
def client(seen: list[NDArray[np.uint8]]) -> Iterator[DeepfakeClient]:
    def brightness(faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.extend(faces.copy())
        return np.asarray(faces.reshape(len(faces), -1).mean(axis=1) / 255, dtype=np.float32)

    with DeepfakeClient(FakeTransport(brightness, spec=SPEC), detector=TwoFaces()) as client:
        yield client


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_the_same_crops_come_again(
    client: DeepfakeClient, seen: list[NDArray[np.uint8]], tmp_path: Path, ending: str
) -> None:
    clip = tmp_path / f"clip.{ending}"
    write_video(clip, PICTURES, fps=20)
    verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(10)))
    with open_media(clip) as media:
        evidence = gather(media, verdict, SPEC, per_track=3, preview_px=80)
    assert [item.pick for item in evidence] == list(suspicious_faces(verdict, per_track=3))
    assert len(evidence) == 6
    for item in evidence:
        assert item.frame_wh == (160, 120)
        assert item.preview.shape == (60, 80, 3)
        assert any(np.array_equal(item.crop, crop) for crop in seen)


def test_the_most_suspicious_come_first_and_each_track_has_its_own(client: DeepfakeClient, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_video(clip, PICTURES, fps=20)
    verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(10)))
    picks = suspicious_faces(verdict, per_track=3)
    assert [pick.face.track for pick in picks] in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    assert picks[0].face.track == verdict.deciding_track
    # The pictures grow brighter, so that the last ones are the most suspicious.
    assert [pick.frame for pick in picks[:3]] == list(verdict.frames[:-4:-1])


def test_times_that_were_printed_find_their_frames(client: DeepfakeClient, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_video(clip, PICTURES, fps=30)
    verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(10)))
    printed = [frame["pts_seconds"] for frame in json.loads(json.dumps(verdict.to_dict()))["frames"]]
    with open_media(clip) as media:
        again = [frame.index for frame in media.frames(Sampling(None, at_seconds=tuple(printed)))]
    assert again == [frame.index for frame in verdict.frames]


def test_an_image_and_a_verdict_without_faces(client: DeepfakeClient, tmp_path: Path) -> None:
    import cv2

    image = tmp_path / "image.png"
    cv2.imwrite(str(image), PICTURES[20])
    verdict: Verdict = client.analyze(image)
    with open_media(image) as media:
        assert len(gather(media, verdict, SPEC, per_track=5)) == 2
        assert gather(media, dataclasses.replace(verdict, frames=()), SPEC, per_track=5) == ()
