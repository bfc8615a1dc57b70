"""`ModelSpec`: everything a consumer of a detector must know, in one place.

The same facts travel as YAML beside a checkpoint, as metadata inside the ONNX file and as `parameters` of
the Triton model configuration, so that a client reads them from the server and nobody types them twice.
This module never touches a model.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deepfake_preprocess.contract.fields import (
    check_choice,
    check_int,
    check_number,
    field_names,
    keywords_of,
    read_mapping,
    refuse,
)
from deepfake_preprocess.errors import SpecError

CONTRACT_VERSION = 1
"""Version of the wire contract (tensor names, dtypes and meaning); a client refuses another one."""

INPUT_NAME = "faces"
"""UINT8 ``[N, H, W, 3]`` RGB; normalisation is inside the graph."""
PROBABILITY_NAME = "fake_probability"
"""FP32 ``[N, 1]`` in [0, 1]."""
LOGIT_NAME = "logit"
"""FP32 ``[N, 1]``; `fake_probability` is its sigmoid."""

PARAMETER_PREFIX = "deepfake."
"""Prefix of our keys among Triton parameters and ONNX metadata."""

HEAD_KINDS = ("sigmoid", "softmax")
COLOR_ORDERS = ("RGB", "BGR")
ALIGNMENTS = ("none", "eyes")
ARCHITECTURE_FAMILIES = ("timm", "torchvision", "torchscript", "python", "layers", "ensemble")
BARE_FAMILIES = ("torchscript", "layers", "ensemble")
"""Architectures that are a word alone, without a name after a colon."""

SIZED_LAYERS = ("linear", "conv", "maxpool")
"""Entries of `head.layers` that take a whole number: outputs, channels (3x3, padded by 1), window."""
PLAIN_LAYERS = (
    "relu", "leaky_relu", "elu", "gelu", "silu", "hardswish", "tanh", "dropout", "batchnorm", "layernorm", "avgpool",
    "flatten", "identity",
)  # fmt: skip
"""Entries of `head.layers` that stand alone."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Head:
    """How logits become the probability of "fake".

    Attributes:
        kind: ``sigmoid`` for one logit, ``softmax`` for two.
        fake_index: class index that means fake. For ``sigmoid``, 1 when a positive logit means fake
            and 0 when it means real.
        layers: a head of several layers, entry by entry as its `nn.Sequential` was written (``linear:512``,
            ``relu``, ``dropout``, ``linear:2``), in place of the network's last layer; empty for the usual one.
    """

    kind: str = "sigmoid"
    fake_index: int = 1
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("head.kind", self.kind, HEAD_KINDS)
        check_choice("head.fake_index", self.fake_index, (0, 1))
        object.__setattr__(self, "layers", _check_layers(self.layers, self.num_logits))

    @property
    def num_logits(self) -> int:
        """Number of values the network puts out per crop."""
        return 1 if self.kind == "sigmoid" else 2


@dataclass(frozen=True, slots=True)
class Crop:
    """How a face box becomes the network's input.

    Attributes:
        margin: context added on each side, as a share of the box's longer side; in [0, 2].
        align: ``none`` for an upright square around the box, ``eyes`` to rotate the eye line level first.
    """

    margin: float = 0.3
    align: str = "none"

    def __post_init__(self) -> None:
        check_number("crop.margin", self.margin, 0.0, 2.0)
        check_choice("crop.align", self.align, ALIGNMENTS)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The contract of one detector.

    Attributes:
        name: Triton model name; letters, digits, ``_``, ``-`` and ``.``, at most 64.
        architecture: ``timm:NAME``, ``torchvision:NAME``, ``torchscript``, ``python:package.module:factory``,
            ``layers`` (the network is `head.layers` alone) or ``ensemble`` (made of other checkpoints by the export).
        version: Triton model version, from 1; the export assigns it.
        head: meaning of the network's outputs.
        input_height_px: crop height the network takes, 16 to 1024.
        input_width_px: crop width the network takes, 16 to 1024.
        color_order: order the *network* was trained with. The wire is always RGB.
        mean: per channel, of values in [0, 1], in `color_order`.
        std: per channel, of values in [0, 1], in `color_order`.
        crop: how faces are cut out.
        threshold: fake when the probability is at or above it; strictly between 0 and 1.
        temperature: what the logit is divided by, inside the graph, so that probabilities mean what they say
            (Guo et al., 2017); `deepfake evaluate` finds it. 0.01 to 100.
        checkpoint_sha256: hash of the checkpoint file; None until it is known.
        training_data: what the detector was trained on and what its scores are worth, for people.
    """

    name: str
    architecture: str
    version: int = 1
    head: Head = field(default_factory=Head)
    input_height_px: int = 224
    input_width_px: int = 224
    color_order: str = "RGB"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: Crop = field(default_factory=Crop)
    threshold: float = 0.5
    temperature: float = 1.0
    checkpoint_sha256: str | None = None
    training_data: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name):
            raise refuse("name", self.name, "1 to 64 letters, digits, '_', '-' or '.', not starting with a sign")
        _check_architecture(self.architecture)
        _check_head_fits(self.architecture_family, self.head)
        check_int("version", self.version, 1, 2**31 - 1)
        check_int("input_height_px", self.input_height_px, 16, 1024)
        check_int("input_width_px", self.input_width_px, 16, 1024)
        check_choice("color_order", self.color_order, COLOR_ORDERS)
        object.__setattr__(self, "mean", _triple("mean", self.mean, -10.0, 10.0))
        object.__setattr__(self, "std", _triple("std", self.std, 1e-6, 10.0))
        check_number("threshold", self.threshold, 0.0, 1.0)
        if self.threshold in (0.0, 1.0):
            raise refuse("threshold", self.threshold, "a number strictly between 0 and 1")
        check_number("temperature", self.temperature, 0.01, 100.0)
        sha = self.checkpoint_sha256
        if sha is not None and not (isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{64}", sha)):
            raise refuse("checkpoint_sha256", sha, "64 lower-case hexadecimal digits")
        if not isinstance(self.training_data, str):
            raise refuse("training_data", self.training_data, "text")

    @property
    def architecture_family(self) -> str:
        """``timm``, ``torchvision``, ``torchscript``, ``python``, ``layers`` or ``ensemble``."""
        return self.architecture.partition(":")[0]

    @property
    def architecture_name(self) -> str:
        """What follows the family, for example ``efficientnet_b0``; empty for a family that stands alone."""
        return self.architecture.partition(":")[2]

    @property
    def input_size_wh(self) -> tuple[int, int]:
        """Crop size as (width, height) in pixels."""
        return self.input_width_px, self.input_height_px

    def to_dict(self) -> dict[str, Any]:
        """Return plain data (nested dicts and lists) that `from_dict` reads back."""
        data = dataclasses.asdict(self)
        data["mean"], data["std"] = list(self.mean), list(self.std)
        data["head"]["layers"] = list(self.head.layers)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "the model spec") -> ModelSpec:
        """Build a spec from plain data.

        Args:
            data: mapping with the attribute names as keys; `head` and `crop` are mappings.
            where: what the data came from, for messages.

        Raises:
            SpecError: a field is unknown, missing or wrong; the message names it.
        """
        try:
            values = keywords_of(cls, data)
            for key, part in (("head", Head), ("crop", Crop)):
                if key in values:
                    if not isinstance(values[key], Mapping):
                        raise refuse(key, values[key], f"a mapping with {', '.join(field_names(part))}")
                    values[key] = part(**keywords_of(part, values[key], prefix=f"{key}."))
            return cls(**values)
        except SpecError as exc:
            raise SpecError(f"{where}: {exc}") from None

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
                # Only the few models that have such a head, or were calibrated, publish it.
                if item == [] or (name == "temperature" and item == 1.0):
                    continue
                flat[PARAMETER_PREFIX + name] = item if isinstance(item, str) else json.dumps(item)
        return flat

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str], *, where: str = "the model's parameters") -> ModelSpec:
        """Read a spec back from the flat parameters of `to_parameters`; foreign keys are ignored.

        Raises:
            SpecError: no contract version, another contract version, or a wrong field.
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
        texts = {
            "name",
            "architecture",
            "color_order",
            "checkpoint_sha256",
            "training_data",
            "head.kind",
            "crop.align",
        }
        data: dict[str, Any] = {}
        for key, text in ours.items():
            value: Any = text
            if key not in texts:
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


def _triple(name: str, value: object, low: float, high: float) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise refuse(name, value, "three numbers, one per channel")
    first, second, third = (check_number(name, item, low, high) for item in value)
    return first, second, third


def _check_architecture(value: object) -> None:
    forms = "timm:NAME, torchvision:NAME, torchscript, python:package.module:factory, layers, ensemble"
    if not isinstance(value, str):
        raise refuse("architecture", value, forms)
    family, _, rest = value.partition(":")
    if family not in ARCHITECTURE_FAMILIES or (family in BARE_FAMILIES) == bool(rest):
        raise refuse("architecture", value, forms)
    if family == "python" and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", rest):
        raise refuse("architecture", value, forms)


def _check_layers(value: object, num_logits: int) -> tuple[str, ...]:
    allowed = (
        f"a list of {', '.join(f'{name}:N' for name in SIZED_LAYERS)}, {', '.join(PLAIN_LAYERS)}, "
        f"which ends with linear:{num_logits}"
    )
    if not isinstance(value, list | tuple):
        raise refuse("head.layers", value, allowed)
    for item in value:
        name, colon, size = item.partition(":") if isinstance(item, str) else ("", "", "")
        sized = name in SIZED_LAYERS and re.fullmatch(r"[1-9]\d{0,4}", size)
        if not sized and not (name in PLAIN_LAYERS and not colon):
            raise refuse("head.layers", item, allowed)
    if value and value[-1] != f"linear:{num_logits}":
        raise refuse("head.layers", list(value), allowed)
    return tuple(value)


def _check_head_fits(family: str, head: Head) -> None:
    if family == "layers" and not head.layers:
        raise refuse("head.layers", [], "the layers of the network, because the architecture is 'layers'")
    if family in ("torchscript", "python", "ensemble") and head.layers:
        raise refuse("head.layers", list(head.layers), f"nothing, because {family!r} brings its own head along")
