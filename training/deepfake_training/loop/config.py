"""`TrainConfig`: everything that decides what a run computes, as a file says it and as a run keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.data.augment import Augmentation
from deepfake_training.data.dataset import Mixture
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.packing import FaceFolders, pack_faces

CONFIG: Final = "config.json"
"""Where a run keeps it."""
Schedule = Literal["cosine", "plateau", "step"]
_SPEC: Final = {"name": "deepfake_detector", "architecture": "timm:efficientnet_b0"}
"""What a spec must have, and a configuration need not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What is trained, on which faces and how; the keys of the file that `deepfake train` takes.

    Attributes:
        pack: file of packed faces; relative to the working directory, like all paths here. None takes `folders`.
        folders: where faces are looked for without a pack.
        spec: architecture, head, crop and normalization of the detector.
        initial_weights: file of weights to start from; None starts with random ones. See `load_initial`.
        epochs: number of passes.
        crops_per_epoch: crops in a pass; None takes every real face once, and as many fakes.
        batch_size: crops per forward pass.
        accumulate: forward passes per step of the optimizer.
        learning_rate: largest rate.
        weight_decay: of AdamW.
        schedule: ``cosine`` down to a hundredth, ``step`` down to a tenth after each third of the epochs, or
            ``plateau`` down to a half where the validation AUC stays.
        warmup_epochs: epochs over which the rate rises linearly; with ``cosine`` and ``step``.
        ema_decay: of the averaged weights, which are validated and published, in [0, 1); 0 averages nothing.
        label_smoothing: labels become this and 1 minus this, in [0, 0.5).
        pair_weight: weight of a second loss, which asks of each blended fake a larger logit than of the very picture
            it was made from; 0 leaves it out. What the two share cancels, and the seam is what remains.
        sam_radius: how far from the weights each step looks for a larger loss, which is then what it lowers
            (sharpness-aware minimization, Foret et al., ICLR 2021). Weights found this way often judge other data
            better. Twice the time per step; 0 leaves it out.
        drop_path: share of residual branches left out, in [0, 1); for networks of timm.
        freeze: names of modules that are not trained (``blocks.0``), batch statistics included.
        freeze_statistics: keep the mean and variance of every batch norm as they were loaded. Small batches then do
            no harm, and on a CPU batches of 8 are several times as fast per crop as batches of 32.
        validation_share: share of the faces that is held out, in (0, 1).
        validation_crops: at most so many crops are validated.
        patience: epochs without a better validation AUC after which training ends; 0 never ends early.
        seed: of everything random but the split.
        split_seed: of the split and of the crops that are validated. A run that starts from the weights of another
            must have the same one, or it trains on faces that the other held out.
        mixture: what the fakes are.
        augmentation: what happens to all crops.

    Raises:
        OptionError: a value is out of its range.
    """

    # An unknown key is a typing error, here and in the parts.
    __pydantic_config__ = ConfigDict(extra="forbid")

    pack: str | None = None
    folders: FaceFolders = field(default_factory=FaceFolders)
    spec: ModelSpec = field(default_factory=lambda: ModelSpec.from_dict(_SPEC))
    initial_weights: str | None = None
    epochs: int = 20
    crops_per_epoch: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 5e-4
    weight_decay: float = 0.02
    schedule: Schedule = "cosine"
    warmup_epochs: int = 1
    ema_decay: float = 0.995
    label_smoothing: float = 0.02
    pair_weight: float = 1.0
    sam_radius: float = 0.0
    drop_path: float = 0.1
    freeze: tuple[str, ...] = ()
    freeze_statistics: bool = False
    validation_share: float = 0.1
    validation_crops: int = 1000
    patience: int = 0
    seed: int = 0
    split_seed: int = 0
    mixture: Mixture = field(default_factory=Mixture)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        # A pair of real and fake is the least that a loss or a ranking can be computed of.
        self._check("crops_per_epoch", self.crops_per_epoch is None or self.crops_per_epoch >= 2, "at least 2")
        self._check("validation_crops", self.validation_crops >= 2, "at least 2")
        self._check("learning_rate", self.learning_rate > 0, "over 0")
        for name in ("weight_decay", "pair_weight", "sam_radius", "warmup_epochs", "patience", "seed", "split_seed"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("ema_decay", "drop_path"):
            self._check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._check("label_smoothing", 0 <= self.label_smoothing < 0.5, "at least 0 and below 0.5")
        self._check("validation_share", 0 < self.validation_share < 1, "between 0 and 1")
        self._check("schedule", self.schedule in get_args(Schedule), f"one of {', '.join(get_args(Schedule))}")

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise OptionError(f"'{name}' must be {allowed}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what JSON reads back is equal to it."""
        data: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return data

    @classmethod
    def from_file(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> TrainConfig:
        """Read a YAML or JSON file; keys that it lacks have their defaults.

        Args:
            path: the file.
            changes: values to take instead, by key; a dot leads into a part (``mixture.self_blend``).

        Raises:
            OptionError: the file cannot be read, or a key or value is wrong; the message names it.
        """
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            raise OptionError(f"{path}: the configuration cannot be read ({' '.join(str(exc).split())})") from exc
        data = {} if data is None else data
        if not isinstance(data, dict):
            raise OptionError(f"{path}: the configuration must be a mapping, got {type(data).__name__}")
        for key, value in (changes or {}).items():
            *parts, name = key.split(".")
            target = data
            for part in parts:
                target = target.setdefault(part, {})
                if not isinstance(target, dict):
                    raise OptionError(f"'{key}' cannot be set: '{part}' is {target!r} and has no parts")
            target[name] = value
        if isinstance(data.get("spec"), dict):
            data["spec"] = _SPEC | data["spec"]
        try:
            return _ADAPTER.validate_python(data)
        except ValidationError as exc:
            found = "; ".join(_as_text(error) for error in exc.errors())
            raise OptionError(f"{path}: {found}") from exc

    def load_faces(self, *, progress: Callable[[str, int, int], None] | None = None) -> PackedFaces:
        """Return the faces to learn from: those of the pack, or those that are found in the folders now.

        Args:
            progress: see `pack_faces`.

        Raises:
            OptionError: neither or both are named, or they hold no faces.
        """
        if (self.pack is None) == (not self.folders.real and not self.folders.fake):
            raise OptionError("name either a file of packed faces ('pack') or folders of them ('folders.real')")
        return PackedFaces.load(self.pack) if self.pack is not None else pack_faces(self.folders, progress=progress)

    @classmethod
    def of_run(cls, directory: str | Path) -> TrainConfig:
        """Read the configuration of a run.

        Raises:
            OptionError: there is none, or it is damaged.
        """
        try:
            return cls.from_file(Path(directory) / CONFIG)
        except OptionError as exc:
            raise OptionError(f"{directory} is not the directory of a run: {exc}") from exc


_ADAPTER: Final = TypeAdapter(TrainConfig)


def _as_text(error: Mapping[str, Any]) -> str:
    """Return one of pydantic's findings in our words."""
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "value_error":  # a part of ours refused it, with a message that names field and value
        return f"{where}: {error['ctx']['error']}".removeprefix(": ")
    if error["type"] == "unexpected_keyword_argument":
        return f"'{where}' is not a key of a configuration; see docs/training.md"
    return f"'{where}' is {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"
