"""`TrainConfig`: everything that decides what a run computes. A resumed run must have the same."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepfake_preprocess.errors import OptionError
from deepfake_training.data.augment import Augmentation

CONFIG = "config.json"
"""Where a run keeps it."""
Schedule = Literal["cosine", "plateau", "step"]
SCHEDULES: tuple[Schedule, ...] = ("cosine", "plateau", "step")
Balance = Literal["sampler", "loss", "none"]
BALANCES: tuple[Balance, ...] = ("sampler", "loss", "none")


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the fakes of an epoch are.

    Attributes:
        self_blend: share of the fakes that is blended from real faces, in [0, 1]; the others are drawn from the fakes
            of the set. 1 where the set has none.
        swap: share of the blended ones for which another real face is blended in, in [0, 1].
        balance: ``sampler`` draws a fake for each real face; ``loss`` and ``none`` take each face of the set once,
            and one blended fake for each real face when `self_blend` is over 0; see `FaceDataset.positive_weight`.
    """

    self_blend: float = 0.9
    swap: float = 0.25
    balance: Balance = "sampler"

    def __post_init__(self) -> None:
        for name in ("self_blend", "swap"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"the share of {name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.balance not in BALANCES:
            raise OptionError(f"balance must be one of {', '.join(BALANCES)}, got {self.balance!r}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a network is trained.

    Attributes:
        epochs: number of passes.
        crops_per_epoch: crops in a pass; None takes every real face once.
        batch_size: crops per forward pass.
        accumulate: forward passes per step of the optimiser.
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
            (sharpness-aware minimization, Foret et al., ICLR 2021). Weights found so often judge other data better.
            Twice the time per step; 0 leaves it out.
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
    """

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
        for name in ("epochs", "batch_size", "accumulate", "validation_crops"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("crops_per_epoch", self.crops_per_epoch is None or self.crops_per_epoch >= 2, "at least 2")
        self._check("learning_rate", self.learning_rate > 0, "over 0")
        for name in ("weight_decay", "pair_weight", "sam_radius", "warmup_epochs", "patience", "seed", "split_seed"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("ema_decay", "drop_path"):
            self._check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._check("label_smoothing", 0 <= self.label_smoothing < 0.5, "at least 0 and below 0.5")
        self._check("validation_share", 0 < self.validation_share < 1, "between 0 and 1")
        self._check("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise OptionError(f"{name.replace('_', ' ')} must be {allowed}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what JSON reads back is equal to it."""
        data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainConfig:
        """Read back what `to_dict` returned; other keys are ignored.

        Raises:
            KeyError: a value is missing that every version wrote.
            OptionError: a value is out of range.
        """
        data = {"sam_radius": 0.0, **data}  # not in runs from before there was one
        values = {item.name: data[item.name] for item in dataclasses.fields(cls)}
        values["freeze"] = tuple(values["freeze"])
        values["mixture"] = Mixture(**values["mixture"])
        values["augmentation"] = Augmentation(**values["augmentation"])
        return cls(**values)

    @classmethod
    def of_run(cls, directory: str | Path) -> TrainConfig:
        """Read the configuration of a run.

        Raises:
            OptionError: there is none, or it is damaged.
        """
        try:
            return cls.from_dict(json.loads((Path(directory) / CONFIG).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise OptionError(f"{directory} holds no readable {CONFIG} ({exc}); name the directory of a run") from exc
