"""`Upsampler`: a published network for super-resolution, which invents detail as enhancers of swapped faces do."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deepfake_preprocess.errors import CheckpointError
from deepfake_training.data.fakes.mesh import Picture

SCALE: Final = 4
BLOCKS: Final = 10
_WIDTH: Final = 64


class Upsampler(nn.Module):
    """A residual dense network that enlarges pictures four times.

    See Zhang et al., Residual Dense Network for Image Super-Resolution, CVPR 2018; here with ten blocks of one
    growing convolution. The weights are those of the npm package ``@upscalerjs/esrgan-medium`` 1.0.0 (MIT),
    ``models/x4``; ``scripts/make_upsampler_weights.py`` brings them into a file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _convolution(3, _WIDTH), _convolution(_WIDTH, _WIDTH)
        self.grow = nn.ModuleList(_convolution(_WIDTH, _WIDTH) for _ in range(BLOCKS))
        self.fuse = nn.ModuleList(_convolution(2 * _WIDTH, _WIDTH, 1) for _ in range(BLOCKS))
        self.fuse_all = nn.Sequential(_convolution(BLOCKS * _WIDTH, _WIDTH, 1), _convolution(_WIDTH, _WIDTH))
        self.unfold = nn.Sequential(
            _convolution(_WIDTH, _WIDTH, 5),
            nn.ReLU(),
            _convolution(_WIDTH, 32),
            nn.ReLU(),
            _convolution(32, 3 * SCALE**2),
        )
        self.last = _convolution(3 * SCALE**2, 3)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the weights of a ``.safetensors`` file.

        Raises:
            CheckpointError: the file cannot be read, or is another network's.
        """
        network = cls()
        try:
            network.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as exc:
            raise CheckpointError(
                f"{path} holds no weights of the upsampler; make the file with scripts/make_upsampler_weights.py"
            ) from exc
        return network.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Enlarge pictures, float32 ``[N, 3, H, W]`` in [0, 1], four times; the result may leave that range."""
        shallow = self.first(pictures)
        block: Tensor = self.second(shallow)
        blocks = []
        for grow, fuse in zip(self.grow, self.fuse, strict=True):
            block = block + fuse(torch.cat([block, grow(block).relu()], 1))
            blocks.append(block)
        unfolded = self.unfold(shallow + self.fuse_all(torch.cat(blocks, 1)))
        enlarged: Tensor = self.last(interpolate(unfolded, scale_factor=SCALE))
        return enlarged

    def enlarged(self, picture: Picture) -> Picture:
        """Return a picture, uint8 ``[H, W, 3]`` RGB, four times as high and wide."""
        # In float32 also where the training around it computes in less.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            drawn = self(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
        return np.asarray((drawn * 255).round().clamp(0, 255), dtype=np.uint8)


def _convolution(given: int, made: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(given, made, size, padding=size // 2)
