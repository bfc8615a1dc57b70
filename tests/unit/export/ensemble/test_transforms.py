"""Resizing and the spectrum as matrix products, against OpenCV and NumPy; heads written layer by layer."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from deepfake_export.ensemble.spec import Spectrum
from deepfake_export.ensemble.transforms import LUMA, LogSpectrum, Shrink

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize(("old", "new"), [((95, 60), (64, 48)), ((95, 60), (32, 20)), ((96, 96), (48, 48))])
def test_shrinking_is_opencvs(old, new):
    pictures = RANDOM.uniform(0, 1, (2, old[1], old[0], 3)).astype(np.float32)
    area = old[0] >= 2 * new[0]
    flag = cv2.INTER_AREA if area else cv2.INTER_LINEAR
    expected = np.stack([cv2.resize(picture, new, interpolation=flag) for picture in pictures])
    found = Shrink(old, new)(torch.from_numpy(pictures).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size_wh", [(64, 64), (33, 48), (224, 224)])
@pytest.mark.parametrize(
    "spectrum", [Spectrum(), Spectrum("rgb", 255, 1e-8, 20 / np.log(10)), Spectrum(epsilon=1e-3)], ids=str
)
def test_the_spectrum_is_numpys(size_wh, spectrum):
    width, height = size_wh
    # Bright, with small detail: the zero frequency is a million times the others.
    pictures = 0.9 + 0.05 * RANDOM.uniform(-1, 1, (2, 3, height, width))
    planes = pictures if spectrum.channels == "rgb" else np.tensordot(LUMA, pictures, (0, 1))[:, None]
    shifted = np.fft.fftshift(np.fft.fft2(planes * spectrum.pixel_max), axes=(2, 3))
    expected = spectrum.gain * np.log(np.abs(shifted) + spectrum.epsilon)
    found = LogSpectrum(size_wh, spectrum)(torch.from_numpy(pictures).float()).numpy()
    assert found.shape == (2, spectrum.num_channels, height, width)
    # Where the magnitude is far above what float32 leaves of a sum, which is all that training could have seen.
    certain = np.abs(shifted) + spectrum.epsilon > 1e-2 * spectrum.pixel_max
    assert certain.mean() > 0.99
    np.testing.assert_allclose(found[certain], expected[certain], atol=2e-3 * abs(spectrum.gain))
    assert found[0, 0, height // 2, width // 2] == found[0, 0].max()


def test_half_precision_does_not_overflow_the_spectrum():
    spectrum = LogSpectrum((224, 224), Spectrum(pixel_max=255))
    pixels = torch.from_numpy(RANDOM.uniform(0, 1, (1, 3, 224, 224))).float()
    expected = spectrum(pixels)
    found = torch.nn.Sequential(spectrum).half()(pixels.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=0.3, rtol=0)
