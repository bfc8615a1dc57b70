"""`MtcnnDetector`: MTCNN (Zhang et al., 2016) on ONNX Runtime, arranged for few and large calls.

The method is that of https://arxiv.org/abs/1604.02878: a fully convolutional network (PNet) proposes windows on an
image pyramid, a second (RNet) and a third (ONet) refine and score them, and ONet adds five landmarks. What differs
from the usual implementations:

* It works on a small picture: a face of 60 px in a 1080p frame needs no more.
* The levels of one image's pyramid are packed into one picture, and PNet runs once per image.
* All crops of one stage and image come out of that picture with one `cv2.remap`, each from the level where the
  window has about the size that the network takes; the crops of all images go through the network together.
* The networks are written in the form that ONNX Runtime runs fastest (``scripts/make_mtcnn_weights.py``).
* In a picture taken shortly after another, windows around the known faces replace those of PNet, which takes most of
  the time (`MtcnnDetector.follow`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.support.sessions import open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Image = NDArray[np.uint8]

# The figures below are from 165 frames of six clips and a photo with 182 faces of at least 60 px (in 1080p) that
# facenet-pytorch finds, 18 of them small pictures on a wall, and 80 composed 1080p frames with 527 such faces.

# On the shorter side; PNet's window of 12 px is then 51 px of a 1080p frame. With 216 px, 15 more of the 182 were
# missed, nearly all of them such pictures; 300 px took a third longer and found no more.
_SHORT_SIDE_PX = 256
# Confidences that PNet, RNet and ONet must reach. The reference's (0.6, 0.7, 0.7) find 176 and 513 of them with 93
# windows for RNet per clip frame and 31 boxes that are hardly ever faces; these 174 and 506 with 42 and 4.
_THRESHOLDS = (0.8, 0.7, 0.8)

# PNet sees windows of 12x12 pixels, one every 2 pixels (table 1 and figure 2 of the paper).
_WINDOW_PX = 12
_STRIDE_PX = 2
_RNET_CROP_PX = 24
_ONET_CROP_PX = 48
# The paper's 0.709 halves the area per level. 0.6 found as many faces in the same frames with 28% fewer pixels:
# RNet and ONet correct a window that is off by a quarter, and the levels pack more tightly.
_PYRAMID_FACTOR = 0.6
# IoU above which the weaker of two boxes is dropped: within a level, across levels, after RNet; the last one is the
# overlap over the smaller box, after ONet. The first and the last are the reference implementation's.
_NMS_LEVEL, _NMS_IMAGE, _NMS_RNET, _NMS_ONET = 0.5, 0.5, 0.8, 0.7
# Where a face is searched in the next picture, in sides of its square: RNet, which was trained to move windows,
# corrects a quarter in any direction. More places and other sizes found 2% more faces in one and a half times the
# time; a lost face only costs a detection.
_FOLLOW_SHIFTS_XY = np.array([(0, 0), (-0.25, 0), (0.25, 0), (0, -0.25), (0, 0.25)], dtype=np.float32)
_FOLLOW_NMS_RNET = 0.5
# Confidence below which a followed face counts as lost. Of 208 faces that detection on each frame found, 3 were
# missed with 0.9 and none with this (detection on every fourth frame, six clips).
_FOLLOW_CONFIDENCE = 0.97
# A crop comes from the smallest level that still has 1 / 1.3 pixels per pixel of the crop: finer levels would alias,
# because bilinear sampling uses two pixels only, and coarser ones would blur.
_MAX_SAMPLING_STEP = 1.3
# Crops per network call. It affects memory (2 MB of activations per ONet crop) and not speed.
_CROPS_PER_CALL = 32
# cv2.remap addresses rows with 16 bits; an image with a longer side is shrunk further.
_MAX_SIDE_PX = 8192


class MtcnnDetector:
    """Finds faces with MTCNN; a `deepfake_preprocess.faces.detector.FaceFollower`.

    One object may be used from several threads. ONNX Runtime and OpenCV, where almost all time is spent, release the
    GIL.
    """

    def __init__(self) -> None:
        # The graphs return logits: p >= t is the same as logit(p) >= logit(t), without a sigmoid per window.
        self._logits = [math.log(threshold / (1 - threshold)) for threshold in _THRESHOLDS]
        weights = files("deepfake_preprocess.faces") / "weights"
        # One thread per call is best where frames are processed in parallel.
        self._pnet, self._rnet, self._onet = (
            open_session((weights / f"{network}.onnx").read_bytes(), threads=1)
            for network in ("pnet", "rnet", "onet")
        )

    def detection_size_wh(self, width_px: int, height_px: int) -> tuple[int, int]:
        """See `FaceDetector`; never larger than the frame. For 1920x1080 it is 455x256."""
        if width_px < 1 or height_px < 1:
            raise OptionError(f"a frame must be at least 1x1 pixels, got {width_px}x{height_px}")
        short, long = sorted((width_px, height_px))
        scale = min(1.0, _SHORT_SIDE_PX / short, _MAX_SIDE_PX / long)
        return max(1, round(width_px * scale)), max(1, round(height_px * scale))

    def detect(self, images_rgb: Sequence[Image]) -> list[list[Face]]:
        """See `FaceDetector`; images over `detection_size_wh` are shrunk to it, and all faces have landmarks."""
        pyramids = [self._pyramid(image) for image in images_rgb]
        proposals = [self._propose(pyramid) for pyramid in pyramids]
        owners = np.repeat(np.arange(len(pyramids)), [len(boxes) for boxes in proposals])
        boxes = np.concatenate([np.empty((0, 4), np.float32), *proposals])
        boxes, owners = self._refine(pyramids, boxes, owners, _NMS_RNET)
        found: list[list[Face]] = [[] for _ in pyramids]
        for face, owner in self._faces(pyramids, boxes, owners):
            found[owner].append(face)
        return found

    def follow(self, image_rgb: Image, faces: Sequence[Face]) -> list[Face | None]:
        """See `FaceFollower`; about six times as fast as `detect`.

        Of faces that merge, as when one passes in front of another, all but one are lost.
        """
        pyramid = self._pyramid(image_rgb)
        # The stages keep the windows of different images apart. To keep those of each face apart too, every face gets
        # an image of its own, which is the same one.
        pyramids = [pyramid] * len(faces)
        scale = np.tile(np.array(pyramid.image_scale_xy, dtype=np.float32), 2)
        squares = _squares(np.array([face.box_xyxy for face in faces], dtype=np.float32).reshape(-1, 4) / scale)
        sides = (squares[:, 2] - squares[:, 0])[:, None, None]
        windows = (squares[:, None] + sides * np.tile(_FOLLOW_SHIFTS_XY, 2)).reshape(-1, 4)
        owners = np.repeat(np.arange(len(faces)), len(_FOLLOW_SHIFTS_XY))
        boxes, owners = self._refine(pyramids, windows, owners, _FOLLOW_NMS_RNET)
        candidates = [
            item for item in self._faces(pyramids, boxes, owners) if item[0].confidence >= _FOLLOW_CONFIDENCE
        ]

        boxes = np.array([face.box_xyxy for face, _ in candidates], dtype=np.float32).reshape(-1, 4)
        scores = np.array([face.confidence for face, _ in candidates], dtype=np.float32)
        found: list[Face | None] = [None] * len(faces)
        nearest = [math.inf] * len(faces)
        for number in _suppress_contained(boxes, scores, np.zeros(len(boxes), dtype=np.int64), _NMS_ONET):
            face, owner = candidates[number]
            distance = float(np.abs(face.box_xyxy - faces[owner].box_xyxy).sum())
            if distance < nearest[owner]:
                found[owner], nearest[owner] = face, distance
        return found

    def _faces(self, pyramids: list[_Pyramid], boxes: Float, owners: Int) -> Iterator[tuple[Face, int]]:
        """Run the third stage, and yield faces in pixels of their images with the images' indices."""
        boxes, landmarks, scores, owners = self._finish(pyramids, boxes, owners)
        confidences = 1 / (1 + np.exp(-scores.astype(np.float64)))
        for box, points, confidence, owner in zip(
            boxes, landmarks, confidences.tolist(), owners.tolist(), strict=True
        ):
            yield Face(box, confidence, points).scaled(*pyramids[owner].image_scale_xy), owner

    def _pyramid(self, image: Image) -> _Pyramid:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            shown = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise OptionError(f"an image must be a uint8 array [H, W, 3] in RGB, got {shown}")
        height, width = image.shape[:2]
        size_wh = self.detection_size_wh(width, height)
        if size_wh != (width, height):
            image = np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        layout = _layout(*size_wh)
        packed = np.zeros((layout.packed_height, layout.width, 3), dtype=np.uint8)
        level = image
        for x, y, w, h in layout.rects_xywh.tolist():
            # Each level from the previous one: bilinear interpolation can do a step of 0.6 without aliasing.
            resized = (
                level if (w, h) == level.shape[1::-1] else cv2.resize(level, (w, h), interpolation=cv2.INTER_LINEAR)
            )
            level = packed[y : y + h, x : x + w]
            level[:] = resized
        return _Pyramid(layout, packed, (width / size_wh[0], height / size_wh[1]))

    def _propose(self, pyramid: _Pyramid) -> Float:
        """Run the first stage; return boxes, float32 ``[N, 4]``, in pixels of the shrunk image."""
        layout = pyramid.layout
        if not len(layout.rects_xywh):
            return np.empty((0, 4), dtype=np.float32)
        # cv2.split is three times as fast as a transposed copy. One image per call: batches are no faster, and the
        # output of PNet's first layer is already 13 MB per image.
        planes = np.empty((1, 3, layout.packed_height, layout.width), dtype=np.uint8)
        cv2.split(pyramid.packed, list(planes[0]))
        output = self._pnet.run(None, {"image": planes.astype(np.float32)})[0][0]
        rows, columns = np.nonzero((output[4] >= self._logits[0]) & (layout.level_of_cell >= 0))
        offsets, scores = output[:4, rows, columns].T, output[4, rows, columns]
        levels = layout.level_of_cell[rows, columns]
        origins = np.stack([columns, rows], axis=1) * _STRIDE_PX - layout.rects_xywh[levels, :2]
        scales = np.tile(layout.scales_xy[levels], 2)
        boxes = np.concatenate([origins, origins + _WINDOW_PX], axis=1).astype(np.float32) / scales
        kept = _suppress(boxes, scores, levels, _NMS_LEVEL)
        kept = kept[_suppress(boxes[kept], scores[kept], np.zeros(len(kept), np.int64), _NMS_IMAGE)]
        return np.asarray(boxes[kept] + offsets[kept] * (_WINDOW_PX / scales[kept]), dtype=np.float32)

    def _refine(self, pyramids: list[_Pyramid], boxes: Float, owners: Int, overlap: float) -> tuple[Float, Int]:
        """Run the second stage; return the boxes that RNet accepts, moved, and the index of each one's image."""
        squares = _squares(boxes)
        output = _run(self._rnet, pyramids, squares, owners, _RNET_CROP_PX)
        accepted = np.flatnonzero(output[:, 4] >= self._logits[1])
        squares, output, owners = squares[accepted], output[accepted], owners[accepted]
        boxes = squares + output[:, :4] * np.tile(squares[:, 2:] - squares[:, :2], 2)
        # Suppressed after they moved, not before as in the reference: windows on one face have converged by then, and
        # fewer go to ONet, the most expensive network per crop.
        kept = _suppress(boxes, output[:, 4], owners, overlap)
        return boxes[kept], owners[kept]

    def _finish(self, pyramids: list[_Pyramid], boxes: Float, owners: Int) -> tuple[Float, Float, Float, Int]:
        """Run the third stage; return boxes, landmarks ``[N, 5, 2]``, logits and owners, largest logit first."""
        squares = _squares(boxes)
        output = _run(self._onet, pyramids, squares, owners, _ONET_CROP_PX)
        accepted = np.flatnonzero(output[:, 4] >= self._logits[2])
        squares, output, owners = squares[accepted], output[accepted], owners[accepted]
        boxes = squares + output[:, :4] * np.tile(squares[:, 2:] - squares[:, :2], 2)
        # Landmarks are relative to the network's input, the part of the square inside the image.
        seen = _clipped(squares, pyramids, owners)
        points = output[:, 5:].reshape(-1, 2, 5).transpose(0, 2, 1)
        landmarks = seen[:, None, :2] + points * (seen[:, None, 2:] - seen[:, None, :2])
        kept = _suppress_contained(boxes, output[:, 4], owners, _NMS_ONET)
        return boxes[kept], landmarks[kept], output[kept, 4], owners[kept]


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Where the levels of an image's pyramid are in the packed picture, which is as wide as the image."""

    width: int
    height: int
    packed_height: int
    # [L, 4], largest level first; x and y are even, because then PNet's cells fall on each level as on it alone.
    rects_xywh: Int
    scales_xy: Float  # [L, 2]: level pixels per image pixel
    level_of_cell: Int  # [H', W']: the level of PNet's output cell; -1 where its window crosses a level's border


@dataclass(frozen=True, slots=True, eq=False)
class _Pyramid:
    """One image's packed pyramid: layout, uint8 ``[H, W, 3]`` picture, and image pixels per shrunk pixel."""

    layout: _Layout
    packed: Image
    image_scale_xy: tuple[float, float]


@lru_cache(maxsize=64)  # a video has one size; a folder of images has some
def _layout(width: int, height: int) -> _Layout:
    """Pack the levels of a ``width x height`` image: level 0 on top, the others in what is free below."""
    rects: list[tuple[int, int, int, int]] = []
    free: list[tuple[int, int, int, int]] = []
    bottom = 0
    scale = 1.0
    while min(width, height) * scale >= _WINDOW_PX:
        w, h = round(width * scale), round(height * scale)
        even_w, even_h = w + w % 2, h + h % 2
        fitting = [spot for spot in free if spot[2] >= w and spot[3] >= h]
        if not fitting:
            fitting = [(0, bottom, width, even_h)]
            free += fitting
            bottom += even_h
        spot = min(fitting, key=lambda spot: spot[2] * spot[3])
        free.remove(spot)
        x, y, spot_w, spot_h = spot
        free += [(x + even_w, y, spot_w - even_w, spot_h), (x, y + even_h, w, spot_h - even_h)]
        rects.append((x, y, w, h))
        scale *= _PYRAMID_FACTOR

    # PNet: 3x3, pool 2 (rounding up), 3x3, 3x3.
    cells_wh = [max(0, math.ceil((side - 2) / 2) - 4) for side in (width, bottom)]
    level_of_cell = np.full(cells_wh[::-1], -1, dtype=np.int64)
    for level, (x, y, w, h) in enumerate(rects):
        last_row, last_column = (y + h - _WINDOW_PX) // _STRIDE_PX, (x + w - _WINDOW_PX) // _STRIDE_PX
        level_of_cell[y // _STRIDE_PX : last_row + 1, x // _STRIDE_PX : last_column + 1] = level
    rects_xywh = np.array(rects, dtype=np.int64).reshape(-1, 4)
    scales_xy = (rects_xywh[:, 2:] / np.array([width, height])).astype(np.float32)
    return _Layout(width, height, bottom, rects_xywh, scales_xy, level_of_cell)


def _squares(boxes: Float) -> Float:
    """Return the squares around the centers of the boxes with their longer sides, at least one pixel."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = np.maximum((boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True), 1) / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)


def _clipped(squares: Float, pyramids: list[_Pyramid], owners: Int) -> Float:
    """Return the part of each square inside its image, at least one pixel wide and high."""
    sizes_wh = np.array([(pyramid.layout.width, pyramid.layout.height) for pyramid in pyramids], dtype=np.float32)
    sizes_wh = sizes_wh.reshape(-1, 2)[owners]
    low = np.clip(squares[:, :2], 0, sizes_wh - 1)
    return np.concatenate([low, np.clip(squares[:, 2:], low + 1, sizes_wh)], axis=1)


def _run(session: InferenceSession, pyramids: list[_Pyramid], squares: Float, owners: Int, size_px: int) -> Float:
    """Crop all squares and return the network's output, float32 ``[N, outputs]``."""
    outputs = [np.empty((0, session.get_outputs()[0].shape[1]), dtype=np.float32)]
    if len(squares):
        crops = _crops(pyramids, squares, owners, size_px)
        outputs += [
            session.run(None, {"crops": crops[start : start + _CROPS_PER_CALL]})[0]
            for start in range(0, len(crops), _CROPS_PER_CALL)
        ]
    return np.concatenate(outputs)


def _crops(pyramids: list[_Pyramid], squares: Float, owners: Int, size_px: int) -> Image:
    """Return the squares as uint8 ``[N, size_px, size_px, 3]``.

    At the border of an image the part inside is stretched to the whole crop, as in the reference implementation:
    padding with the border's color instead lost 12 of 527 faces, all of them cut by the border.
    """
    crops = np.empty((len(squares), size_px, size_px, 3), dtype=np.uint8)
    boxes = _clipped(squares, pyramids, owners)
    positions = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    most = 2**15 // size_px - 1  # rows that one remap can address
    for owner in np.unique(owners):
        layout = pyramids[owner].layout
        mine = np.flatnonzero(owners == owner)
        sides = (squares[mine, 2:] - squares[mine, :2]).max(axis=1)
        fine_enough = sides[:, None] * layout.scales_xy[:, 0] / size_px <= _MAX_SAMPLING_STEP
        levels = np.where(fine_enough.any(axis=1), fine_enough.argmax(axis=1), len(layout.scales_xy) - 1)
        rects = layout.rects_xywh[levels].astype(np.float32)
        low, high = boxes[mine, :2], boxes[mine, 2:]
        points = low[..., None] + (high - low)[..., None] * positions
        points = points * layout.scales_xy[levels][..., None] - 0.5
        # The level's neighbors in the packed picture are not the surroundings of the image.
        points = np.clip(points, 0, rects[:, 2:, None] - 1) + rects[:, :2, None]
        for start in range(0, len(mine), most):
            chunk = points[start : start + most]
            shape = (len(chunk), size_px, size_px)
            map_x, map_y = (
                np.broadcast_to(values, shape).reshape(-1, size_px)
                for values in (chunk[:, 0, None, :], chunk[:, 1, :, None])
            )
            sampled = cv2.remap(pyramids[owner].packed, map_x, map_y, cv2.INTER_LINEAR)
            crops[mine[start : start + most]] = sampled.reshape(*shape, 3)
    return crops


def _suppress(boxes_xyxy: Float, scores: Float, groups: Int, threshold: float) -> Int:
    """Non-maximum suppression by IoU within each group; return the kept indices, best score first."""
    if not len(boxes_xyxy):
        return np.empty(0, dtype=np.int64)
    boxes_xywh = boxes_xyxy.astype(np.float64)
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    # Groups far apart cannot overlap: one call instead of one per group. OpenCV requires positive scores.
    boxes_xywh[:, 0] += groups * (8.0 * _MAX_SIDE_PX)
    kept = cv2.dnn.NMSBoxes(boxes_xywh, scores - scores.min() + 1, 0.0, threshold)  # type: ignore[arg-type]
    return np.asarray(kept, dtype=np.int64).reshape(-1)


def _suppress_contained(boxes_xyxy: Float, scores: Float, groups: Int, threshold: float) -> Int:
    """Like `_suppress`, with the overlap measured over the smaller box, which also drops a box inside another."""
    order = np.argsort(-scores, kind="stable")
    boxes, groups = boxes_xyxy[order], groups[order]
    low = np.maximum(boxes[:, None, :2], boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    overlaps = (shared > threshold * np.minimum(areas[:, None], areas)) & (groups[:, None] == groups)
    better_overlaps = np.triu(overlaps, 1)
    # Greedy suppression as a fixed point: a box stays if no better box that stays overlaps it. Each round settles
    # at least one more box; there are few boxes, and fewer rounds.
    kept = np.ones(len(boxes), dtype=bool)
    while True:
        remaining = ~better_overlaps[kept].any(axis=0)
        if np.array_equal(remaining, kept):
            return order[kept]
        kept = remaining
