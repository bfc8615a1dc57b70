"""`EnsembleSpec`: which checkpoints an ensemble is made of, and how their outputs become one probability.

Read from one YAML file, whose paths are relative to it. From it comes an ordinary `ModelSpec`, which is all that
servers and clients ever see. This module reads no weights and imports no PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from deepfake_export.checkpoint.file import sha256_of, spec_beside
from deepfake_export.ensemble.meta_model import MetaModel, read_meta_model
from deepfake_preprocess.contract.fields import check_known, read_mapping, refuse
from deepfake_preprocess.contract.spec import Crop, ModelSpec
from deepfake_preprocess.errors import CheckpointError, SpecError
from deepfake_preprocess.support.json_data import Bounds, JsonData

ENSEMBLE_FIELDS = ("name", "architecture", "members", "meta_model", "crop", "threshold", "checkpoint_sha256",
                   "training_data", "caution", "trained")  # fmt: skip
SHARED_FIELDS = ("version", "crop", "threshold")
"""Fields of a member's own spec that the ensemble's take the place of."""
MEMBER_FIELDS = ("name", "checkpoint", "spec", "weight", "input", "spectrum")


@dataclass(frozen=True, slots=True)
class Spectrum(JsonData):
    """What a member with ``input: log_spectrum`` sees: ``gain * log(|FFT2(x)| + epsilon)``, zero frequency central.

    Attributes:
        channels: ``luma`` for one channel (0.299 R + 0.587 G + 0.114 B), ``rgb`` for one spectrum per color.
        pixel_max: 1 where training scaled pixels to [0, 1] before the transform, 255 where it did not.
        epsilon: 1 for `log1p`; training code with ``log(|F| + 1e-8)`` says so here.
        gain: factor of the logarithm; ``20 * log10`` is 8.685889638.
    """

    json_error = SpecError

    channels: Literal["luma", "rgb"] = "luma"
    pixel_max: Literal[1, 255] = 1
    epsilon: Annotated[float, Bounds(ge=1e-12, le=10)] = 1.0
    gain: Annotated[float, Bounds(ge=-100, le=100)] = 1.0

    def __post_init__(self) -> None:
        self.check_fields()

    @property
    def num_channels(self) -> int:
        """Channels that the member's network takes: 1 or 3."""
        return 1 if self.channels == "luma" else 3


@dataclass(frozen=True, slots=True)
class Member(JsonData):
    """One checkpoint of an ensemble.

    Attributes:
        spec: its own contract: architecture, head, input size, normalization. `spec.name` is its name.
        checkpoint: the file with its weights.
        weight: its share of the weighted mean; without meaning where there is a meta-model.
        input: ``pixels``, or ``log_spectrum`` for a frequency branch.
        spectrum: how the spectrum is made; None for pixels.
    """

    json_error = SpecError

    spec: ModelSpec
    checkpoint: Path
    weight: Annotated[float, Bounds(ge=0, le=1e6)] = 1.0
    input: Literal["pixels", "log_spectrum"] = "pixels"
    spectrum: Spectrum | None = None

    def __post_init__(self) -> None:
        self.check_fields()

    @property
    def in_channels(self) -> int:
        """Channels that the member's network takes."""
        return self.spectrum.num_channels if self.spectrum else 3


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
        """Read an ensemble from its YAML file; see `from_dict`."""
        path = Path(path)
        return cls.from_dict(read_mapping(path), path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: Path) -> EnsembleSpec:
        """Read an ensemble from what its YAML file holds (docs/model-spec.md); `SpecError` names the wrong field."""
        try:
            check_known(data, ENSEMBLE_FIELDS)
            given = data.get("members")
            if not isinstance(given, list) or len(given) < 2:
                raise refuse("members", given, "a list of at least two members, each with a checkpoint")
            members = tuple(_member(path, index, item) for index, item in enumerate(given))
            _check_together(members)
            meta = data.get("meta_model")
            meta_model = None if meta is None else read_meta_model(meta, path.parent, len(members))
        except SpecError as exc:
            raise SpecError(f"{path}: {exc}") from None
        largest = max(members, key=lambda member: member.spec.input_height_px)
        own = {key: value for key, value in data.items() if key not in ("members", "meta_model")}
        own.setdefault("crop", members[0].spec.crop.to_dict())
        spec = ModelSpec.from_dict(
            {
                **own,
                "architecture": "ensemble",
                "input_height_px": largest.spec.input_height_px,
                "input_width_px": largest.spec.input_width_px,
                # Members normalize for themselves; what reaches them are plain pixels in [0, 1].
                "mean": [0.0, 0.0, 0.0],
                "std": [1.0, 1.0, 1.0],
            },
            where=str(path),
        )
        return cls(spec, members, meta_model, path)

    def identity(self) -> str:
        """Return what the ensemble is, as canonical JSON: its members' hashes and specs, and how they are combined.

        Raises `CheckpointError` where a checkpoint is missing, unreadable or differs from what its spec says.
        """
        members = [
            {
                "checkpoint_sha256": _hash(member, f"members[{index}] ({member.spec.name!r})"),
                "input": member.input,
                "spec": {
                    key: value
                    for key, value in member.spec.to_dict().items()
                    if key not in (*SHARED_FIELDS, "checkpoint_sha256", "training_data", "caution", "trained")
                },
                "spectrum": member.spectrum.to_dict() if member.spectrum else None,
                "weight": float(member.weight),
            }
            for index, member in enumerate(self.members)
        ]
        meta_model = self.meta_model.to_dict() if self.meta_model else None
        return json.dumps({"members": members, "meta_model": meta_model}, sort_keys=True, indent=2) + "\n"


def _member(path: Path, index: int, data: object) -> Member:
    where = f"members[{index}]"
    if not isinstance(data, Mapping):
        raise refuse(where, data, f"a mapping with {', '.join(MEMBER_FIELDS)}, and fields of a model spec")
    own_fields = (item.name for item in fields(ModelSpec) if item.name not in (*SHARED_FIELDS, "name"))
    check_known(data, (*MEMBER_FIELDS, *own_fields), prefix=f"{where}.")
    if not isinstance(data.get("checkpoint"), str):
        raise refuse(f"{where}.checkpoint", data.get("checkpoint"), "the path of the member's weights")
    checkpoint = path.parent / data["checkpoint"]
    spectrum = _spectrum(where, data)
    spec = _member_spec(where, data, path.parent, checkpoint, has_spectrum=spectrum is not None)
    if spec.architecture_family == "ensemble":
        raise refuse(f"{where}.architecture", spec.architecture, "a single network; name its members here instead")
    try:
        return Member(spec, checkpoint, data.get("weight", 1.0), data.get("input", "pixels"), spectrum)
    except SpecError as exc:
        raise SpecError(f"{where}: {exc}") from None


def _member_spec(
    where: str, data: Mapping[str, Any], base: Path, checkpoint: Path, *, has_spectrum: bool
) -> ModelSpec:
    """Return a member's own contract: from its spec file, the one next to its checkpoint, or the fields here."""
    own = {key: value for key, value in data.items() if key not in MEMBER_FIELDS}
    spec_path = base / str(data["spec"]) if "spec" in data else spec_beside(checkpoint)
    if spec_path is not None and ("spec" in data or "architecture" not in own):
        if own:
            raise SpecError(f"field '{where}.{next(iter(own))}' is given, and so is a spec file; keep one of them")
        try:
            spec = ModelSpec.from_yaml(spec_path)
        except SpecError as exc:
            raise SpecError(f"field '{where}.spec': {exc}") from None
        return ModelSpec.from_dict({**spec.to_dict(), "name": data.get("name", spec.name)}, where=where)
    if has_spectrum and "mean" not in own and "std" not in own:
        # ImageNet's figures are those of pixels.
        own |= {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    return ModelSpec.from_dict({"name": data.get("name", checkpoint.stem), **own}, where=where)


def _spectrum(where: str, data: Mapping[str, Any]) -> Spectrum | None:
    if data.get("input") == "log_spectrum":
        return Spectrum.from_dict(data.get("spectrum", {}), where=f"field '{where}.spectrum'")
    if "spectrum" in data:
        raise refuse(f"{where}.spectrum", data["spectrum"], "nothing, unless 'input: log_spectrum' is set")
    return None


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


def _hash(member: Member, where: str) -> str:
    try:
        return sha256_of(member.checkpoint, member.spec.checkpoint_sha256)
    except CheckpointError as exc:
        raise CheckpointError(f"field '{where}': {exc}") from None
