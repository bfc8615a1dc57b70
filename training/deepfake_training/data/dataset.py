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
from deepfake_training.data.fakes.appearance import FACES, AppearanceModel
from deepfake_training.data.fakes.mesh import Portrait, misfit
from deepfake_training.data.fakes.recipes import Kind, Tools, color_distance, make_fake
from deepfake_training.data.fakes.shape import ShapeModel
from deepfake_training.data.fakes.upsampler import Upsampler
from deepfake_training.data.labels import FAKE, REAL
from deepfake_training.data.packed_faces import PackedFaces

DONORS = 40
"""Other faces that are looked at for one that fits, where another person's face is blended in."""
FITTING = 5
"""As many of those fit best; of these the one is taken whose skin is most alike."""
MAX_MISFIT = 0.12
JITTER = 0.05
"""Largest shift and change of size of the crop, as a share of the box: what detectors disagree about."""
CLOSEST = 0.75
"""Stills are often crops already. Where one ends before the margin, the face is cut closer, down to this share."""
EDGE = 0.25
"""What is added by reflection around each picture, as a share of its longer side, for what is missing even then:
crops have no black rim, since in service a face has its surroundings."""


@dataclass(frozen=True, slots=True)
class Mixture(JsonData):
    """What the fakes of an epoch are.

    Attributes:
        made: share of the fakes that is made of real faces, in [0, 1]; the others are drawn from the fakes of the
            set. 1 where the set has none.
        swap: share of the made ones that are another person's face, in [0, 1].
        mouth: share with another mouth.
        remade: share with the whole face made anew.
        animated: share that is a still moved to another expression and pose, as networks animate a picture. What is
            left of 1 is blended with itself.
        drawn: share of all but the last that is drawn by an `AppearanceModel` of the real faces, in [0, 1]: as an
            autoencoder shows them.
        upsampler: file of weights of an `Upsampler`, which then enlarges half of what is remade from little, as
            enhancers of swaps and talking heads do.
        distant: share of the faces that are small and compressed at that size, as people at a distance and in video
            calls are, in [0, 1]; a real face and the fake that is made of it are alike in this, too.
        distant_real: share of those real faces of which no fake is made, in [0, 1]; with ``sampler`` another real
            face takes its place. A network often cannot tell what a small face is; with 0.6 four of five are real,
            so it then says real.
        balance: ``sampler`` draws a fake for each real face; ``loss`` and ``none`` take each face of the set once,
            and one made fake for each real face when `made` is over 0; see `FaceDataset.positive_weight`.
    """

    made: Share = 0.9
    swap: Share = 0.5
    mouth: Share = 0.12
    remade: Share = 0.13
    animated: Share = 0.0
    drawn: Share = 0.0
    upsampler: str | None = None
    distant: Share = 0.0
    distant_real: Share = 0.0
    balance: Literal["sampler", "loss", "none"] = "sampler"

    def __post_init__(self) -> None:
        self.check_fields()
        if self.swap + self.mouth + self.remade + self.animated > 1:
            raise OptionError(
                f"'swap', 'mouth', 'remade' and 'animated' are shares of the made fakes and add up to "
                f"{self.swap + self.mouth + self.remade + self.animated:g}; lower them to 1 at most"
            )

    def kind(self, rng: np.random.Generator) -> Kind:
        """Draw the kind of a made fake."""
        drawn = rng.random()
        shares: dict[Kind, float] = {
            "swap": self.swap,
            "mouth": self.mouth,
            "remade": self.remade,
            "animated": self.animated,
        }
        for kind, share in shares.items():
            if drawn < share:
                return kind
            drawn -= share
        return "self"


@dataclass(frozen=True, slots=True)
class Draw:
    """One crop of an epoch: which face, whether a fake is made of it, its random numbers, and whether it is small.

    A real face and the fake that is made of it have the same `seed`: they are degraded and cropped alike.
    """

    face: int
    made: bool
    seed: tuple[int, ...]
    distant: bool = False


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
        if not len(self._fake) and not mixture.made:
            raise OptionError(
                f"{faces!r}: there is no fake; name folders of them, or allow self-blending ('mixture.made')"
            )
        self._appearance = self._shape = None
        some = np.random.default_rng(seed).permutation(self._real)[:FACES].tolist()
        if mixture.made and mixture.drawn and len(some) > 1:
            self._appearance = AppearanceModel(self._portrait(index) for index in some)
        if mixture.made and mixture.animated and len(some) > 1:
            self._shape = ShapeModel(faces.mesh(index) for index in some)
        self._upsampler = Upsampler.load(mixture.upsampler) if mixture.upsampler is not None else None
        self.draws: list[Draw] = []
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops of an epoch, in random order; pairs of real and fake stay neighbors."""
        rng, mixture = np.random.default_rng([self._seed, epoch]), self._mixture
        made_share = mixture.made if len(self._fake) else 1.0
        pairs: list[list[Draw]] = []
        seeds = ((self._seed, epoch, number) for number in itertools.count(1))
        if mixture.balance == "sampler":
            for index in rng.permutation(self._real).tolist():
                shared, distant = next(seeds), rng.random() < mixture.distant
                real = Draw(index, False, shared, distant)
                if distant and rng.random() < mixture.distant_real:
                    other = Draw(int(rng.choice(self._real)), False, next(seeds), distant)
                elif rng.random() < made_share:
                    other = Draw(index, True, shared, distant)
                else:
                    other = Draw(int(rng.choice(self._fake)), False, next(seeds), distant)
                pairs.append([real, other])
        else:
            for index in self._real.tolist():
                shared, distant = next(seeds), rng.random() < mixture.distant
                is_pair = made_share and not (distant and rng.random() < mixture.distant_real)
                blended = [Draw(index, True, shared, distant)] if is_pair else []
                pairs.append([Draw(index, False, shared, distant), *blended])
            pairs += [
                [Draw(index, False, next(seeds), rng.random() < mixture.distant)] for index in self._fake.tolist()
            ]
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
        picture, mesh = real = self._portrait(draw.face)
        if draw.made:
            picture = self._make(draw.face, real, np.random.default_rng([*draw.seed, 1]))
        # The same numbers for both of a pair.
        rng = np.random.default_rng([*draw.seed, 0])
        picture = self._augmentation.apply(picture, mesh, rng, distant=draw.distant)
        crop = self._crop(picture, self._faces.face(draw.face), rng)
        return torch.from_numpy(crop), torch.tensor([float(self._label(draw))])

    def source(self, place: int) -> str:
        """Return the file that the crop at `place` comes from."""
        return self._faces.sources[self.draws[place].face]

    def kind(self, place: int) -> str:
        """Return ``made`` for a made fake, else the folder of training data that the crop is from."""
        return "made" if self.draws[place].made else self.source(place).partition("/")[0]

    def _portrait(self, index: int) -> Portrait:
        return Portrait(self._faces.picture_rgb(index), self._faces.mesh(index))

    def _label(self, draw: Draw) -> int:
        return FAKE if draw.made else int(self._faces.labels[draw.face])

    def _closer(self, face: Face, size_wh: tuple[int, int]) -> Face:
        """Return the face with a box so much smaller that its cut ends where the picture does."""
        center = (face.box_xyxy[:2] + face.box_xyxy[2:]) / 2
        room = float(min(center.min(), (size_wh - center).min()))
        wanted = max(face.width_px, face.height_px) * (0.5 + self._spec.crop.margin)
        half = (face.box_xyxy[2:] - face.box_xyxy[:2]) / 2 * min(1.0, max(CLOSEST, room / wanted))
        return dataclasses.replace(face, box_xyxy=np.concatenate([center - half, center + half]).astype(np.float32))

    def _make(self, index: int, real: Portrait, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Make a fake of a kind that is drawn; a swap without a fitting donor becomes a self-blend."""
        kind = self._mixture.kind(rng)
        donor = self._donor(index, real, rng) if kind in ("swap", "mouth") else None
        appearance = self._appearance if rng.random() < self._mixture.drawn else None
        kind = "self" if kind == "swap" and donor is None else kind
        kind = "self" if kind == "animated" and self._shape is None else kind
        return make_fake(kind, real, rng, donor=donor, tools=Tools(appearance, self._upsampler, self._shape))

    def _donor(self, index: int, real: Portrait, rng: np.random.Generator) -> Portrait | None:
        """Draw another person's face, among those that fit best."""
        candidates = [
            each
            for each in rng.choice(self._real, DONORS).tolist()
            if self._faces.groups[each] != self._faces.groups[index]
        ]
        misfits = np.array([misfit(self._faces.mesh(each), real.mesh) for each in candidates])
        fitting = [candidates[place] for place in np.argsort(misfits)[:FITTING] if misfits[place] <= MAX_MISFIT]
        portraits = [self._portrait(each) for each in fitting]
        return min(portraits, key=lambda each: color_distance(each, real), default=None)

    def _crop(self, picture: NDArray[np.uint8], face: Face, rng: np.random.Generator) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        edge = round(EDGE * max(height, width))
        padded = cv2.copyMakeBorder(picture, edge, edge, edge, edge, cv2.BORDER_REFLECT_101)
        if self._jitter:
            size = max(face.width_px, face.height_px)
            center = (face.box_xyxy[:2] + face.box_xyxy[2:]) / 2 + rng.uniform(-JITTER, JITTER, 2) * size
            half = (face.box_xyxy[2:] - face.box_xyxy[:2]) / 2 * rng.uniform(1 - JITTER, 1 + JITTER)
            box = np.concatenate([center - half, center + half]).astype(np.float32)
            face = dataclasses.replace(face, box_xyxy=box)
        face = self._closer(face, (width, height)).shifted(edge, edge)
        crop = crop_face(ArrayFrame.from_rgb(np.asarray(padded, dtype=np.uint8)), face, self._spec)
        if rng.random() < self._augmentation.flip:
            crop = np.ascontiguousarray(crop[:, ::-1])
        return crop
