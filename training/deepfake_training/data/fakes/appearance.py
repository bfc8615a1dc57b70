"""`AppearanceModel`: faces as a small autoencoder draws them, which is what most face swaps and reenactments show.

The faces of a set are laid onto the mean mesh, triangle by triangle, and their principal components are taken
(Cootes, Edwards and Taylor, Active Appearance Models, ECCV 1998). A face that is made anew from its first components
is what a linear autoencoder with as many units makes of it: smooth skin, eyes and mouths like everybody's, shadows in
place of glasses and beards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_training.data.fakes.mesh import Mesh, Picture, Portrait, mean_mesh, warp

HEIGHT_PX: Final = 112
"""Height of a face on the mean mesh: about what networks for face swaps work with."""
FACES: Final = 1500
"""As many are looked at, which takes seconds."""
COMPONENTS: Final = 250
FEWEST: Final = 25
"""Components of the coarsest face; fewer look like nobody."""
_BORDER_PX: Final = 2


class AppearanceModel:
    """Principal components of faces that lie on the mean mesh.

    Args:
        portraits: at least two.

    Raises:
        ValueError: there are fewer.
    """

    def __init__(self, portraits: Iterable[Portrait]) -> None:
        mesh = mean_mesh() - mean_mesh().min(axis=0)
        self._mesh: Mesh = mesh * (HEIGHT_PX - 2 * _BORDER_PX) / np.ptp(mesh[:, 1]) + np.float32(_BORDER_PX)
        self._size_hw = (HEIGHT_PX, int(np.ceil(self._mesh[:, 0].max())) + _BORDER_PX)
        flat = np.stack([self._flatten(portrait) for portrait in portraits])
        if len(flat) < 2:
            raise ValueError("an appearance model needs at least two faces")
        self._mean = flat.mean(axis=0)
        flat -= self._mean
        # Fewer faces than pixels: the components follow from how alike the faces are to each other.
        variance, mixed = np.linalg.eigh(flat @ flat.T)  # the smallest first
        kept = slice(-1, -1 - min(COMPONENTS, len(flat) - 1), -1)
        self._basis = (flat.T @ mixed[:, kept]) / np.sqrt(np.maximum(variance[kept], 1e-6))

    def __len__(self) -> int:
        """Return the number of components."""
        return int(self._basis.shape[1])

    def redraw(
        self,
        portrait: Portrait,
        onto: Mesh,
        size_hw: tuple[int, int],
        components: int,
        *,
        towards: Portrait | None = None,
    ) -> Picture:
        """Return a face made anew from its first components, moved to where another mesh has its points.

        Args:
            portrait: the face.
            onto: where each point of its mesh goes.
            size_hw: of the result.
            components: how many are kept.
            towards: another face; the result then lies halfway between both.

        Returns:
            The face in a picture of that size. Around the face is what `mesh.warp` makes of its surroundings.
        """
        code = self._code(portrait, components)
        if towards is not None:
            code = np.float32(0.5) * (code + self._code(towards, components))
        drawn = self._mean + self._basis[:, : len(code)] @ code
        face = np.clip(np.rint(drawn), 0, 255).astype(np.uint8).reshape(*self._size_hw, 3)
        moved, covered = warp(face, self._mesh, onto, size_hw)
        around, _ = warp(portrait.picture, portrait.mesh, onto, size_hw)
        return np.where(covered[..., None] > 0, moved, around)

    def _code(self, portrait: Portrait, components: int) -> NDArray[np.float32]:
        basis = self._basis[:, :components]
        return np.asarray((self._flatten(portrait) - self._mean) @ basis, dtype=np.float32)

    def _flatten(self, portrait: Portrait) -> NDArray[np.float32]:
        """Return a face on the mean mesh, float32 ``[H * W * 3]``."""
        picture, mesh = portrait
        larger = portrait.face_px / np.ptp(self._mesh[:, 0])
        if larger > 1:  # without it, a large face would be sampled with gaps
            height, width = picture.shape[:2]
            size_wh = (max(1, round(width / larger)), max(1, round(height / larger)))
            picture = np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)
            mesh = mesh * np.divide(size_wh, (width, height), dtype=np.float32)
        face, _ = warp(picture, mesh, self._mesh, self._size_hw)
        return face.astype(np.float32).ravel()
