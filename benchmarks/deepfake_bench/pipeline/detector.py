"""`deepfake bench detector`: our face detector against facenet-pytorch's MTCNN, on the same frames, in turn.

Both see every frame in turn, so that other load on the machine meets both alike. The peer gets the frame at full
resolution, as its users call it, with its default settings, ``keep_all=True`` and torch's threads; our detector gets
the frame at the size it asks for and one thread. Making either picture out of the decoded
frame is timed apart, as `convert`. Counted are

* the peer's faces of at least ``--min-face-px`` in a 1080p frame (and as much smaller as the frame is) and how many
  of them we find with an IoU of at least 0.7,
* how many are found when our detector follows faces from frame to frame as an analysis does, and with how many
  detections, and
* boxes of each, from the same size on, that overlap none of the other's (IoU below 0.3). Some of these are faces
  that only one found; with ``--crops DIR`` they are written as pictures, to be looked at.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from deepfake_bench.machine.environment import environment, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_bench.pipeline.clips import find_clips
from deepfake_bench.pipeline.facenet import Boxes, Peer, load_peer
from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.faces.boxes import iou
from deepfake_preprocess.faces.detector import Face, detection_image, faces_in, faces_in_frame
from deepfake_preprocess.faces.following import DETECT_EVERY, Sighting, find_faces
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.support.extras import require_extra

MATCH_IOU = 0.7
SURE = 0.95
"""The peer's confidence from which its boxes were faces when they were looked at; below, most were not."""
LONE_IOU = 0.3

T = TypeVar("T")


@dataclass(slots=True)
class Comparison:
    """What was counted and timed on one clip; times in milliseconds per frame."""

    clip: str
    size_wh: tuple[int, int]
    detection_size_wh: tuple[int, int]
    frames: int = 0
    peer_faces: int = 0
    matched: int = 0
    matched_following: int = 0
    detections_following: int = 0
    peer_sure: int = 0
    matched_sure: int = 0
    matched_sure_following: int = 0
    ious: list[float] = field(default_factory=list)
    lone_ours: int = 0
    lone_peer: int = 0
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the figures for the results file."""
        medians = {name: round(statistics.median(values), 2) for name, values in self.times_ms.items()}
        # The median of the ratios of neighbouring runs, which saw about the same load.
        ratio = statistics.median(
            peer / ours for peer, ours in zip(self.times_ms["peer"], self.times_ms["ours"], strict=True)
        )
        return {
            "clip": self.clip,
            "size_wh": self.size_wh,
            "detection_size_wh": self.detection_size_wh,
            "frames": self.frames,
            "peer_faces": self.peer_faces,
            "matched": self.matched,
            "matched_following": self.matched_following,
            "detections_following": self.detections_following,
            "matched_share": round(self.matched / self.peer_faces, 4) if self.peer_faces else None,
            "peer_sure": self.peer_sure,
            "matched_sure": self.matched_sure,
            "matched_sure_following": self.matched_sure_following,
            "mean_iou": round(statistics.mean(self.ious), 3) if self.ious else None,
            "min_iou": round(min(self.ious), 3) if self.ious else None,
            "boxes_only_ours": self.lone_ours,
            "boxes_only_peer": self.lone_peer,
            "median_ms": medians,
            "min_ms": {name: round(min(values), 2) for name, values in self.times_ms.items()},
            "ratio": round(ratio, 1),
        }


def detector(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Videos, folders or patterns.")],
    peer_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that facenet-pytorch is installed in.")
    ] = None,
    peer_threads: Annotated[
        int | None, typer.Option(help="Threads of the peer; torch's own choice by default.", min=1)
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of each clip.", min=1)] = 24,
    min_face_px: Annotated[float, typer.Option(help="Smallest face counted, in a 1080p frame.", min=1)] = 60.0,
    crops: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the boxes that only one of both has, as pictures.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-detector.json.")
    ] = None,
) -> None:
    """Compare our face detector with facenet-pytorch's MTCNN: faces found, and time per frame.

    The peer pins old versions of torch and numpy, so it is no dependency; it runs from a folder of its own:
    pip install --no-deps --target DIR facenet-pytorch==2.6.0 requests tqdm urllib3 idna certifi charset-normalizer

    [bold]Examples[/]

      deepfake bench detector clips/ --peer-path DIR
      deepfake bench detector clip.mp4 --peer-path DIR --crops only_one/
    """
    paths = find_clips(clips)
    peer = load_peer(peer_path, threads=peer_threads)
    ours = MtcnnDetector()
    load_average = round(os.getloadavg()[0], 2)
    rows = [
        compare(clip, ours, peer, frames=frames, min_face_px=min_face_px, crops=crops).summary() for clip in paths
    ]
    table_console().print(_table(rows))
    results = {
        "environment": environment(["facenet-pytorch", "torch", "onnxruntime", "opencv-python-headless", "numpy"]),
        "settings": {
            "min_face_px_at_1080p": min_face_px,
            "match_iou": MATCH_IOU,
            "lone_iou": LONE_IOU,
            # Two threads of the peer that wait for a core of their own spin: on a busy machine its times say nothing.
            "load_average_before": load_average,
            "threads": {"ours": 1, "peer": require_extra("torch", extra="export").get_num_threads()},
        },
        "clips": rows,
    }
    typer.echo(f"written to {write_results('detector', results, path=output)}")


def compare(
    clip: Path,
    detector: MtcnnDetector,
    peer: Peer,
    *,
    frames: int,
    min_face_px: float,
    crops: Path | None = None,
) -> Comparison:
    """Run both detectors on frames spread over a clip.

    Args:
        clip: a video or an image.
        detector: ours.
        peer: function from a full-resolution RGB image to boxes and confidences.
        frames: how many frames.
        min_face_px: smaller side that a peer's box must have in a 1080p frame to be counted.
        crops: folder for pictures of the boxes that only one of both has.

    Raises:
        MediaOpenError: no frame of the clip can be decoded.
    """
    result: Comparison | None = None
    counting = _Counting(detector)
    before: Sighting | None = None
    for number, frame in enumerate(_frames(clip, frames)):
        wh = (frame.width_px, frame.height_px)
        if result is None:
            result = Comparison(clip.name, wh, detector.detection_size_wh(*wh))
            # First calls allocate; they are not what a clip costs.
            faces_in(frame, detector)
            peer(frame.to_rgb())
        clock = _Clock(result.times_ms)
        small = clock.time("convert_ours", detection_image, frame, detector)
        faces = clock.time("ours", detector.detect, [small])[0]
        full = clock.time("convert_peer", frame.to_rgb)
        theirs, confidences = clock.time("peer", peer, full)
        ours = _boxes_of(faces_in_frame(frame, small, faces))
        before = find_faces(counting, small, frame.pts_seconds, before if number % DETECT_EVERY else None)
        followed = _boxes_of(faces_in_frame(frame, small, before.faces))

        overlaps = _overlaps(theirs, ours)
        our_best, peer_best = overlaps.max(axis=0, initial=0), overlaps.max(axis=1, initial=0)
        ours_large, theirs_large = (
            (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= min_face_px * min(wh) / 1080 for boxes in (ours, theirs)
        )
        best, sure = peer_best[theirs_large], confidences[theirs_large] >= SURE
        result.frames += 1
        result.peer_faces += len(best)
        result.matched += int((best >= MATCH_IOU).sum())
        result.peer_sure += int(sure.sum())
        result.matched_sure += int((best[sure] >= MATCH_IOU).sum())
        best_followed = _overlaps(theirs, followed).max(axis=1, initial=0)[theirs_large]
        result.matched_following += int((best_followed >= MATCH_IOU).sum())
        result.matched_sure_following += int((best_followed[sure] >= MATCH_IOU).sum())
        result.detections_following = counting.detections
        result.ious += best[best >= MATCH_IOU].tolist()
        lone_ours = ours[(our_best < LONE_IOU) & ours_large]
        lone_peer = theirs[(peer_best < LONE_IOU) & theirs_large]
        result.lone_ours += len(lone_ours)
        result.lone_peer += len(lone_peer)
        if crops is not None:
            for who, boxes in (("ours", lone_ours), ("peer", lone_peer)):
                _write_crops(crops, f"{clip.stem}-{number:03d}-{who}", full, boxes)
    if result is None:
        raise MediaOpenError(f"{clip.name}: no frame of it could be decoded; it may be damaged")
    return result


def _boxes_of(faces: Sequence[Face]) -> Boxes:
    return np.array([face.box_xyxy for face in faces], np.float32).reshape(-1, 4)


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


class _Clock:
    def __init__(self, times_ms: dict[str, list[float]]) -> None:
        self._times_ms = times_ms

    def time(self, name: str, call: Callable[..., T], *arguments: Any) -> T:
        started = time.perf_counter()
        result = call(*arguments)
        self._times_ms.setdefault(name, []).append((time.perf_counter() - started) * 1e3)
        return result


def _frames(clip: Path, count: int) -> Iterator[Frame]:
    with open_media(clip) as media:
        yield from media.frames(Sampling(count))


def _write_crops(folder: Path, name: str, image: NDArray[np.uint8], boxes: Boxes) -> None:
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for number, box in enumerate(boxes):
        margin = float(box[2] - box[0]) / 4
        left, top, right, bottom = np.clip(box + np.array([-1, -1, 1, 1]) * margin, 0, None).astype(int)
        cv2.imwrite(str(folder / f"{name}-{number}.png"), image[top:bottom, left:right, ::-1])


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Face detectors on the same frames")
    table.add_column("clip")
    for column in (
        "frames",
        "peer's faces",
        "found",
        "following",
        "mean IoU",
        "only ours",
        "only peer",
        "ours",
        "peer",
        "ratio",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        share = "" if row["matched_share"] is None else f" ({row['matched_share']:.1%})"
        table.add_row(
            f"{row['clip']} {row['size_wh'][0]}x{row['size_wh'][1]}",
            str(row["frames"]),
            str(row["peer_faces"]),
            f"{row['matched']}{share}",
            f"{row['matched_following']} ({row['detections_following']} detections)",
            str(row["mean_iou"] or ""),
            str(row["boxes_only_ours"]),
            str(row["boxes_only_peer"]),
            f"{row['median_ms']['ours']:.1f} ms",
            f"{row['median_ms']['peer']:.1f} ms",
            f"{row['ratio']:.1f}x",
        )
    return table
