"""From an uploaded picture to a crop as the model takes it, with landmarks: all that is checked of an upload.

Runs on a worker thread. Reads pictures from memory only, and looks at the header before any pixel is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import MediaOpenError, NoFaceError, OptionError
from deepfake_preprocess.faces.boxes import iou
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face, FaceDetector, faces_in
from deepfake_preprocess.faces.geometry import crop_geometry
from deepfake_preprocess.media.frame import ArrayFrame
from deepfake_preprocess.media.image import SNIFF_BYTES, decode_image, image_codec, stored_size_wh

SAME_FACE_IOU = 0.3
"""Overlap from which a detected face is the one whose box was given."""


class TooManyPixelsError(OptionError):
    """A picture has more pixels than the service decodes."""


@dataclass(frozen=True, slots=True, eq=False)
class Intake:
    """A face to explain.

    Attributes:
        crop: uint8 ``[H, W, 3]`` RGB of the model's input size.
        landmarks_xy: float32 ``[5, 2]`` in the crop's pixels; None where none are known.
        crop_to_frame: float64 ``[2, 3]``, see `CropGeometry.to_frame`; None for a crop that came as such.
        box_xyxy: the face's box in the frame; None likewise.
    """

    crop: NDArray[np.uint8]
    landmarks_xy: NDArray[np.float32] | None
    crop_to_frame: NDArray[np.float64] | None = None
    box_xyxy: NDArray[np.float32] | None = None


def read_picture(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an uploaded picture.

    Args:
        data: the whole file.
        max_pixels: most pixels that are decoded.

    Returns:
        uint8 ``[H, W, 3]`` RGB.

    Raises:
        MediaOpenError: it is no JPEG, PNG or WebP, or damaged.
        TooManyPixelsError: it has too many pixels.
    """
    codec = image_codec(data[:SNIFF_BYTES])
    if codec is None:
        what = f"it begins with {data[:8]!r}" if data else "it is empty"
        raise MediaOpenError(f"the upload is no JPEG, PNG or WebP image ({what}); send a picture in one of these")
    size_wh = stored_size_wh(data, codec)
    if size_wh is not None and size_wh[0] * size_wh[1] > max_pixels:
        raise TooManyPixelsError(
            f"the picture has {size_wh[0]}x{size_wh[1]} pixels; at most {max_pixels} are accepted: scale it down"
        )
    return decode_image(data, name="the upload")


def take_crop(
    image: NDArray[np.uint8], spec: ModelSpec, detector: FaceDetector, landmarks_xy: NDArray[np.float32] | None
) -> Intake:
    """Take a picture that is a crop already; without landmarks, those of the face nearest to its middle.

    Raises:
        OptionError: it has another size than the model takes.
    """
    width, height = spec.input_size_wh
    if image.shape[:2] != (height, width):
        raise OptionError(
            f"the crop is {image.shape[1]}x{image.shape[0]} px, but the model takes {width}x{height} px; send the "
            "crop that was scored, or the whole picture as 'frame'"
        )
    if landmarks_xy is None:
        middle = np.array([width, height]) / 2
        faces = faces_in(ArrayFrame.from_rgb(image), detector)
        nearest = min(faces, key=lambda face: float(np.linalg.norm(_middle(face) - middle)), default=None)
        landmarks_xy = None if nearest is None else nearest.landmarks_xy
    return Intake(image, landmarks_xy)


def take_frame(
    image: NDArray[np.uint8],
    spec: ModelSpec,
    detector: FaceDetector,
    box_xyxy: NDArray[np.float32] | None,
    landmarks_xy: NDArray[np.float32] | None,
) -> Intake:
    """Cut a face out of a frame, as the client does before it asks for a score.

    Args:
        image: the frame.
        spec: input size, margin and alignment of the model.
        detector: finds what was not given.
        box_xyxy: of the face; the one found with the largest confidence when None.
        landmarks_xy: of the face in pixels of the frame; found when None.

    Raises:
        NoFaceError: no box was given and no face is found.
        OptionError: the box is empty or lies outside of the frame.
    """
    if box_xyxy is not None:
        _check_box(box_xyxy, image)
    if box_xyxy is None or landmarks_xy is None:
        faces = faces_in(ArrayFrame.from_rgb(image), detector)
        if box_xyxy is None:
            if not faces:
                raise NoFaceError(
                    f"no face was found in the {image.shape[1]}x{image.shape[0]} px frame; send a picture with a "
                    "visible face, or its box as 'box'"
                )
            face = faces[0]
        else:
            same = max(faces, key=lambda other: iou(other.box_xyxy, box_xyxy), default=None)
            found = same is not None and iou(same.box_xyxy, box_xyxy) >= SAME_FACE_IOU
            face = Face(box_xyxy, 1.0, same.landmarks_xy if same is not None and found else None)
    else:
        face = Face(box_xyxy, 1.0, landmarks_xy)
    geometry = crop_geometry(face, (image.shape[1], image.shape[0]), spec)
    points = None if face.landmarks_xy is None else geometry.points_to_crop(face.landmarks_xy).astype(np.float32)
    crop = crop_face(ArrayFrame.from_rgb(image), face, spec)
    return Intake(crop, points, geometry.to_frame, face.box_xyxy)


def parse_numbers(text: str, count: int, *, name: str, allowed: str) -> NDArray[np.float32]:
    """Return `count` finite numbers of a form field with commas.

    Raises:
        OptionError: it holds something else.
    """
    try:
        values = np.array([float(item) for item in text.split(",")], dtype=np.float32)
    except ValueError:
        values = np.empty(0, np.float32)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise OptionError(f"{name} is {text[:80]!r}; allowed: {allowed}")
    return values


def _check_box(box_xyxy: NDArray[np.float32], image: NDArray[np.uint8]) -> None:
    left, top, right, bottom = (float(value) for value in box_xyxy)
    height, width = image.shape[:2]
    if left >= right or top >= bottom or left >= width or top >= height or right <= 0 or bottom <= 0:
        raise OptionError(
            f"box is {left:g},{top:g},{right:g},{bottom:g}; allowed: left,top,right,bottom of a face in the "
            f"{width}x{height} px frame"
        )


def _middle(face: Face) -> NDArray[np.float32]:
    return np.asarray((face.box_xyxy[:2] + face.box_xyxy[2:]) / 2, dtype=np.float32)
