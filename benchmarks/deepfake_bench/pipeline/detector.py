"""Our face detector against facenet-pytorch's MTCNN, on the same frames, in turn.

Both see every frame in turn: other load on the machine then meets both alike. The peer gets the frame at full
resolution, as its users call it, with its default settings, ``keep_all=True`` and torch's threads; our detector gets
the frame at the size it asks for and one thread. Making either picture out of the decoded
frame is timed apart, as `convert`. Counted are

* the peer's faces from a smallest size on and how many of them we find with an IoU of at least 0.7,
* how many are found when our detector follows faces from frame to frame as an analysis does, and with how many
  detections, and
* boxes of each, from the same size on, that overlap none of the other's (IoU below 0.3). Some of these are faces
  that only one found; they can be written as pictures, to be looked at.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepfake_bench.machine.stopwatch import median_ratio
from deepfake_bench.pipeline.usual import Boxes, Peer
from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.faces.boxes import iou
from deepfake_preprocess.faces.detector import Face, detection_image, faces_in, faces_in_frame
from deepfake_preprocess.faces.following import DETECT_EVERY, Sighting, find_faces
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.sampling import Sampling

MATCH_IOU = 0.7
SURE = 0.95
"""The peer's confidence from which its boxes were faces when they were looked at; below, most were not."""
LONE_IOU = 0.3

T = TypeVar("T")


@dataclass(slots=True)
class ClipComparison:
    """What was counted and timed on one clip.

    Attributes:
        counts: ``frames``; ``peer_faces``, boxes of the peer that are large enough; ``peer_sure``, those of them it
            is sure of; ``matched`` and ``matched_sure``, how many of them a full detection found, and
            ``matched_following`` and ``matched_sure_following``, how many were found following;
            ``boxes_only_ours`` and ``boxes_only_peer``, boxes that overlap none of the other's.
        ious: of the boxes that match.
        times_ms: of each step, per frame.
    """

    counts: Counter[str] = field(default_factory=Counter)
    ious: list[float] = field(default_factory=list)
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, call: Callable[..., T], *arguments: Any) -> T:
        """Call something and note how long it took."""
        started = time.perf_counter()
        result = call(*arguments)
        self.times_ms.setdefault(name, []).append((time.perf_counter() - started) * 1e3)
        return result

    def summary(self) -> dict[str, Any]:
        """Return the figures as plain JSON data."""
        counts = self.counts
        return {
            **counts,
            "matched_share": round(counts["matched"] / counts["peer_faces"], 4) if counts["peer_faces"] else None,
            "mean_iou": round(statistics.mean(self.ious), 3) if self.ious else None,
            "min_iou": round(min(self.ious), 3) if self.ious else None,
            "median_ms": {name: round(statistics.median(values), 2) for name, values in self.times_ms.items()},
            "min_ms": {name: round(min(values), 2) for name, values in self.times_ms.items()},
            "ratio": round(median_ratio(self.times_ms["peer"], self.times_ms["ours"]), 1),
        }


def compare(
    clip: Path,
    detector: MtcnnDetector,
    peer: Peer,
    *,
    num_frames: int,
    min_face_px: float,
    pictures_dir: Path | None = None,
) -> dict[str, Any]:
    """Run both detectors on frames spread over a clip; return what was counted and timed as plain JSON data.

    A box is counted whose smaller side is at least `min_face_px` in a 1080p frame, and as much less as a frame is
    smaller. Pictures of the boxes that only one of both has are written into `pictures_dir`.
    """
    result, counting = ClipComparison(), _Counting(detector)
    before: Sighting | None = None
    sizes: dict[str, Any] = {}
    with open_media(clip) as media:
        for number, frame in enumerate(media.frames(Sampling(num_frames))):
            wh = (frame.width_px, frame.height_px)
            if not sizes:
                sizes = {"size_wh": wh, "detection_size_wh": detector.detection_size_wh(*wh)}
                # First calls allocate; they are not what a clip costs.
                faces_in(frame, detector)
                peer(frame.to_rgb())
            small = result.time("convert_ours", detection_image, frame, detector)
            faces = result.time("ours", detector.detect, [small])[0]
            full = result.time("convert_peer", frame.to_rgb)
            theirs, confidences = result.time("peer", peer, full)
            before = find_faces(counting, small, frame.pts_seconds, before if number % DETECT_EVERY else None)
            lone = _count(
                result,
                theirs,
                confidences,
                ours=_boxes_of(frame, small, faces),
                followed=_boxes_of(frame, small, before.faces),
                min_face_px=min_face_px * min(wh) / 1080,
            )
            if pictures_dir is not None:
                for who, boxes in lone.items():
                    _write_pictures(pictures_dir, f"{clip.stem}-{number:03d}-{who}", full, boxes)
    if not sizes:
        raise MediaOpenError(f"{clip.name}: no frame of it could be decoded; it may be damaged")
    return {"clip": clip.name, **sizes, "detections_following": counting.detections, **result.summary()}


def _count(
    result: ClipComparison,
    theirs: Boxes,
    confidences: NDArray[np.float32],
    *,
    ours: Boxes,
    followed: Boxes,
    min_face_px: float,
) -> dict[str, Boxes]:
    """Count the boxes of one frame; return those that only one of both has."""
    overlaps = _overlaps(theirs, ours)
    our_best, peer_best = overlaps.max(axis=0, initial=0), overlaps.max(axis=1, initial=0)
    ours_large, theirs_large = ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= min_face_px for boxes in (ours, theirs))
    matched, sure = peer_best[theirs_large] >= MATCH_IOU, confidences[theirs_large] >= SURE
    matched_following = _overlaps(theirs, followed).max(axis=1, initial=0)[theirs_large] >= MATCH_IOU
    result.ious += peer_best[theirs_large][matched].tolist()
    lone_ours, lone_peer = ours[(our_best < LONE_IOU) & ours_large], theirs[(peer_best < LONE_IOU) & theirs_large]
    result.counts.update(
        frames=1,
        peer_faces=len(matched),
        peer_sure=int(sure.sum()),
        matched=int(matched.sum()),
        matched_sure=int(matched[sure].sum()),
        matched_following=int(matched_following.sum()),
        matched_sure_following=int(matched_following[sure].sum()),
        boxes_only_ours=len(lone_ours),
        boxes_only_peer=len(lone_peer),
    )
    return {"ours": lone_ours, "peer": lone_peer}


def _boxes_of(frame: Frame, small: NDArray[np.uint8], faces: Sequence[Face]) -> Boxes:
    return np.array([face.box_xyxy for face in faces_in_frame(frame, small, faces)], np.float32).reshape(-1, 4)


def _overlaps(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Return intersection over union of all pairs, ``[len(a), len(b)]``."""
    return np.array([[iou(one, other) for other in b] for one in a], dtype=np.float32).reshape(len(a), len(b))


class _Counting:
    """Our detector, with a count of its detections; what it follows is not counted."""

    def __init__(self, detector: MtcnnDetector) -> None:
        self.detections = 0
        self._detector = detector
        self.follow, self.detection_size_wh = detector.follow, detector.detection_size_wh

    def detect(self, images_rgb: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        self.detections += len(images_rgb)
        return self._detector.detect(images_rgb)


def _write_pictures(folder: Path, name: str, image: NDArray[np.uint8], boxes: Boxes) -> None:
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for number, box in enumerate(boxes):
        margin = float(box[2] - box[0]) / 4
        left, top, right, bottom = np.clip(box + np.array([-1, -1, 1, 1]) * margin, 0, None).astype(int)
        cv2.imwrite(str(folder / f"{name}-{number}.png"), image[top:bottom, left:right, ::-1])
