"""What a request can say, `ExplainForm`, and the face that it is about, cut out as the client does it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

import numpy as np
from fastapi import UploadFile
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from deepfake_client.explain.types import DEFAULT_METHOD, METHODS, ServedScores
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.boxes import iou
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face, FaceDetector, faces_in
from deepfake_preprocess.faces.geometry import crop_geometry
from deepfake_preprocess.media.frame import ArrayFrame
from deepfake_preprocess.media.image import read_image

SAME_FACE_IOU: Final = 0.3
"""Overlap from which a detected face is the one whose box was given."""


def _split(values: Any) -> Any:
    """Let the numbers of a field be one text with commas as well as a field for each."""
    return [part for value in (values if isinstance(values, list) else [values]) for part in str(value).split(",")]


Pixels = Annotated[list[Annotated[float, Field(ge=-(2**16), le=2**16)]], BeforeValidator(_split)]


class ExplainForm(BaseModel):
    """One face to explain: a crop, or a whole frame with the place of the face in it."""

    model_config = ConfigDict(extra="forbid")

    crop: UploadFile | None = Field(None, description="face crop of the model's input size: JPEG, PNG or WebP")
    frame: UploadFile | None = Field(None, description="whole picture, instead of a crop")
    box: Annotated[Pixels, Field(min_length=4, max_length=4)] | None = Field(
        None, description="of the face in the frame: left,top,right,bottom in its pixels"
    )
    landmarks: Annotated[Pixels, Field(min_length=10, max_length=10)] | None = Field(
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
        if (self.crop is None) == (self.frame is None) or (self.frame is None) != (self.box is None):
            raise ValueError("the form must hold one picture: a 'crop', or a 'frame' with the 'box' of a face in it")
        if self.box is not None and (self.box[0] >= self.box[2] or self.box[1] >= self.box[3]):
            raise ValueError(
                f"`box` is {self.box}; allowed: left,top,right,bottom, with left < right and top < bottom"
            )
        return self

    @property
    def served(self) -> ServedScores | None:
        """The score that came along, if any."""
        if self.served_probability is None:
            return None
        score = np.array([self.served_probability], np.float32)
        return ServedScores(score, self.served_checkpoint_sha256, self.served_precision, self.served_tensorrt)


def take_face(
    form: ExplainForm, spec: ModelSpec, detector: FaceDetector, max_pixels: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None, list[list[float]] | None]:
    """Return the face that a request is about; for a worker thread.

    That is its crop, uint8 ``[H, W, 3]`` RGB; its landmarks, float32 ``[5, 2]`` in the crop's pixels, where any are
    known; and for a face in a frame `CropGeometry.to_frame`.
    """
    upload = form.crop or form.frame
    assert upload is not None
    image = read_image(upload.file.read(), name="the upload", max_pixels=max_pixels)
    frame, frame_wh = ArrayFrame.from_rgb(image), (image.shape[1], image.shape[0])
    points = None if form.landmarks is None else np.array(form.landmarks, np.float32).reshape(5, 2)
    # In a crop the face is where its margin leaves it.
    inset = spec.crop.margin / (1 + 2 * spec.crop.margin)
    box_xyxy = np.array(form.box or [*np.multiply(inset, frame_wh), *np.multiply(1 - inset, frame_wh)], np.float32)
    if points is None:
        same = max(faces_in(frame, detector), key=lambda face: iou(face.box_xyxy, box_xyxy), default=None)
        if same is not None and iou(same.box_xyxy, box_xyxy) >= SAME_FACE_IOU:
            points = same.landmarks_xy
    if form.crop is not None:
        return image, points, None
    face = Face(box_xyxy, 1.0, points)
    geometry = crop_geometry(face, frame_wh, spec)
    in_crop = None if points is None else geometry.points_to_crop(points).astype(np.float32)
    return crop_face(frame, face, spec), in_crop, geometry.to_frame.tolist()
