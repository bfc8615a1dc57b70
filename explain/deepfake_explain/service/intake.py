"""What a request can say, `ExplainForm`, and the face that it is about, cut out as the client does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

import numpy as np
from fastapi import UploadFile
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from deepfake_client.explain.types import DEFAULT_METHOD, METHODS, ExplainOptions, ServedScores
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import NoFaceError, OptionError
from deepfake_preprocess.faces.boxes import iou
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face, FaceDetector, faces_in
from deepfake_preprocess.faces.geometry import crop_geometry
from deepfake_preprocess.media.frame import ArrayFrame, Frame
from deepfake_preprocess.media.opening import read_image

SAME_FACE_IOU: Final = 0.3
"""Overlap from which a detected face is the one whose box was given."""


def _split(values: Any) -> Any:
    """Let the numbers of a field be one text with commas as well as a field for each."""
    return [part for value in (values if isinstance(values, list) else [values]) for part in str(value).split(",")]


Numbers = Annotated[list[FiniteFloat], BeforeValidator(_split)]


class ExplainForm(BaseModel):
    """One face to explain: a crop, or a whole frame with the place of the face in it."""

    model_config = ConfigDict(extra="forbid")

    crop: UploadFile | None = Field(None, description="face crop of the model's input size: JPEG, PNG or WebP")
    frame: UploadFile | None = Field(None, description="whole picture, instead of a crop")
    box: Annotated[Numbers, Field(min_length=4, max_length=4)] | None = Field(
        None, description="left,top,right,bottom of the face in the frame; that of the most certain face by default"
    )
    landmarks: Annotated[Numbers, Field(min_length=10, max_length=10)] | None = Field(
        None, description="x,y of left eye, right eye, nose, left and right mouth corner; detected by default"
    )
    method: str = Field(DEFAULT_METHOD, json_schema_extra={"enum": list(METHODS)})
    layer: str | None = Field(None, description="target layer, MEMBER:LAYER for an ensemble; see GET /v1/model")
    faithfulness: bool = Field(False, description="also measure deletion and insertion curves")
    sanity: bool = Field(False, description="also compare with randomized weights")
    served_probability: float | None = Field(
        None, ge=0, le=1, description="a server's score of this face, to compare"
    )
    served_checkpoint_sha256: str | None = Field(None, description="what this server reports, as the next two")
    served_precision: str = "fp32"
    served_tensorrt: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.crop is None) == (self.frame is None):
            raise ValueError("the form must hold one picture, as 'crop' or as 'frame'")
        if self.crop is not None and self.box is not None:
            raise ValueError("'box' is for a 'frame'; a 'crop' is cut out already")
        return self

    @property
    def options(self) -> ExplainOptions:
        """How to explain."""
        return ExplainOptions(self.method, self.layer, self.faithfulness, self.sanity)

    @property
    def served(self) -> ServedScores | None:
        """The score that came along, if any."""
        if self.served_probability is None:
            return None
        score = np.array([self.served_probability], np.float32)
        return ServedScores(score, self.served_checkpoint_sha256, self.served_precision, self.served_tensorrt)


@dataclass(frozen=True, slots=True, eq=False)
class Intake:
    """A face to explain.

    Attributes:
        crop: uint8 ``[H, W, 3]`` RGB.
        landmarks_xy: float32 ``[5, 2]`` in the crop's pixels; None where none are known.
        box_xyxy: the face in the frame; None for a crop that came as such.
        crop_to_frame: see `CropGeometry.to_frame`; None likewise.
    """

    crop: NDArray[np.uint8]
    landmarks_xy: NDArray[np.float32] | None
    box_xyxy: list[float] | None = None
    crop_to_frame: list[list[float]] | None = None


def take_face(form: ExplainForm, spec: ModelSpec, detector: FaceDetector, *, max_pixels: int) -> Intake:
    """Return the face that a request is about; for a worker thread.

    Args:
        form: what the request says.
        spec: margin and alignment of the model.
        detector: finds what the form does not say.
        max_pixels: most pixels of the picture that are decoded.

    Raises:
        MediaOpenError: the picture is not a JPEG, PNG or WebP, is damaged or too large.
        NoFaceError: there is no face in a frame.
        OptionError: the box is not in the frame.
    """
    upload = form.crop or form.frame
    assert upload is not None
    image = read_image(upload.file.read(), name="the upload", max_pixels=max_pixels)
    frame = ArrayFrame.from_rgb(image)
    points = None if form.landmarks is None else np.array(form.landmarks, np.float32).reshape(5, 2)
    all_known = points is not None and (form.crop is not None or form.box is not None)
    faces = [] if all_known else faces_in(frame, detector)
    if form.crop is not None:
        if (frame.width_px, frame.height_px) != spec.input_size_wh:
            raise OptionError(
                f"the crop is {frame.width_px}x{frame.height_px} px, but the model takes {spec.input_width_px}x"
                f"{spec.input_height_px} px; send the crop that was scored, or the whole picture as 'frame'"
            )
        center = np.array([frame.width_px, frame.height_px]) / 2
        nearest = min(faces, key=lambda face: float(np.linalg.norm(_center(face) - center)), default=None)
        return Intake(image, points if nearest is None else nearest.landmarks_xy)
    if form.box is not None:
        face = _face_at(form.box, points, faces, frame)
    elif faces:
        face = faces[0]
    else:
        size = f"{frame.width_px}x{frame.height_px}"
        raise NoFaceError(f"no face was found in the {size} px frame; send a visible face, or its box as 'box'")
    geometry = crop_geometry(face, (frame.width_px, frame.height_px), spec)
    points = None if face.landmarks_xy is None else geometry.points_to_crop(face.landmarks_xy).astype(np.float32)
    return Intake(crop_face(frame, face, spec), points, face.box_xyxy.tolist(), geometry.to_frame.tolist())


def _face_at(box: list[float], points: NDArray[np.float32] | None, faces: list[Face], frame: Frame) -> Face:
    """Return the face of a box, with the landmarks of the one detected there where none are given."""
    left, top, right, bottom = box
    if not (left < right and top < bottom and left < frame.width_px and top < frame.height_px and right > 0 < bottom):
        raise OptionError(
            f"`box` is {left:g},{top:g},{right:g},{bottom:g}; allowed: left,top,right,bottom of a face in the "
            f"{frame.width_px}x{frame.height_px} px frame"
        )
    box_xyxy = np.array(box, np.float32)
    same = max(faces, key=lambda face: iou(face.box_xyxy, box_xyxy), default=None)
    if same is not None and iou(same.box_xyxy, box_xyxy) >= SAME_FACE_IOU:
        points = same.landmarks_xy
    return Face(box_xyxy, 1.0, points)


def _center(face: Face) -> NDArray[np.float32]:
    return np.asarray((face.box_xyxy[:2] + face.box_xyxy[2:]) / 2)
