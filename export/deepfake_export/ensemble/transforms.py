"""Resizing and the Fourier transform as products with constant matrices.

Both are linear in each direction, so a matrix on each side of the picture is exact, and leaves nothing but MatMul in
the graph, which every runtime has. The operators made for them do not travel: NVIDIA's parser refuses ONNX's DFT,
and its Resize with antialiasing (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deepfake_export.ensemble.spec import Spectrum

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B (ITU-R BT.601), as in OpenCV's and Pillow's gray conversions."""


class KeepsFloat32(nn.Module):
    """A module whose constants stay float32 when the network around it is cast to half precision.

    Sums over a whole picture and their squares overflow in FP16, and tiny probabilities underflow.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(value: Tensor) -> Tensor:
            moved = fn(value)
            return moved if moved.dtype == value.dtype else value.to(moved.device)

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self


class Shrink(nn.Module):
    """Makes pictures smaller: by area averaging from a factor of two on, below that by linear interpolation.

    The same as `cv2.resize` with `INTER_AREA` or `INTER_LINEAR`, without rounding to bytes. What arrives was averaged
    by the client already, and below a factor of two a second average blurs more than interpolation aliases.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, from_wh: tuple[int, int], to_wh: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (shrink_matrix(old, new) for old, new in zip(reversed(from_wh), reversed(to_wh), strict=True))
        self.register_buffer("rows", torch.from_numpy(rows).float(), persistent=False)
        self.register_buffer("columns", torch.from_numpy(columns.T.copy()).float(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return ``[N, C, h, w]`` of ``[N, C, H, W]``."""
        return torch.matmul(self.rows, torch.matmul(pixels, self.columns))


class LogSpectrum(KeepsFloat32):
    """``gain * log(|FFT2(x)| + epsilon)`` of each picture, with the zero frequency at ``[H // 2, W // 2]``.

    The same as ``numpy.fft.fftshift(numpy.fft.fft2(x))`` under the logarithm. The picture's mean is taken out before
    the transform and put back at the zero frequency, which is exact, and keeps the large sum of a bright picture from
    costing the small frequencies their digits.
    """

    luma: Tensor
    cos_rows: Tensor
    sin_rows: Tensor
    cos_columns: Tensor
    sin_columns: Tensor
    constant: Tensor

    def __init__(self, size_wh: tuple[int, int], spectrum: Spectrum) -> None:
        super().__init__()
        width, height = size_wh
        self._spectrum = spectrum
        for name, length in (("rows", height), ("columns", width)):
            angles = _shifted_angles(length)
            # Rows multiply from the left, columns from the right; the matrix of angles is shifted in one direction.
            angles = angles if name == "rows" else angles.T.copy()
            for function in (np.cos, np.sin):
                values = torch.from_numpy(function(angles)).float()
                self.register_buffer(f"{function.__name__}_{name}", values, persistent=False)
        constant = torch.zeros(height, width)
        constant[height // 2, width // 2] = height * width
        self.register_buffer("constant", constant, persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return ``[N, 1 or 3, H, W]`` of RGB ``[N, 3, H, W]`` in [0, 1]."""
        values = pixels.to(torch.float32)
        if self._spectrum.channels == "luma":
            values = (values * self.luma).sum(dim=1, keepdim=True)
        if self._spectrum.pixel_max != 1:
            values = values * float(self._spectrum.pixel_max)
        mean = values.mean(dim=(2, 3), keepdim=True)
        values = values - mean
        by_cos, by_sin = torch.matmul(values, self.cos_columns), torch.matmul(values, self.sin_columns)
        real = torch.matmul(self.cos_rows, by_cos) - torch.matmul(self.sin_rows, by_sin) + mean * self.constant
        imaginary = torch.matmul(self.cos_rows, by_sin) + torch.matmul(self.sin_rows, by_cos)
        magnitude = torch.sqrt(real * real + imaginary * imaginary)
        return (torch.log(magnitude + self._spectrum.epsilon) * self._spectrum.gain).to(pixels.dtype)


def shrink_matrix(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return the ``[new, old]`` matrix that makes a line of `old` pixels one of `new`; see `Shrink`."""
    return area_matrix(old, new) if old >= 2 * new else linear_matrix(old, new)


def linear_matrix(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return the ``[new, old]`` matrix of linear interpolation between pixel centers."""
    centers = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    distance = np.abs(centers[:, None] - np.arange(old)[None, :])
    return np.asarray(np.clip(1 - distance, 0, None), dtype=np.float64)


def area_matrix(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return the ``[new, old]`` matrix whose row i averages what pixel i of the result covers."""
    edges = np.arange(new + 1) * (old / new)
    left, right = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)[None, :]
    covered = np.clip(np.minimum(right, pixels + 1) - np.maximum(left, pixels), 0, None)
    return np.asarray(covered * (new / old), dtype=np.float64)


def _shifted_angles(length: int) -> npt.NDArray[np.float64]:
    frequencies = np.fft.fftshift(np.arange(length))
    # The product is reduced first: sine and cosine of large arguments lose digits.
    turns = np.outer(frequencies, np.arange(length)) % length
    return np.asarray(2 * np.pi * turns / length, dtype=np.float64)
