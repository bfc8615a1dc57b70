"""`FaceDataset`: the crops of one epoch, each made from its own random numbers.

Every draw has a seed of its own, which follows from the run's seed, the epoch and the draw's place. So the pictures
do not depend on the number of loading processes, and a run that is resumed sees what the first one would have seen.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.frame import ArrayFrame
from deepfake_preprocess.support.json_data import JsonData
from deepfake_training.data.augment import Augmentation, Share
from deepfake_training.data.labels import FAKE, REAL
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.selfblend import misfit, self_blend, swap_source

DONORS = 12
"""Other faces that are looked at for one that fits, where another person's face is blended in."""
MAX_MISFIT = 0.08
JITTER = 0.05
"""Largest shift and change of size of the crop, as a share of the box: what detectors disagree about."""
EDGE = 0.25
"""What is added by reflection around each picture, as a share of its longer side: crops then have no black rim."""


@dataclass(frozen=True, slots=True)
class Mixture(JsonData):
    """What the fakes of an epoch are.

    Attributes:
        self_blend: share of the fakes that is blended from real faces, in [0, 1]; the others are drawn from the fakes
            of the set. 1 where the set has none.
        swap: share of the blended ones for which another real face is blended in, in [0, 1].
        balance: ``sampler`` draws a fake for each real face; ``loss`` and ``none`` take each face of the set once,
            and one blended fake for each real face when `self_blend` is over 0; see `FaceDataset.positive_weight`.
    """

    self_blend: Share = 0.9
    swap: Share = 0.25
    balance: Literal["sampler", "loss", "none"] = "sampler"

    def __post_init__(self) -> None:
        self.check_fields()


@dataclass(frozen=True, slots=True)
class Draw:
    """One crop of an epoch: which face, whether it is blended, and its random numbers.

    A real face and the fake that is made of it have the same `seed`: they are degraded and cropped alike.
    """

    face: int
    blended: bool
    seed: tuple[int, ...]


class FaceDataset(Dataset[tuple[Tensor, Tensor]]):
    """Crops of one epoch; `set_epoch` draws the next one.

    An item is a uint8 ``[H, W, 3]`` RGB crop, as the wire contract has it, and its label, float32 ``[1]``.

    Args:
        faces: all faces.
        members: indices of the faces to draw from.
        spec: crop size, margin and alignment.
        mixture: what the fakes are.
        augmentation: what happens to real and fake alike.
        jitter: whether the crop is moved a little; off for validation.
        seed: of the run.

    Raises:
        OptionError: there is no real face, or there are fakes of neither kind.
    """

    def __init__(
        self,
        faces: PackedFaces,
        members: NDArray[np.int64],
        *,
        spec: ModelSpec,
        mixture: Mixture,
        augmentation: Augmentation,
        jitter: bool,
        seed: int,
    ) -> None:
        self._faces, self._spec, self._jitter, self._seed = faces, spec, jitter, seed
        self._mixture, self._augmentation = mixture, augmentation
        self._real = members[faces.labels[members] == REAL]
        self._fake = members[faces.labels[members] == FAKE]
        if not len(self._real):
            raise OptionError(f"{faces!r}: there is no real face to learn from; name folders of them")
        if not len(self._fake) and not mixture.self_blend:
            raise OptionError(
                f"{faces!r}: there is no fake; name folders of them, or allow self-blending ('mixture.self_blend')"
            )
        self.draws: list[Draw] = []
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops of an epoch, in random order; pairs of real and fake stay neighbors."""
        rng = np.random.default_rng([self._seed, epoch])
        blend_share = self._mixture.self_blend if len(self._fake) else 1.0
        pairs: list[list[Draw]] = []
        seeds = ((self._seed, epoch, number) for number in itertools.count(1))
        if self._mixture.balance == "sampler":
            for index in rng.permutation(self._real).tolist():
                shared = next(seeds)
                real = Draw(index, False, shared)
                if rng.random() < blend_share:
                    pairs.append([real, Draw(index, True, shared)])
                else:
                    pairs.append([real, Draw(int(rng.choice(self._fake)), False, next(seeds))])
        else:
            for index in self._real.tolist():
                shared = next(seeds)
                blended = [Draw(index, True, shared)] if blend_share else []
                pairs.append([Draw(index, False, shared), *blended])
            pairs += [[Draw(index, False, next(seeds))] for index in self._fake.tolist()]
            pairs = [pairs[place] for place in rng.permutation(len(pairs)).tolist()]
        self.draws = [draw for pair in pairs for draw in pair]

    @property
    def positive_weight(self) -> float:
        """Weight of a fake in the loss: real over fake for ``balance: loss``, else 1."""
        if self._mixture.balance != "loss":
            return 1.0
        fakes = sum(self._label(draw) == FAKE for draw in self.draws)
        return (len(self.draws) - fakes) / fakes

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        draw = self.draws[place]
        picture, face = self._picture(draw.face)
        if draw.blended:
            picture = self._blend(draw, picture, face, np.random.default_rng([*draw.seed, 1]))
        # The same numbers for both of a pair.
        rng = np.random.default_rng([*draw.seed, 0])
        picture = self._augmentation.apply(picture, rng)
        crop = self._crop(picture, face, rng)
        return torch.from_numpy(crop), torch.tensor([float(self._label(draw))])

    def source(self, place: int) -> str:
        """Return the file that the crop at `place` comes from."""
        return self._faces.sources[self.draws[place].face]

    def _label(self, draw: Draw) -> int:
        return FAKE if draw.blended else int(self._faces.labels[draw.face])

    def _picture(self, index: int) -> tuple[NDArray[np.uint8], Face]:
        return self._faces.picture_rgb(index), self._faces.face(index)

    def _blend(
        self, draw: Draw, picture: NDArray[np.uint8], face: Face, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        source = None
        if rng.random() < self._mixture.swap:
            candidates = rng.choice(self._real, DONORS).tolist()
            misfits = [misfit(face, self._faces.face(candidate)) for candidate in candidates]
            best = int(np.argmin(misfits))
            if misfits[best] < MAX_MISFIT:
                source = swap_source(picture, face, *self._picture(candidates[best]))
        return self_blend(picture, face, rng, source=source)

    def _crop(self, picture: NDArray[np.uint8], face: Face, rng: np.random.Generator) -> NDArray[np.uint8]:
        edge = round(EDGE * max(picture.shape[:2]))
        padded = cv2.copyMakeBorder(picture, edge, edge, edge, edge, cv2.BORDER_REFLECT_101)
        face = face.shifted(edge, edge)
        if self._jitter:
            size = max(face.width_px, face.height_px)
            center = (face.box_xyxy[:2] + face.box_xyxy[2:]) / 2 + rng.uniform(-JITTER, JITTER, 2) * size
            half = (face.box_xyxy[2:] - face.box_xyxy[:2]) / 2 * rng.uniform(1 - JITTER, 1 + JITTER)
            box = np.concatenate([center - half, center + half]).astype(np.float32)
            face = dataclasses.replace(face, box_xyxy=box)
        crop = crop_face(ArrayFrame.from_rgb(np.asarray(padded, dtype=np.uint8)), face, self._spec)
        if rng.random() < self._augmentation.flip:
            crop = np.ascontiguousarray(crop[:, ::-1])
        return crop
