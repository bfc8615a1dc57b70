"""`EnsembleSpec`: which checkpoints an ensemble is made of, and how their outputs become one probability.

Read from one YAML file, whose paths are relative to it. From it comes an ordinary `ModelSpec`, which is all that
servers and clients ever see. This module reads no weights and imports no PyTorch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deepfake_export.checkpoint.file import check_file
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import Crop, ModelSpec
from deepfake_preprocess.errors import CheckpointError, SpecError

INPUTS = ("pixels", "log_spectrum")
SPECTRUM_CHANNELS = ("luma", "rgb")
FEATURES = ("probability", "logit")

ENSEMBLE_FIELDS = ("name", "architecture", "members", "meta_model", "crop", "threshold", "checkpoint_sha256",
                   "training_data")  # fmt: skip
SHARED_FIELDS = ("version", "crop", "threshold")
"""Fields of a member's own spec that the ensemble's take the place of."""
MEMBER_FIELDS = ("name", "checkpoint", "spec", "weight", "input", "spectrum")
META_FIELDS = ("features", "fake_index", "file", "scaler", "mean", "scale", "coef", "intercept")


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What a member with ``input: log_spectrum`` sees: ``gain * log(|FFT2(x)| + epsilon)``, zero frequency central.

    Attributes:
        channels: ``luma`` for one channel (0.299 R + 0.587 G + 0.114 B), ``rgb`` for one spectrum per colour.
        pixel_max: 1 where training scaled pixels to [0, 1] before the transform, 255 where it did not.
        epsilon: 1 for `log1p`; training code with ``log(|F| + 1e-8)`` says so here.
        gain: factor of the logarithm; ``20 * log10`` is 8.685889638.
    """

    channels: str = "luma"
    pixel_max: int = 1
    epsilon: float = 1.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.channels not in SPECTRUM_CHANNELS:
            raise _refuse("spectrum.channels", self.channels, " or ".join(SPECTRUM_CHANNELS))
        if self.pixel_max not in (1, 255) or isinstance(self.pixel_max, bool):
            raise _refuse("spectrum.pixel_max", self.pixel_max, "1 or 255")
        for name, low, high in (("epsilon", 1e-12, 10.0), ("gain", -100.0, 100.0)):
            object.__setattr__(self, name, _number(f"spectrum.{name}", getattr(self, name), low, high))

    @property
    def num_channels(self) -> int:
        """Channels that the member's network takes: 1 or 3."""
        return 1 if self.channels == "luma" else 3


@dataclass(frozen=True, slots=True)
class Member:
    """One checkpoint of an ensemble.

    Attributes:
        spec: its own contract: architecture, head, input size, normalisation. `spec.name` is its name.
        checkpoint: the file with its weights.
        weight: its share of the weighted mean; without meaning where there is a meta-model.
        input: ``pixels``, or ``log_spectrum`` for a frequency branch.
        spectrum: how the spectrum is made; None for pixels.
    """

    spec: ModelSpec
    checkpoint: Path
    weight: float = 1.0
    input: str = "pixels"
    spectrum: Spectrum | None = None

    @property
    def in_channels(self) -> int:
        """Channels that the member's network takes."""
        return self.spectrum.num_channels if self.spectrum else 3


@dataclass(frozen=True, slots=True)
class MetaModel:
    """A logistic regression over the members' outputs, in the members' order.

    Attributes:
        features: what it was trained on: each member's fake `probability` or its `logit`.
        fake_index: class of the regression that means fake.
        file: where the weights are; None where they are in `weights`.
        scaler: a file of its own for the scaler, if any.
        weights: `coef`, `intercept`, and `mean` and `scale` of the scaler, as the YAML holds them.
    """

    features: str = "probability"
    fake_index: int = 1
    file: Path | None = None
    scaler: Path | None = None
    weights: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """An ensemble: members, how they are combined, and the contract of what is served.

    Attributes:
        spec: the contract of the whole; its input is as large as the largest member's, RGB.
        members: at least two, of one aspect ratio, with names of their own.
        meta_model: how outputs are combined; None for the weighted mean of the members' probabilities.
        path: the YAML file, for messages.
    """

    spec: ModelSpec
    members: tuple[Member, ...]
    meta_model: MetaModel | None
    path: Path

    @classmethod
    def from_yaml(cls, path: str | Path) -> EnsembleSpec:
        """Read an ensemble from its YAML file; see docs/model-spec.md.

        Raises:
            SpecError: the file is missing, no YAML mapping, or a field is wrong; the message names it.
        """
        path = Path(path)
        return cls._from_data(path, read_yaml(path))

    @classmethod
    def _from_data(cls, path: Path, data: Mapping[str, Any]) -> EnsembleSpec:
        try:
            _check_known(data, ENSEMBLE_FIELDS, "")
            given = data.get("members")
            if not isinstance(given, list) or len(given) < 2:
                raise _refuse("members", given, "a list of at least two members, each with a checkpoint")
            members = tuple(_member(path, index, item) for index, item in enumerate(given))
            _check_together(members)
            meta_model = _meta_model(path.parent, data["meta_model"]) if data.get("meta_model") is not None else None
        except SpecError as exc:
            raise SpecError(f"{path}: {exc}") from None
        largest = max(members, key=lambda member: member.spec.input_height_px)
        own = {key: value for key, value in data.items() if key not in ("members", "meta_model")}
        own.setdefault("crop", dataclasses.asdict(members[0].spec.crop))
        spec = ModelSpec.from_dict(
            {
                **own,
                "architecture": "ensemble",
                "input_height_px": largest.spec.input_height_px,
                "input_width_px": largest.spec.input_width_px,
                # Members normalise for themselves; what reaches them are plain pixels in [0, 1].
                "mean": [0.0, 0.0, 0.0],
                "std": [1.0, 1.0, 1.0],
            },
            where=str(path),
        )
        return cls(spec, members, meta_model, path)

    def identity(self) -> str:
        """Return what the ensemble is, as canonical JSON: its members' hashes and specs, and how they are combined.

        Raises:
            CheckpointError: a member's checkpoint is missing, unreadable or another one than its spec says.
        """
        members = [
            {
                "checkpoint_sha256": _hash(
                    member.checkpoint, member.spec, f"members[{index}] ({member.spec.name!r})"
                ),
                "input": member.input,
                "spec": {
                    key: value
                    for key, value in member.spec.to_dict().items()
                    if key not in (*SHARED_FIELDS, "checkpoint_sha256", "training_data")
                },
                "spectrum": dataclasses.asdict(member.spectrum) if member.spectrum else None,
                "weight": member.weight,
            }
            for index, member in enumerate(self.members)
        ]
        meta = self.meta_model
        meta_model = meta and {
            "fake_index": meta.fake_index,
            "features": meta.features,
            "sha256": [_hash(file, None, "meta_model") for file in (meta.file, meta.scaler) if file is not None],
            "weights": dict(meta.weights),
        }
        return json.dumps({"members": members, "meta_model": meta_model}, sort_keys=True, indent=2) + "\n"

    def identity_sha256(self) -> str:
        """Return the SHA-256 of `identity`, which is the `checkpoint_sha256` of the ensemble.

        Raises:
            CheckpointError: as `identity`.
        """
        return hashlib.sha256(self.identity().encode()).hexdigest()


def read_spec(path: str | Path) -> ModelSpec:
    """Read the contract that a YAML file describes, of a single checkpoint or of an ensemble.

    Raises:
        SpecError: the file is missing, no YAML mapping, or a field is wrong.
    """
    path = Path(path)
    try:
        data = read_yaml(path)
    except SpecError:
        return ModelSpec.from_yaml(path)
    if data.get("architecture") == "ensemble" or "members" in data:
        return EnsembleSpec._from_data(path, data).spec
    return ModelSpec.from_dict(data, where=str(path))


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Read a YAML (or JSON) mapping.

    Raises:
        SpecError: the file is missing, cannot be read, or is no mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such file; write one as in docs/model-spec.md") from None
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError(f"{path}: the file cannot be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise SpecError(f"{path}: the file is no valid YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(data, Mapping):
        raise SpecError(f"{path}: the file must hold a YAML mapping, got {type(data).__name__}")
    return data


def _member(path: Path, index: int, data: object) -> Member:
    where = f"members[{index}]"
    if not isinstance(data, Mapping):
        raise _refuse(where, data, f"a mapping with {', '.join(MEMBER_FIELDS)}, and fields of a model spec")
    spec_fields = [item.name for item in dataclasses.fields(ModelSpec) if item.name not in SHARED_FIELDS]
    _check_known(data, (*MEMBER_FIELDS, *(name for name in spec_fields if name != "name")), f"{where}.")
    if not isinstance(data.get("checkpoint"), str):
        raise _refuse(f"{where}.checkpoint", data.get("checkpoint"), "the path of the member's weights")
    checkpoint = path.parent / data["checkpoint"]
    own = {key: value for key, value in data.items() if key not in MEMBER_FIELDS}
    beside = next((file for file in (checkpoint.with_suffix(s) for s in (".yaml", ".yml")) if file.is_file()), None)
    if "spec" in data or ("architecture" not in own and beside is not None):
        if own:
            raise SpecError(f"field '{where}.{next(iter(own))}' is given, and so is a spec file; keep one of them")
        spec_path = path.parent / str(data["spec"]) if "spec" in data else beside
        assert spec_path is not None
        try:
            spec = ModelSpec.from_yaml(spec_path)
        except SpecError as exc:
            raise SpecError(f"field '{where}.spec': {exc}") from None
        if "name" in data:
            spec = ModelSpec.from_dict({**spec.to_dict(), "name": data["name"]}, where=where)
    else:
        spec = ModelSpec.from_dict({"name": checkpoint.stem, **own, **_only(data, "name")}, where=where)
    if spec.architecture_family == "ensemble":
        raise _refuse(f"{where}.architecture", spec.architecture, "a single network; name its members here instead")
    kind = data.get("input", "pixels")
    if kind not in INPUTS:
        raise _refuse(f"{where}.input", kind, " or ".join(INPUTS))
    spectrum = None
    if kind == "log_spectrum":
        options = data.get("spectrum", {})
        if not isinstance(options, Mapping):
            raise _refuse(f"{where}.spectrum", options, "a mapping")
        _check_known(options, tuple(item.name for item in dataclasses.fields(Spectrum)), f"{where}.spectrum.")
        try:
            spectrum = Spectrum(**options)
        except SpecError as exc:
            raise SpecError(f"{where}: {exc}") from None
    elif "spectrum" in data:
        raise _refuse(f"{where}.spectrum", data["spectrum"], "nothing, unless 'input: log_spectrum' is set")
    if kind == "log_spectrum" and "mean" not in own and "std" not in own and "spec" not in data and beside is None:
        # ImageNet's figures are those of pixels.
        spec = dataclasses.replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    weight = _number(f"{where}.weight", data.get("weight", 1.0), 0.0, 1e6)
    return Member(spec, checkpoint, weight, kind, spectrum)


def _check_together(members: tuple[Member, ...]) -> None:
    names = [member.spec.name for member in members]
    for index, member in enumerate(members):
        spec, first = member.spec, members[0].spec
        if names.index(spec.name) != index:
            raise SpecError(f"field 'members[{index}].name' is {spec.name!r} a second time; give each member its own")
        if spec.input_width_px * first.input_height_px != spec.input_height_px * first.input_width_px:
            raise SpecError(
                f"field 'members[{index}].input_width_px' is {spec.input_width_px} at a height of "
                f"{spec.input_height_px} px, and members[0] has {first.input_width_px}x{first.input_height_px}; all "
                "members need one aspect ratio, because they share one crop"
            )
        if spec.crop != first.crop:
            raise SpecError(
                f"field 'crop' of members[{index}] ({_crop_text(spec.crop)}) differs from that of members[0] "
                f"({_crop_text(first.crop)}); all members share one crop, so they must be trained with the same"
            )
    if not any(member.weight for member in members):
        raise SpecError("field 'members[0].weight' and all others are 0; at least one must be above 0")


def _crop_text(crop: Crop) -> str:
    return f"margin {crop.margin:g}, align {crop.align}"


def _meta_model(base: Path, data: object) -> MetaModel:
    if isinstance(data, str):
        return MetaModel(file=base / data)
    if not isinstance(data, Mapping):
        raise _refuse("meta_model", data, f"the path of a file, or a mapping with {', '.join(META_FIELDS)}")
    _check_known(data, META_FIELDS, "meta_model.")
    features, fake_index = data.get("features", "probability"), data.get("fake_index", 1)
    if features not in FEATURES:
        raise _refuse("meta_model.features", features, " or ".join(FEATURES))
    if fake_index not in (0, 1) or isinstance(fake_index, bool):
        raise _refuse("meta_model.fake_index", fake_index, "0 or 1")
    files = {}
    for key in ("file", "scaler"):
        if key in data:
            if not isinstance(data[key], str):
                raise _refuse(f"meta_model.{key}", data[key], "the path of a file")
            files[key] = base / data[key]
    weights = {key: data[key] for key in ("mean", "scale", "coef", "intercept") if key in data}
    if ("file" in files) == bool(weights) or ("scaler" in files and "file" not in files):
        raise SpecError(
            "field 'meta_model' needs either a 'file' (and maybe a 'scaler' file), or 'coef' and 'intercept'"
        )
    return MetaModel(features, fake_index, files.get("file"), files.get("scaler"), weights)


def _hash(file: Path, spec: ModelSpec | None, where: str) -> str:
    try:
        check_file(file)
    except CheckpointError as exc:
        raise CheckpointError(f"field '{where}': {exc}") from None
    sha256 = sha256_file(file)
    if spec is not None and spec.checkpoint_sha256 not in (None, sha256):
        raise CheckpointError(
            f"field '{where}': {file} is not the checkpoint of its spec: its SHA-256 is {sha256}, the spec says "
            f"{spec.checkpoint_sha256}; get the right file, or correct 'checkpoint_sha256'"
        )
    return sha256


def _only(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {key: data[key]} if key in data else {}


def _check_known(data: Mapping[str, Any], allowed: tuple[str, ...], prefix: str) -> None:
    for key in data:
        if key not in allowed:
            raise SpecError(f"field '{prefix}{key}' is unknown; allowed: {', '.join(allowed)}")


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _refuse(name, value, f"a number from {low:g} to {high:g}")
    return float(value)


def _refuse(name: str, value: object, allowed: str) -> SpecError:
    return SpecError(f"field '{name}' is {value!r}; allowed: {allowed}")
