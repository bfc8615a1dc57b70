"""The kinds of fakes, each made of one real picture, and for a swap of another person's.

- ``self``: two versions of one face that differ a little, blended (Shiohara and Yamasaki, CVPR 2022). What remains to
  be learned is what all swaps share: the seam, and what does not match between inside and outside.
- ``swap``: another person's face, moved onto this one triangle by triangle, with matched colors and mostly less
  detail, in the outline of the face, of its inner part, or in the square that one-shot swaps paste back.
- ``mouth``: another mouth, or this one with another shape, made anew, as lip synchronization does.
- ``remade``: the whole face made anew from little and bent a little, as talking heads and reenactment do.
- ``animated``: a still, at times a painted one, moved to another expression and pose and made anew, all of it or what
  is pasted back, as networks do that animate a picture.

With an `AppearanceModel` the new inside of all but the first is drawn by it, as a small autoencoder would; with an
`Upsampler` some of what is remade from little is enlarged by it, as enhancers of swaps do.

Everything is drawn from the generator that is handed in: the same generator, the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np

from deepfake_training.data.fakes.appearance import FEWEST, AppearanceModel
from deepfake_training.data.fakes.blend import (
    RATIOS,
    blend,
    displace,
    mix,
    random_mask,
    smooth_field,
    soften,
    square_mask,
)
from deepfake_training.data.fakes.look import change_look, match_colors, paint, remake
from deepfake_training.data.fakes.mesh import Mesh, Picture, Portrait, Region, draw_region, warp
from deepfake_training.data.fakes.shape import ShapeModel, animate
from deepfake_training.data.fakes.upsampler import Upsampler

Kind = Literal["self", "swap", "mouth", "remade", "animated"]
KINDS: Final[tuple[Kind, ...]] = ("self", "swap", "mouth", "remade", "animated")
_SELF_REGIONS: Final[dict[Region, float]] = {"whole": 0.55, "inner": 0.25, "lower": 0.2}
_SWAP_REGIONS: Final[dict[Region, float]] = {"whole": 0.6, "inner": 0.4}
_MOUTH_REGIONS: Final[dict[Region, float]] = {"lower": 0.5, "mouth": 0.5}


@dataclass(frozen=True, slots=True)
class Tools:
    """What generators of fakes draw with; without, what is new is moved from pictures, and enlarged by interpolation.

    Attributes:
        appearance: draws what is new of a swap, a mouth or a remade face.
        upsampler: enlarges what is remade from little.
        shape: draws other expressions; ``animated`` needs it.
    """

    appearance: AppearanceModel | None = None
    upsampler: Upsampler | None = None
    shape: ShapeModel | None = None


def color_distance(face: Portrait, other: Portrait) -> float:
    """Return how far apart the mean colors of two faces are, in CIELAB of 8 bits per channel."""
    means = []
    for picture, mesh in (face, other):
        inside = draw_region(mesh, "inner", picture.shape[:2]) > 0
        lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
        means.append(lab[inside].mean(axis=0) if inside.any() else lab.mean(axis=(0, 1)))
    return float(np.linalg.norm(means[0] - means[1]))


def make_fake(
    kind: Kind,
    real: Portrait,
    rng: np.random.Generator,
    *,
    donor: Portrait | None = None,
    tools: Tools = Tools(),
) -> Picture:
    """Return a fake of a real picture, of the same size and with the same surroundings.

    Args:
        kind: what is done.
        real: what the fake is made of.
        rng: where all random numbers come from.
        donor: another person in a similar pose; ``swap`` needs one, ``mouth`` may take one.
        tools: what it is made with.

    Raises:
        ValueError: a swap without a donor, or an animated still without a shape model.
    """
    if kind == "self":
        return _self_blend(real, rng)
    if kind == "swap":
        if donor is None:
            raise ValueError("a swap needs another person's face; hand one in as `donor`")
        return _swap(real, donor, rng, tools)
    if kind == "mouth":
        return _new_mouth(real, donor, rng, tools)
    if kind == "animated":
        if tools.shape is None:
            raise ValueError("a still is animated by other expressions; hand a shape model in with `tools`")
        return _animated(real, tools.shape, rng, tools)
    return _remade(real, rng, tools)


def _self_blend(real: Portrait, rng: np.random.Generator) -> Picture:
    target = inner = real.picture
    if rng.random() < 0.5:
        inner = change_look(inner, rng)
    else:
        target = change_look(target, rng)
    size_hw = target.shape[:2]
    mask = random_mask(real.mesh, _drawn(_SELF_REGIONS, rng), size_hw, rng)
    inner = _moved(inner, real, rng)
    ratio = np.float32(rng.choice(RATIOS))
    if ratio < 1:
        return mix(target, inner, soften(mask, real.face_px, rng) * ratio)
    return blend(target, inner, mask, real.face_px, rng)


def _swap(real: Portrait, donor: Portrait, rng: np.random.Generator, tools: Tools) -> Picture:
    size_hw = real.picture.shape[:2]
    onto = real.mesh
    if rng.random() < 0.6:  # between the shapes of both: a swap keeps more or less of the donor's
        matrix, _ = cv2.estimateAffinePartial2D(donor.mesh, real.mesh)
        if matrix is not None:
            theirs = donor.mesh @ matrix[:, :2].T.astype(np.float32) + matrix[:, 2].astype(np.float32)
            onto = real.mesh + np.float32(rng.uniform(0, 1)) * (theirs - real.mesh)
    if rng.random() < 0.4:
        onto = _misplaced(onto, real.face_px, rng)
    if tools.appearance is None:
        inner, _ = warp(donor.picture, donor.mesh, onto, size_hw)
    else:  # a network that is asked for one person often gives a mixture of both
        towards = real if rng.random() < 0.3 else None
        inner = tools.appearance.redraw(donor, onto, size_hw, _detail(tools.appearance, rng), towards=towards)
    inner = match_colors(inner, real.picture, draw_region(real.mesh, "inner", size_hw), rng)
    if rng.random() < (0.75 if tools.appearance is None else 0.4):
        inner = remake(inner, real.face_px, rng, tools.upsampler)
    if rng.random() < 0.3:
        inner = change_look(inner, rng)
    if rng.random() < 0.25:
        mask = square_mask(real.mesh, size_hw, rng)
        mask *= draw_region(onto, "whole", size_hw) if rng.random() < 0.7 else 1
    else:
        # In the outline of either face: where they differ, brows are double and cheeks cut off.
        outline = onto if rng.random() < 0.5 else real.mesh
        mask = random_mask(outline, _drawn(_SWAP_REGIONS, rng), size_hw, rng)
    if rng.random() < 0.15:  # half transparent
        return mix(real.picture, inner, soften(mask, real.face_px, rng) * np.float32(rng.uniform(0.6, 0.9)))
    return blend(real.picture, inner, mask, real.face_px, rng)


def _detail(appearance: AppearanceModel, rng: np.random.Generator) -> int:
    """Draw how many components a face is made of, few as often as many."""
    return round(float(np.exp(rng.uniform(np.log(FEWEST), np.log(max(FEWEST, len(appearance)))))))


def _misplaced(mesh: Mesh, face_px: float, rng: np.random.Generator) -> Mesh:
    """Shift and scale a face a little, as swaps lie that know only where five landmarks are, or where they were."""
    center = mesh.mean(axis=0)
    scale, shift = rng.uniform(0.94, 1.06, 2), rng.normal(0, 0.025, 2) * face_px
    return np.asarray(center + (mesh - center) * scale + shift, dtype=np.float32)


def _new_mouth(real: Portrait, donor: Portrait | None, rng: np.random.Generator, tools: Tools) -> Picture:
    size_hw = real.picture.shape[:2]
    if donor is not None and rng.random() < 0.5:
        source, onto = donor, real.mesh
    else:
        # The lips are moved apart, together or sideways, and the skin around them follows.
        mouth = real.mesh[[61, 291, 13, 14]].mean(axis=0)
        distance = np.linalg.norm(real.mesh - mouth, axis=1, keepdims=True) / real.face_px
        near = np.exp(-((distance / 0.18) ** 2))
        scale = np.array([rng.uniform(-0.2, 0.2), rng.uniform(-0.5, 0.6)], dtype=np.float32)
        shift = rng.normal(0, 0.015, 2).astype(np.float32) * np.float32(real.face_px)
        source, onto = real, np.asarray(real.mesh + near * ((real.mesh - mouth) * scale + shift), dtype=np.float32)
    if tools.appearance is None:
        inner, _ = warp(source.picture, source.mesh, onto, size_hw)
    else:
        inner = tools.appearance.redraw(source, onto, size_hw, _detail(tools.appearance, rng))
    if source is donor:
        inner = match_colors(inner, real.picture, draw_region(real.mesh, "lower", size_hw), rng)
    if tools.appearance is None or rng.random() < 0.4:
        inner = remake(inner, real.face_px, rng, tools.upsampler)
    mask = random_mask(real.mesh, _drawn(_MOUTH_REGIONS, rng), size_hw, rng)
    return blend(real.picture, inner, mask, real.face_px, rng)


def _remade(real: Portrait, rng: np.random.Generator, tools: Tools) -> Picture:
    picture = real.picture
    if tools.appearance is not None:
        picture = tools.appearance.redraw(real, real.mesh, picture.shape[:2], _detail(tools.appearance, rng))
    inner = _moved(picture, real, rng, strength=rng.uniform(0.5, 2))
    if tools.appearance is None or rng.random() < 0.4:
        inner = remake(inner, real.face_px, rng, tools.upsampler)
    if rng.random() < 0.5:
        inner = change_look(inner, rng)
    size_hw = real.picture.shape[:2]
    square = rng.random() < 0.5
    mask = square_mask(real.mesh, size_hw, rng) if square else random_mask(real.mesh, "whole", size_hw, rng)
    return blend(real.picture, inner, mask, real.face_px, rng)


def _animated(real: Portrait, shape: ShapeModel, rng: np.random.Generator, tools: Tools) -> Picture:
    picture, mesh = real
    size_hw = picture.shape[:2]
    painted = rng.random() < 0.4
    if painted:
        picture = paint(picture, rng)
    elif tools.appearance is not None and rng.random() < 0.5:
        picture = tools.appearance.redraw(real, mesh, size_hw, _detail(tools.appearance, rng))
    onto = shape.other(mesh, rng)
    moved = animate(picture, mesh, onto)
    if not painted or rng.random() < 0.4:
        moved = remake(moved, real.face_px, rng, tools.upsampler)
    if painted or rng.random() < 0.6:
        return moved
    mask = square_mask(onto, size_hw, rng) if rng.random() < 0.7 else random_mask(onto, "whole", size_hw, rng)
    return blend(real.picture, moved, mask, real.face_px, rng)


def _moved(picture: Picture, real: Portrait, rng: np.random.Generator, *, strength: float = 1.0) -> Picture:
    """Shift, turn, scale and bend a picture a little around its face."""
    height, width = size_hw = picture.shape[:2]
    center = real.mesh.mean(axis=0).tolist()
    matrix = np.asarray(cv2.getRotationMatrix2D(center, rng.uniform(-2, 2), rng.uniform(0.96, 1 / 0.96)), np.float64)
    matrix[:, 2] += rng.uniform(-1, 1, 2) * np.array([0.03, 0.02]) * real.face_px
    moved = cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    bent = displace(np.asarray(moved), smooth_field(size_hw, strength * 0.012 * real.face_px, rng))
    return np.asarray(bent, dtype=np.uint8)


def _drawn(shares: dict[Region, float], rng: np.random.Generator) -> Region:
    return list(shares)[int(rng.choice(len(shares), p=list(shares.values())))]
