"""`OptionsForm`: the options of an analysis as fields of a form or a query, named as `AnalyzeOptions` names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepfake_client.explain.evidence import MAX_SHOWN
from deepfake_client.options import Aggregation, AnalyzeOptions
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.settings import wrong_value
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.sampling import Sampling, SamplingMode


class OptionsForm(BaseModel):
    """How a file is analyzed; see `deepfake_client.options.AnalyzeOptions`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    num_frames: int | None = Field(None, ge=1, le=100_000)
    """Frames to look at, spread over the file; 32 unless `fps` is given."""
    fps: float | None = Field(None, gt=0, le=1000)
    """Frames per second to look at, instead of `num_frames`."""
    mode: SamplingMode = "uniform"
    """``fast`` looks near keyframes, where decoding is cheap."""
    aggregation: Aggregation = "mean"
    """How a face's frames become its score."""
    threshold: float | None = Field(None, gt=0, lt=1)
    """FAKE at or above it; the model's own by default."""
    until_sure: bool | float = False
    """Stop when the frames looked at suffice: true, or a confidence from 0.5 to below 1."""
    min_face_px: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Faces with a smaller box are left out."""
    min_face_share: float = Field(0.0, ge=0, lt=1)
    """The same relative to the frame's shorter side."""

    def to_options(self) -> AnalyzeOptions:
        """Return the client's own options; OptionError where they do not go together."""
        if self.fps is not None and self.num_frames is not None:
            raise OptionError("`num_frames` and `fps` are both given; give one of them")
        num_frames = None if self.fps is not None else self.num_frames or 32
        return AnalyzeOptions(
            sampling=Sampling(num_frames=num_frames, fps=self.fps, mode=self.mode),
            aggregation=self.aggregation,
            threshold=self.threshold,
            until_sure=self.until_sure,
            min_face_px=self.min_face_px,
            min_face_share=self.min_face_share,
        )


def form_properties() -> dict[str, Any]:
    """Return the options' JSON schemas for forms and queries, where a field without a value is left out."""
    properties = OptionsForm.model_json_schema()["properties"]
    for schema in properties.values():
        if "anyOf" in schema:
            schema["anyOf"] = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
        if "default" in schema and schema["default"] is None:
            del schema["default"]
    return dict(properties)


class ExplanationForm(BaseModel):
    """Which heatmaps are wanted; see `deepfake_client.explain.types.ExplainOptions`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    method: Literal["grad-cam", "grad-cam++", "eigen-cam", "layer-cam", "hires-cam"] = "grad-cam"
    """How the heatmap is computed."""
    layer: str | None = Field(default=None, min_length=1, max_length=200)
    """Layer of the network, as `GET /v1/explainer` lists them; its own default if null."""
    crops: list[Annotated[str, Field(max_length=40)]] | None = Field(default=None, min_length=1, max_length=MAX_SHOWN)
    """Names of faces, as `GET …/crops` lists them; the three most suspicious if null."""
    faithfulness: bool = False
    """Also measure deletion and insertion curves: dozens of passes for each face."""
    sanity: bool = False
    """Also compare with randomized weights."""


def stored_options(fields: Mapping[str, Any], *, max_frames: int) -> dict[str, Any]:
    """Return the options that fields ask for as JSON data, complete, so that equal options are equal data.

    Raises:
        Problem: 422, a field is unknown or out of its range, or more than `max_frames` are asked for.
    """
    given = {name: value for name, value in fields.items() if value != ""}  # an empty field of a page is none
    try:
        options = OptionsForm.model_validate(given).to_options()
    except ValidationError as exc:
        error = exc.errors()[0]
        name = ".".join(str(part) for part in error["loc"][:1])
        if error["type"] == "extra_forbidden":
            known = ", ".join(OptionsForm.model_fields)
            raise Problem(422, f"there is no option `{name[:80]}`; there are {known}") from None
        if (name, error["type"]) == ("num_frames", "less_than_equal"):
            raise _too_many(str(error["input"])[:20], max_frames) from None
        raise Problem(422, wrong_value(name, error)) from None
    except OptionError as exc:
        raise Problem(422, str(exc)) from None
    if (num_frames := options.sampling.num_frames) is not None and num_frames > max_frames:
        raise _too_many(str(num_frames), max_frames)
    return asdict(options)


def _too_many(num_frames: str, max_frames: int) -> Problem:
    return Problem(
        422, f"`num_frames` is {num_frames}, and at most {max_frames} frames are looked at; give a smaller number"
    )
