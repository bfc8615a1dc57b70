"""The pictures of a report: what the model saw of the most suspicious faces, and the frames they come from."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.evidence import (
    MAX_SHOWN,
    SHOWN_PER_TRACK,
    Evidence,
    gather,
    preview_of,
    suspicious_faces,
)
from deepfake_client.result.verdict import FrameResult, Verdict
from deepfake_client.sources.inputs import open_source
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import InputError
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.sampling import Sampling

MAX_FRAMES = 8
"""Whole frames in `frame_analysis.png`."""
FRAME_WIDTH_PX = 480
_JPEG_QUALITY = 88


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A frame as uint8 ``[H, W, 3]`` at most `FRAME_WIDTH_PX` wide, and what was found in it; boxes times `scale`."""

    result: FrameResult
    image_rgb: NDArray[np.uint8]
    scale: float


@dataclass(frozen=True, slots=True)
class Pictures:
    """Faces in the order of `suspicious_faces`, and frames in order of time; `problem` says why there are none."""

    faces: tuple[Evidence, ...] = ()
    shots: tuple[Shot, ...] = ()
    problem: str = ""


def take_pictures(verdict: Verdict, media: Media, spec: ModelSpec) -> Pictures:
    """Decode the most suspicious moments of an input again; some frames without a face where no face was scored."""
    try:
        faces = gather(media, verdict, spec, per_track=SHOWN_PER_TRACK, at_most=MAX_SHOWN, preview_px=FRAME_WIDTH_PX)
        if not suspicious_faces(verdict, per_track=1):
            return _of_frames(verdict, media)
    except InputError as exc:
        return Pictures(problem=f"The file could not be decoded again for this report: {exc}")
    by_frame = {item.pick.frame.index: item for item in reversed(faces)}
    wanted = sorted(list(dict.fromkeys(item.pick.frame.index for item in faces))[:MAX_FRAMES])
    return Pictures(faces, tuple(_shot_of(by_frame[index]) for index in wanted))


def pictures_of_source(verdict: Verdict, spec: ModelSpec) -> Pictures:
    """Open a verdict's source once more and take its pictures; see `take_pictures`."""
    try:
        with open_source(verdict.source) as media:
            return take_pictures(verdict, media, spec)
    except InputError as exc:
        return Pictures(problem=f"The file could not be opened again for this report: {exc}")


def with_box(item: Evidence, color_rgb: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the whole frame of a face, in small, with the face's box: uint8 ``[H, W, 3]`` RGB."""
    image = item.preview.copy()
    left, top, right, bottom = (round(side * image.shape[1] / item.frame_wh[0]) for side in item.pick.face.box_xyxy)
    for color, thickness in (((255, 255, 255), 4), (color_rgb, 2)):
        cv2.rectangle(image, (left, top), (right, bottom), color, thickness)
    return image


def ranked(pictures: Pictures, verdict: Verdict) -> list[tuple[Evidence, bool]]:
    """Return the faces, each with whether it takes part: those that do come first, then the most suspicious."""
    taking_part = {track.track for track in verdict.tracks if track.takes_part}
    found = [(item, item.pick.face.track in taking_part) for item in pictures.faces]
    return sorted(found, key=lambda one: (not one[1], -(one[0].pick.face.fake_probability or 0.0)))


def moments(pictures: Pictures) -> list[tuple[int, Evidence]]:
    """Return the number of each face's track and the face in the frame in which it is most suspicious."""
    return sorted({item.pick.face.track: item for item in reversed(pictures.faces)}.items())


def jpeg(image_rgb: NDArray[np.uint8]) -> bytes:
    """Return a uint8 ``[H, W, 3]`` RGB picture as the bytes of a JPEG file."""
    bgr = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return encoded.tobytes()


def jpeg_uri(image_rgb: NDArray[np.uint8]) -> str:
    """Return a uint8 ``[H, W, 3]`` RGB picture as a JPEG in a ``data:`` address."""
    return data_uri("image/jpeg", jpeg(image_rgb))


def data_uri(media_type: str, data: bytes) -> str:
    """Return the bytes of a file as a ``data:`` address."""
    return f"data:{media_type};base64," + base64.b64encode(data).decode("ascii")


def _of_frames(verdict: Verdict, media: Media) -> Pictures:
    results = verdict.frames[:: max(1, len(verdict.frames) // MAX_FRAMES)][:MAX_FRAMES]
    if not results:
        return Pictures(problem="No frame of the file could be decoded, so there is nothing to show.")
    times = tuple(result.pts_seconds for result in results)
    frames = media.frames(Sampling(num_frames=None, at_seconds=times))
    return Pictures(shots=tuple(_shot(_nearest(results, frame), frame) for frame in frames))


def _nearest(results: tuple[FrameResult, ...], frame: Frame) -> FrameResult:
    return min(results, key=lambda result: abs(result.pts_seconds - frame.pts_seconds))


def _shot(result: FrameResult, frame: Frame) -> Shot:
    image = preview_of(frame, FRAME_WIDTH_PX)
    return Shot(result, image, image.shape[1] / frame.width_px)


def _shot_of(face: Evidence) -> Shot:
    return Shot(face.pick.frame, face.preview, face.preview.shape[1] / face.frame_wh[0])
