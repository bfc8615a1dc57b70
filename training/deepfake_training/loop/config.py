"""`TrainConfig`: everything that decides what a run computes, as a file says it and as a run keeps it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import yaml

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.json_data import Bounds, JsonData
from deepfake_preprocess.support.text import reason_of
from deepfake_training.data.augment import Augmentation, Share
from deepfake_training.data.dataset import FaceDataset, Mixture
from deepfake_training.data.labels import REAL
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.packing import FaceFolders, pack_faces
from deepfake_training.data.selection import suitable
from deepfake_training.data.splits import split_by_group
from deepfake_training.data.taught import TaughtCrops, TaughtFolder

CONFIG: Final = "config.json"
"""Where a run keeps it."""
_SPEC: Final = {"name": "deepfake_detector", "architecture": "timm:efficientnet_b0"}
"""What a spec must have, and a configuration need not say."""

Count = Annotated[int, Bounds(ge=1)]
CropCount = Annotated[int, Bounds(ge=2)]
"""A pair of real and fake is the least that a loss or a ranking can be computed of."""
NotNegative = Annotated[float, Bounds(ge=0)]
Number = Annotated[int, Bounds(ge=0)]
ShareBelowOne = Annotated[float, Bounds(ge=0, lt=1)]


class _Yaml(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 and JSON do."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(JsonData):
    """What is trained, on which faces and how; the keys of the file that `deepfake train` takes.

    Attributes:
        pack: file of packed faces; relative to the working directory, like all paths here. None takes `folders`.
        folders: where faces are looked for without a pack.
        taught: folder of crops with a teacher's answers, which `deepfake teach` fills from the faces. The detector is
            then trained on these, and mirroring is all that happens to them.
        teacher_features: weight of the loss that asks of what reaches the last layer, linearly projected, to point
            where the teacher's points (cosine distance).
        teacher_logit: share of the loss that asks for the teacher's probability, in [0, 1]; the rest asks for the
            label. With 1, and `pair_weight` 0, labels are not looked at.
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
        alignment: weight of the mean squared distance between the features of crops of one class (what reaches the
            last layer, at length 1); 0 leaves it out.
        uniformity: weight of how unevenly the features of a batch lie on the sphere; 0 leaves it out. With both the
            features tell the classes apart and forget little else (Yermakov et al., arXiv 2508.06248: 0.1 and 0.5).
        sam_radius: how far from the weights each step looks for a larger loss, which is then what it lowers
            (sharpness-aware minimization, Foret et al., ICLR 2021). Weights found this way often judge other data
            better. Twice the time per step; 0 leaves it out.
        drop_path: share of residual branches left out, in [0, 1); for networks of timm.
        patch_drop: share of each crop's patches that is left out in training, in [0, 1); for vision transformers of
            timm. Half of them take half the time, and a mark of a fake has to be found in what is left (Liu et al.,
            PatchDropout, arXiv 2208.07220).
        trained: ``all`` weights, ``norms_and_head`` (scales and shifts of the norms, and the head), or ``head``: its
            last layer is fitted to all crops so far at the end of each epoch, by logistic regression, to whose summed
            losses `weight_decay` / 2 times the squared weights are added. Each crop passes through the network once.
            With `taught`, and `epochs` 1, it is fitted to what the teacher says, by ridge regression towards the
            weights it had.
            A large network that knows much already, such as CLIP, learns a new task by its norms alone and forgets
            nothing (Yermakov et al., arXiv 2508.06248).
        head_rate: the head's learning rate, times that of the rest.
        freeze: names of modules that are not trained (``blocks.0``), batch statistics included.
        freeze_statistics: keep the mean and variance of every batch norm as they were loaded. Small batches then do
            no harm, and on a CPU batches of 8 are several times as fast per crop as batches of 32.
        validation_share: share of the faces that is held out, in (0, 1).
        validation_crops: most crops that are validated.
        keep: ``best`` publishes the epoch with the best validation AUC; ``last`` the last one, whose weights are the
            better choice where few crops are validated and the schedule ends low.
        patience: epochs without a better validation AUC after which training ends; 0 never ends early.
        seed: of everything random but the split.
        split_seed: of the split and of the crops that are validated. A run that starts from the weights of another
            must have the same one, or it trains on faces that the other held out.
        mixture: what the fakes are.
        augmentation: what happens to all crops.

    Raises:
        OptionError: a value is out of its range.
    """

    pack: str | None = None
    folders: FaceFolders = field(default_factory=FaceFolders)
    taught: str | None = None
    teacher_features: NotNegative = 1.0
    teacher_logit: Share = 0.5
    spec: ModelSpec = field(default_factory=lambda: ModelSpec.from_dict(_SPEC))
    initial_weights: str | None = None
    epochs: Count = 20
    crops_per_epoch: CropCount | None = None
    batch_size: Count = 32
    accumulate: Count = 1
    learning_rate: Annotated[float, Bounds(gt=0)] = 5e-4
    weight_decay: NotNegative = 0.02
    schedule: Literal["cosine", "plateau", "step"] = "cosine"
    warmup_epochs: Number = 1
    ema_decay: ShareBelowOne = 0.995
    label_smoothing: Annotated[float, Bounds(ge=0, lt=0.5)] = 0.02
    pair_weight: NotNegative = 1.0
    alignment: NotNegative = 0.0
    uniformity: NotNegative = 0.0
    sam_radius: NotNegative = 0.0
    drop_path: ShareBelowOne = 0.1
    patch_drop: ShareBelowOne = 0.0
    trained: Literal["all", "norms_and_head", "head"] = "all"
    head_rate: Annotated[float, Bounds(gt=0)] = 1.0
    freeze: tuple[str, ...] = ()
    freeze_statistics: bool = False
    validation_share: Annotated[float, Bounds(gt=0, lt=1)] = 0.1
    validation_crops: CropCount = 1000
    keep: Literal["best", "last"] = "best"
    patience: Number = 0
    seed: Number = 0
    split_seed: Number = 0
    mixture: Mixture = field(default_factory=Mixture)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        self.check_fields()
        if self.keep == "last" and self.patience:
            raise OptionError("'keep: last' trains to the last epoch; set 'patience' to 0, or 'keep' to best")
        if self.trained == "head" and self.taught is not None and self.epochs > 1:
            raise OptionError("a last layer is fitted to taught crops in one pass; set 'epochs' to 1")

    @classmethod
    def from_file(cls, path: str | Path, changes: Iterable[str] = ()) -> TrainConfig:
        """Read a YAML or JSON file; keys that it lacks have their defaults.

        Args:
            path: the file.
            changes: values to take instead of the file's, as ``key=value``; a dot leads into a part, and the value is
                YAML (``mixture.made=1``).

        Raises:
            OptionError: the file or a change cannot be read, or a key or value is wrong; the message names it.
            SpecError: the same of `spec`.
        """
        try:
            data = yaml.load(Path(path).read_text(encoding="utf-8"), _Yaml) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
            raise OptionError(f"{path}: the configuration cannot be read ({reason_of(exc)})") from exc
        if isinstance(data, dict):
            for change in changes:
                _apply(change, data)
            if isinstance(data.get("spec"), dict):
                data["spec"] = _SPEC | data["spec"]
        return cls.from_dict(data, where=str(path))

    def load_faces(self, *, progress: Callable[[str, int, int], None] | None = None) -> PackedFaces | TaughtFolder:
        """Return what to learn from: taught crops, the faces of the pack, or those that are found in the folders now.

        Args:
            progress: see `pack_faces`.

        Raises:
            OptionError: neither or both are named, or they hold no faces.
        """
        if self.taught is not None:
            return TaughtFolder(Path(self.taught))
        if (self.pack is None) == (not self.folders.real and not self.folders.fake):
            raise OptionError("name either a file of packed faces ('pack') or folders of them ('folders.real')")
        return PackedFaces.load(self.pack) if self.pack is not None else pack_faces(self.folders, progress=progress)

    def split(
        self, faces: PackedFaces | TaughtFolder
    ) -> tuple[FaceDataset, FaceDataset] | tuple[TaughtCrops, TaughtCrops]:
        """Return what a run trains on and what it holds out, by group; the same for the same faces.

        Raises:
            OptionError: the faces cannot be split, or a part has no real face; or taught crops cannot be read.
        """
        if isinstance(faces, TaughtFolder):
            return faces.split(
                self.spec, flip=self.augmentation.flip, seed=self.seed, validation_crops=self.validation_crops
            )
        held_out = split_by_group(faces.groups, self.validation_share, seed=self.split_seed)
        suited = suitable(faces)
        train, validation = np.flatnonzero(~held_out & suited), np.flatnonzero(held_out & suited)
        for part, members in (("train on", train), ("validate with", validation)):
            if (faces.labels == REAL).any() and not (faces.labels[members] == REAL).any():
                raise OptionError(
                    f"{faces!r}: no real face is left to {part}, because whole groups are held out, and faces "
                    "that look aside or are cut off are left out; add real faces of other videos or people, or "
                    "change 'validation_share'"
                )
        dataset = partial(FaceDataset, faces, spec=self.spec, augmentation=self.augmentation)
        train_set = dataset(train, mixture=self.mixture, jitter=True, seed=self.seed)
        # A fixed choice of crops, degraded like those in training: their AUC is what early stopping looks at.
        validation = np.random.default_rng(self.split_seed).permutation(validation)
        balanced = replace(self.mixture, balance="sampler")
        validation_set = dataset(validation, mixture=balanced, jitter=False, seed=self.split_seed + 1)
        validation_set.draws = validation_set.draws[: self.validation_crops]
        return train_set, validation_set

    @classmethod
    def of_run(cls, directory: str | Path, changes: Iterable[str] = ()) -> TrainConfig:
        """Read the configuration of a run; with changes as in `from_file`.

        Raises:
            OptionError: there is none, or it is damaged.
        """
        try:
            return cls.from_file(Path(directory) / CONFIG, changes)
        except OptionError as exc:
            raise OptionError(f"{directory} is not the directory of a run: {exc}") from exc


def _apply(change: str, data: dict[str, Any]) -> None:
    """Change plain data in place."""
    key, separator, text = change.partition("=")
    *parts, name = key.split(".")
    for part in parts:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise OptionError(f"{change!r} cannot be set: {part!r} is {data!r} and has no parts")
    try:
        data[name] = yaml.load(text, _Yaml)
    except yaml.YAMLError:
        separator = ""
    if not separator:
        raise OptionError(f"{change!r} cannot be set; write key=value, such as mixture.made=1")
