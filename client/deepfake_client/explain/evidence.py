"""Looks again at what a verdict rests on: the most suspicious faces, cut out of the source once more.

A `Verdict` is plain data and holds no pictures. Reports and explanations ask here for the few that they show.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from deepfake_client.result.verdict import FaceScore, FrameResult, Verdict
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.faces.geometry import CropGeometry, crop_geometry
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.sampling import Sampling

SHOWN_PER_TRACK = 4
MAX_SHOWN = 12
"""Faces on a report's page: what a person looks through."""
PREVIEW_PX = 960
"""Width of the frames that are kept for pictures."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One scored face in one frame of a verdict."""

    frame: FrameResult
    face: FaceScore


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A pick with its pictures. The frame itself is not kept: a dozen of 4K would be 300 MB.

    Attributes:
        pick: what was picked.
        crop: uint8 ``[input_height_px, input_width_px, 3]`` RGB, what the model saw.
        landmarks_xy: float32 ``[5, 2]`` in the crop's pixels; None where they are unknown.
        geometry: where in the frame the crop is.
        frame_wh: size of the frame in pixels.
        preview: uint8 ``[H, W, 3]`` RGB, the frame in small.
    """

    pick: Pick
    crop: NDArray[np.uint8]
    landmarks_xy: NDArray[np.float32] | None
    geometry: CropGeometry
    frame_wh: tuple[int, int]
    preview: NDArray[np.uint8]


def suspicious_faces(verdict: Verdict, *, per_track: int, at_most: int | None = None) -> tuple[Pick, ...]:
    """Pick the scored faces of each counted track with the highest fake probability, the most suspicious first.

    Faces that were left out (weight 0) are not picked; where no track counts, all tracks are looked at. Of each track
    `per_track` are taken. With `at_most`, that many in all, tracks take turns: the worst of each, then the second.
    """
    counted = {track.track for track in verdict.tracks if track.counted} or {track.track for track in verdict.tracks}
    picks: dict[int, list[Pick]] = {track: [] for track in counted}
    for frame in verdict.frames:
        for face in frame.faces:
            if face.track in picks and face.takes_part:
                picks[face.track].append(Pick(frame, face))
    order = sorted(
        (track for track in verdict.tracks if track.track in picks), key=lambda track: -track.fake_probability
    )
    ranked = [
        sorted(picks[track.track], key=lambda pick: -(pick.face.fake_probability or 0.0))[:per_track]
        for track in order
    ]
    if at_most is None:
        return tuple(chain.from_iterable(ranked))
    turns = chain.from_iterable(zip_longest(*ranked))
    return tuple(pick for pick in turns if pick is not None)[:at_most]


def gather(
    media: Media,
    verdict: Verdict,
    spec: ModelSpec,
    *,
    per_track: int,
    at_most: int | None = None,
    preview_px: int = PREVIEW_PX,
) -> tuple[Evidence, ...]:
    """Decode the frames of `suspicious_faces` again and cut the faces out as the model saw them, in their order.

    Only these frames are decoded, with what they depend on; one frame is held at a time. A face whose frame cannot be
    decoded again is left out. Previews are at most `preview_px` wide.
    """
    picks = suspicious_faces(verdict, per_track=per_track, at_most=at_most)
    by_time: dict[float, list[int]] = {}
    for number, pick in enumerate(picks):
        by_time.setdefault(pick.frame.pts_seconds, []).append(number)
    if not by_time:
        return ()
    times = tuple(sorted(by_time))
    found: dict[int, Evidence] = {}
    for frame in media.frames(Sampling(num_frames=None, at_seconds=times)):
        # A verdict that was read back from JSON holds its times in whole microseconds.
        time = min(times, key=lambda time: abs(time - frame.pts_seconds))
        frame_wh, preview = (frame.width_px, frame.height_px), preview_of(frame, preview_px)
        for number in by_time[time]:
            face = _face(picks[number].face)
            geometry = crop_geometry(face, frame_wh, spec)
            points = None if face.landmarks_xy is None else geometry.points_to_crop(face.landmarks_xy)
            landmarks = None if points is None else points.astype(np.float32)
            crop = crop_face(frame, face, spec)
            found[number] = Evidence(picks[number], crop, landmarks, geometry, frame_wh, preview)
    return tuple(found[number] for number in sorted(found))


def preview_of(frame: Frame, width_px: int) -> NDArray[np.uint8]:
    """Return a frame as uint8 ``[H, W, 3]`` RGB, at most `width_px` wide."""
    scale = min(1.0, width_px / frame.width_px)
    return frame.to_rgb((max(1, round(frame.width_px * scale)), max(1, round(frame.height_px * scale))))


def _face(score: FaceScore) -> Face:
    landmarks = None if score.landmarks_xy is None else np.array(score.landmarks_xy, dtype=np.float32)
    return Face(np.array(score.box_xyxy, dtype=np.float32), score.detection_confidence, landmarks)
