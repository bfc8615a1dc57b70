"""`ModelSpec`: everything that a consumer of a detector must know, in one place.

The same facts travel as YAML next to a checkpoint, as metadata inside the ONNX file and as `parameters` of the Triton
model configuration, where clients read them from the server. Nobody types them twice. This module never touches a
model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from deepfake_preprocess.contract.fields import read_mapping, refuse
from deepfake_preprocess.errors import SpecError
from deepfake_preprocess.support.json_data import Bounds, JsonData, Matching

CONTRACT_VERSION = 1
"""Version of the wire contract (tensor names, dtypes and meaning); a client refuses any other."""

INPUT_NAME = "faces"
"""UINT8 ``[N, H, W, 3]`` RGB; normalization is inside the graph."""
PROBABILITY_NAME = "fake_probability"
"""FP32 ``[N, 1]`` in [0, 1]."""
LOGIT_NAME = "logit"
"""FP32 ``[N, 1]``; `fake_probability` is its sigmoid."""

PARAMETER_PREFIX = "deepfake."
"""Prefix of our keys among Triton parameters and ONNX metadata."""

_TEXT_PARAMETERS = (
    "name", "architecture", "color_order", "checkpoint_sha256", "training_data", "caution", "head.kind",
    "crop.align",
)  # fmt: skip
"""Our parameters that are plain text; the others are JSON."""

_UNPUBLISHED = (("temperature", 1.0), ("trained", True), ("caution", ""))
"""Values that go without saying."""

SIZED_LAYERS = ("linear", "conv", "maxpool")
"""Entries of `head.layers` that take a whole number: outputs, channels (3x3, padded by 1), window."""
PLAIN_LAYERS = (
    "relu", "leaky_relu", "elu", "gelu", "silu", "hardswish", "tanh", "dropout", "batchnorm", "layernorm", "avgpool",
    "flatten", "identity", "normalize",
)  # fmt: skip
"""Entries of `head.layers` without a number."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ModelName = Annotated[
    str,
    Matching(
        "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", "1 to 64 letters, digits, '_', '-' or '.', not starting with a sign"
    ),
]
Architecture = Annotated[
    str,
    Matching(
        r"^(timm:.+|torchvision:.+|published:.+|torchscript|python:[A-Za-z_][\w.]*:[A-Za-z_]\w*|layers|ensemble)$",
        "timm:NAME, torchvision:NAME, published:NAME, torchscript, python:package.module:factory, layers, ensemble",
    ),
]
Layer = Annotated[
    str,
    Matching(
        f"^(({'|'.join(SIZED_LAYERS)}):[1-9][0-9]{{0,4}}|{'|'.join(PLAIN_LAYERS)})$",
        f"{', '.join(f'{name}:N' for name in SIZED_LAYERS)}, {', '.join(PLAIN_LAYERS)}",
    ),
]
Sha256 = Annotated[str, Matching("^[0-9a-f]{64}$", "64 lower-case hexadecimal digits")]
InputSize = Annotated[int, Bounds(ge=16, le=1024)]
ChannelMean = Annotated[float, Bounds(ge=-10, le=10)]
ChannelStd = Annotated[float, Bounds(ge=1e-6, le=10)]


@dataclass(frozen=True, slots=True)
class Head(JsonData):
    """How logits become the probability of "fake".

    Attributes:
        kind: ``sigmoid`` for one logit, ``softmax`` for two.
        fake_index: class index that means fake. For ``sigmoid``, 1 when a positive logit means fake and 0 when it
            means real.
        layers: a head of several layers, entry by entry as in its `nn.Sequential` (``linear:512``, ``relu``,
            ``dropout``, ``linear:2``), which replaces the network's last layer; empty for the usual one.
            ``normalize`` gives the features the length 1, as detectors on CLIP have it.
    """

    json_error = SpecError

    kind: Literal["sigmoid", "softmax"] = "sigmoid"
    fake_index: Literal[0, 1] = 1
    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        self.check_fields()
        if self.layers and self.layers[-1] != f"linear:{self.num_logits}":
            raise refuse("head.layers", list(self.layers), f"a list that ends with linear:{self.num_logits}")

    @property
    def num_logits(self) -> int:
        """Number of values that the network outputs per crop."""
        return 1 if self.kind == "sigmoid" else 2


@dataclass(frozen=True, slots=True)
class Crop(JsonData):
    """How a face box becomes the network's input.

    Attributes:
        margin: context added on each side, as a share of the box's longer side; in [0, 2].
        align: ``none`` for an upright square around the box, rotated for heads that are rolled by over 20 degrees;
            ``eyes`` to rotate the eye line level first.
    """

    json_error = SpecError

    margin: Annotated[float, Bounds(ge=0, le=2)] = 0.3
    align: Literal["none", "eyes"] = "none"

    def __post_init__(self) -> None:
        self.check_fields()


@dataclass(frozen=True, slots=True)
class Histogram(JsonData):
    """How a figure was distributed over the calibration's clips.

    Attributes:
        name: what was counted, such as ``score``.
        edges: where one bin ends and the next begins, rising; the first bin has no lower end, the last no upper one.
        counts: clips in each bin, one more than edges. A value on an edge is in the upper bin.
    """

    json_error = SpecError

    name: str
    edges: tuple[float, ...]
    counts: tuple[Annotated[int, Bounds(ge=0)], ...]


@dataclass(frozen=True, slots=True)
class Looks(JsonData):
    """What the faces of the calibration's clips look like, so that others are noticed.

    The names are those of `deepfake_client.analysis.judging.abstaining.LOOKS`, and each clip counts with its mean.

    Attributes:
        mean: of all clips, by look.
        deviation: standard deviation between clips, by look.
        precision: inverse of the correlations, looks by looks.
        limit: Mahalanobis distance beyond which a clip is unlike those of the calibration.
    """

    json_error = SpecError

    mean: tuple[float, ...]
    deviation: tuple[Annotated[float, Bounds(gt=0)], ...]
    precision: tuple[tuple[float, ...], ...]
    limit: Annotated[float, Bounds(gt=0)]


@dataclass(frozen=True, slots=True)
class Calibration(JsonData):
    """What `deepfake calibrate` found on whole clips: when a verdict is better left open, and what is usual.

    Attributes:
        num_real: real clips it was found on.
        num_fake: fake clips; 0 where the threshold comes from real ones alone.
        false_positive_rate: share of real clips called fake that was asked for.
        undecided_from: scores from here to the threshold are left open; at or below the threshold.
        looks: of the faces; None where there were too few clips.
        histograms: for comparison with later clips.
    """

    json_error = SpecError

    num_real: Annotated[int, Bounds(ge=0)]
    num_fake: Annotated[int, Bounds(ge=0)]
    false_positive_rate: Annotated[float, Bounds(gt=0, lt=1)]
    undecided_from: Annotated[float, Bounds(ge=0, le=1)]
    looks: Looks | None = None
    histograms: tuple[Histogram, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec(JsonData):
    """The contract of one detector.

    Attributes:
        name: Triton model name; letters, digits, ``_``, ``-`` and ``.``, at most 64.
        architecture: ``timm:NAME``, ``torchvision:NAME``, ``published:NAME`` (of `deepfake_export.published`),
            ``torchscript``, ``python:package.module:factory``, ``layers`` (the network is `head.layers` alone) or
            ``ensemble`` (made of other checkpoints by the export).
        version: Triton model version, from 1; the export assigns it.
        head: meaning of the network's outputs.
        input_height_px: crop height that the network takes, 16 to 1024.
        input_width_px: crop width that the network takes, 16 to 1024.
        color_order: order that the *network* was trained with. The wire is always RGB.
        mean: per channel, of values in [0, 1], in `color_order`.
        std: per channel, of values in [0, 1], in `color_order`.
        crop: how faces are cut out.
        threshold: fake when the probability is at or above it; strictly between 0 and 1.
        temperature: divisor of the logit, inside the graph, that calibrates the probabilities (Guo et al., 2017);
            `deepfake evaluate` finds it. 0.01 to 100.
        calibration: when verdicts are left open, found by `deepfake calibrate`; None decides always.
        ignore_keys: patterns (``*`` and ``?``) of names of tensors in the checkpoint that the network does not use.
        checkpoint_sha256: hash of the checkpoint file; None until it is known.
        training_data: what the detector was trained on and what its scores are worth, for people.
        caution: one sentence on what the scores must not be used for; shown beside every verdict. May be empty.
        trained: False for random weights, whose scores mean nothing: they are for tests and measurements of speed.
    """

    json_error = SpecError

    name: ModelName
    architecture: Architecture
    version: Annotated[int, Bounds(ge=1, le=2**31 - 1)] = 1
    head: Head = field(default_factory=Head)
    input_height_px: InputSize = 224
    input_width_px: InputSize = 224
    color_order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[ChannelMean, ChannelMean, ChannelMean] = IMAGENET_MEAN
    std: tuple[ChannelStd, ChannelStd, ChannelStd] = IMAGENET_STD
    crop: Crop = field(default_factory=Crop)
    threshold: Annotated[float, Bounds(gt=0, lt=1)] = 0.5
    temperature: Annotated[float, Bounds(ge=0.01, le=100)] = 1.0
    calibration: Calibration | None = None
    ignore_keys: tuple[str, ...] = ()
    checkpoint_sha256: Sha256 | None = None
    training_data: str = ""
    caution: str = ""
    trained: bool = True

    def __post_init__(self) -> None:
        self.check_fields()
        family, layers = self.architecture_family, list(self.head.layers)
        if family == "layers" and not layers:
            raise refuse("head.layers", layers, "the layers of the network, because the architecture is 'layers'")
        if family in ("torchscript", "python", "published", "ensemble") and layers:
            raise refuse("head.layers", layers, f"nothing, because {family!r} has its own head")

    @property
    def architecture_family(self) -> str:
        """``timm``, ``torchvision``, ``published``, ``torchscript``, ``python``, ``layers`` or ``ensemble``."""
        return self.architecture.partition(":")[0]

    @property
    def architecture_name(self) -> str:
        """The part after the family, for example ``efficientnet_b0``; empty where there is none."""
        return self.architecture.partition(":")[2]

    @property
    def input_size_wh(self) -> tuple[int, int]:
        """Crop size as (width, height) in pixels."""
        return self.input_width_px, self.input_height_px

    def to_yaml(self) -> str:
        """Return the spec as YAML text."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: str | Path) -> ModelSpec:
        """Read a spec from a YAML file.

        Raises:
            SpecError: the file is missing, not a YAML mapping, or a field is wrong.
        """
        return cls.from_dict(read_mapping(Path(path)), where=str(path))

    def to_parameters(self) -> dict[str, str]:
        """Return the spec as flat text parameters, for ONNX metadata and Triton's model configuration."""
        flat: dict[str, str] = {f"{PARAMETER_PREFIX}contract_version": str(CONTRACT_VERSION)}
        for key, value in self.to_dict().items():
            if value is None:
                continue
            parts = {f"{key}.{sub}": item for sub, item in value.items()} if isinstance(value, dict) else {key: value}
            for name, item in parts.items():
                # Only models that have such a head, were calibrated, carry a caution or are untrained publish these.
                if item in (None, []) or (name, item) in _UNPUBLISHED:
                    continue
                flat[PARAMETER_PREFIX + name] = item if isinstance(item, str) else json.dumps(item)
        return flat

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str], *, where: str = "the model's parameters") -> ModelSpec:
        """Read a spec back from the flat parameters of `to_parameters`; foreign keys are ignored.

        Raises:
            SpecError: the contract version is missing or another one, or a field is wrong.
        """
        ours = {
            key.removeprefix(PARAMETER_PREFIX): value
            for key, value in parameters.items()
            if key.startswith(PARAMETER_PREFIX)
        }
        version = ours.pop("contract_version", None)
        if version != str(CONTRACT_VERSION):
            raise SpecError(
                f"{where}: field '{PARAMETER_PREFIX}contract_version' is {version!r}; "
                f"allowed: '{CONTRACT_VERSION}' (models written by `deepfake export` carry it)"
            )
        data: dict[str, Any] = {}
        for key, text in ours.items():
            value: Any = text
            if key not in _TEXT_PARAMETERS:
                try:
                    value = json.loads(text)
                except json.JSONDecodeError:
                    raise SpecError(f"{where}: field '{key}' is {text!r}; allowed: a JSON value") from None
            group, _, sub = key.partition(".")
            if sub:
                data.setdefault(group, {})[sub] = value
            else:
                data[group] = value
        return cls.from_dict(data, where=where)
