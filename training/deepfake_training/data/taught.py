"""`TaughtCrops`: crops with what a large detector says of them, for a small one to learn from.

The large one, the teacher, sees each crop once (`deepfake teach`); a small one then learns from them for as many
epochs as it takes. The folders ``train`` and ``held_out`` hold them in files of some hundred crops, in pairs of a
real one and the fake that was made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import cv2
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.text import reason_of

PARTS: Final = ("train", "held_out")
KEYS: Final = ("crops", "labels", "tokens", "logits")
"""uint8 ``[N, H, W, 3]`` RGB, float32 ``[N, 1]``, float16 ``[N, F]``: what reached the teacher's last layer, and
float32 ``[N, 1]``."""

TaughtItem: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class TaughtFolder:
    """What `deepfake teach` wrote: the folder that holds `PARTS`."""

    path: Path

    def split(
        self, spec: ModelSpec, *, flip: float, seed: int, validation_crops: int
    ) -> tuple[TaughtCrops, TaughtCrops]:
        """Return what a run trains on and what it holds out; both were taught apart, by group.

        Raises:
            OptionError: there is neither, a file is damaged, or the crops are smaller than those of the spec.
        """
        train, held_out = (self.path / part for part in PARTS)
        validation = TaughtCrops(held_out, spec, flip=0, seed=seed)
        validation.draws = validation.draws[:validation_crops]
        return TaughtCrops(train, spec, flip=flip, seed=seed), validation


class TaughtCrops(Dataset[TaughtItem]):
    """Crops in the order of one epoch; `set_epoch` shuffles pairs. Stands in for `FaceDataset`.

    An item is a uint8 ``[H, W, 3]`` RGB crop, its label ``[1]``, the teacher's features ``[F]`` and logit ``[1]``. A
    crop is shrunk to the size of the spec.

    Args:
        folder: of the files.
        spec: of the detector that learns.
        flip: share of the crops that is mirrored, in [0, 1].
        seed: of the run.

    Raises:
        OptionError: there are no files, one is damaged, or the crops are smaller than those of the spec.
    """

    positive_weight = 1.0

    def __init__(self, folder: Path, spec: ModelSpec, *, flip: float, seed: int) -> None:
        self._flip, self._seed, self._epoch = flip, seed, 0
        self._files = sorted(folder.glob("*.safetensors"))
        if not self._files:
            raise OptionError(f"{folder} holds no crops; fill it with `deepfake teach`")
        self._size_wh = spec.input_size_wh
        self._places: list[tuple[int, int]] = []
        for number, path in enumerate(self._files):
            try:
                with safe_open(path, framework="pt") as file:
                    count, height, width, _ = file.get_slice("crops").get_shape()
                    self.width = int(file.get_slice("tokens").get_shape()[1])
            except (SafetensorError, OSError) as exc:
                raise OptionError(
                    f"{path} holds no crops with a teacher's answers ({reason_of(exc)}); delete it"
                ) from exc
            if width < self._size_wh[0] or height < self._size_wh[1]:
                raise OptionError(
                    f"{path} holds crops of {width} x {height} px, which the spec's {spec.input_width_px} x "
                    f"{spec.input_height_px} exceed; take a smaller input"
                )
            self._places += [(number, row) for row in range(count)]
        self.draws = self._places

    def set_epoch(self, epoch: int) -> None:
        """Put the pairs into the random order of an epoch."""
        self._epoch = epoch
        pairs = [self._places[start : start + 2] for start in range(0, len(self._places), 2)]
        order = np.random.default_rng([self._seed, epoch]).permutation(len(pairs))
        self.draws = [place for number in order.tolist() for place in pairs[number]]

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, place: int) -> TaughtItem:
        number, row = self.draws[place]
        with safe_open(self._files[number], framework="pt") as file:
            crop, *others = (torch.as_tensor(file.get_slice(key)[row]) for key in KEYS)
        if np.random.default_rng([self._seed, self._epoch, place]).random() < self._flip:
            crop = crop.flip(1)
        label, token, logit = (value.float().reshape(-1) for value in others)
        small = cv2.resize(crop.numpy(), self._size_wh, interpolation=cv2.INTER_AREA)
        return torch.from_numpy(small), label, token, logit

    def source(self, place: int) -> str:
        """Return the file and the pair that the crop at `place` comes from."""
        number, row = self.draws[place]
        return f"{self._files[number].name}/{row // 2}"

    def kind(self, place: int) -> str:
        """Return that the crop was taught, which is all that is known."""
        return "taught"
