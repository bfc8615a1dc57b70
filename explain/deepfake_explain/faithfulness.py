"""Says whether a heatmap means anything: deletion and insertion curves, and a comparison with randomized weights.

A heatmap is drawn for every network, also for one that knows nothing. Two published questions tell pictures from
evidence: does the score fall when the hottest pixels go, and does the picture change when the weights do?
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from deepfake_preprocess.support.json_data import JsonData

Score = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From uint8 ``[N, H, W, 3]`` crops to float32 ``[N]`` fake probabilities."""

STEPS = 16
"""Parts in which the pixels go or come; RISE's 224 are 450 passes a heatmap, which a smooth curve hardly needs."""
RANDOM_MAPS = 3
"""Random maps that the areas are compared with."""
RANDOM_GRID = 7
"""Side of a random map before it is enlarged: as coarse as the last stage of the usual networks."""
RANDOMIZED = 2
"""Randomized networks that a heatmap is compared with."""


@dataclass(frozen=True, slots=True)
class Faithfulness(JsonData):
    """How the score follows the heatmap, by the deletion and insertion metrics of RISE.

    Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.

    Attributes:
        deletion: fake probability after each step in which the hottest pixels left are painted over with the mean
            color, from the whole crop to none of it.
        insertion: the same while the hottest pixels come back onto the blurred crop.
        random_deletion_auc: mean area for smooth random maps, to compare with.
        random_insertion_auc: the same for insertion.
    """

    json_properties = ("deletion_auc", "insertion_auc")

    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    random_deletion_auc: float
    random_insertion_auc: float

    @property
    def deletion_auc(self) -> float:
        """Area under `deletion`, in [0, 1]; a faithful map of a fake has a small one."""
        return area(self.deletion)

    @property
    def insertion_auc(self) -> float:
        """Area under `insertion`, in [0, 1]; a faithful map of a fake has a large one."""
        return area(self.insertion)


@dataclass(frozen=True, slots=True)
class Sanity(JsonData):
    """How much a heatmap has in common with those of networks with random weights.

    Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity Checks for Saliency Maps", NeurIPS 2018: a map that
    stays the same without what was learned shows the picture, not the model. The weights of all layers are drawn at
    once, each tensor from a normal distribution with its own mean and spread, to keep the scale of activations.

    Attributes:
        rank_correlation: Spearman's, mean over the randomized networks, in [-1, 1]; near 1 means no evidence.
        ssim: structural similarity (Wang et al., IEEE TIP 2004), likewise.
    """

    rank_correlation: float
    ssim: float


def area(curve: tuple[float, ...]) -> float:
    """Return the area under a curve over [0, 1] by trapezoids."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def measure_faithfulness(
    crop: NDArray[np.uint8], heatmap: NDArray[np.float32], score: Score, *, mean_rgb: tuple[int, int, int]
) -> Faithfulness:
    """Delete and insert the pixels of a crop, uint8 ``[H, W, 3]`` RGB, in the order of their heat.

    Deleted pixels become `mean_rgb`: what the network normalizes with is "nothing" to it.
    """
    random = np.random.default_rng(0)
    size_wh = (crop.shape[1], crop.shape[0])
    grids = random.random((RANDOM_MAPS, RANDOM_GRID, RANDOM_GRID), dtype=np.float32)
    deletion, insertion = (tuple(curve) for curve in _curves(crop, heatmap, score, mean_rgb))
    others = [
        [area(tuple(curve)) for curve in _curves(crop, cv2.resize(grid, size_wh), score, mean_rgb)] for grid in grids
    ]
    random_deletion, random_insertion = np.mean(others, axis=0)
    return Faithfulness(deletion, insertion, float(random_deletion), float(random_insertion))


def compare_maps(heatmap: NDArray[np.float32], randomized: NDArray[np.float32]) -> Sanity:
    """Compare a heatmap ``[H, W]`` with those of randomized networks, ``[K, H, W]``."""
    return Sanity(
        float(np.mean([_rank_correlation(heatmap, other) for other in randomized])),
        float(np.mean([_ssim(heatmap, other) for other in randomized])),
    )


def randomized(network: nn.Module, *, seed: int) -> nn.Module:
    """Return a copy of a network with random weights of the same scale; the network itself stays as it is."""
    twin = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            spread = parameter.std(correction=0)
            parameter.copy_(parameter.mean() + spread * noise)
    return twin


def _curves(
    crop: NDArray[np.uint8], heatmap: NDArray[np.float32], score: Score, mean_rgb: tuple[int, int, int]
) -> tuple[list[float], list[float]]:
    pixels = crop.reshape(-1, 3)
    order = np.argsort(-heatmap.ravel(), kind="stable")
    nothing = np.broadcast_to(np.array(mean_rgb, dtype=np.uint8), pixels.shape)
    # RISE blurs 224 px with a Gaussian of 5 px.
    sigma = 5 * max(crop.shape[:2]) / 224
    blurred = np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma)).reshape(-1, 3)
    curves = []
    for start, end in ((pixels, nothing), (blurred, pixels)):
        pictures = np.empty((STEPS + 1, *crop.shape), dtype=np.uint8)
        for step, picture in enumerate(pictures):
            changed = order[: round(len(order) * step / STEPS)]
            flat = start.copy()
            flat[changed] = end[changed]
            picture[...] = flat.reshape(crop.shape)
        curves.append([float(value) for value in score(pictures)])
    return curves[0], curves[1]


def _rank_correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        # Ranks of a map without differences say nothing; nothing in common is what is meant.
        return 0.0
    return float(spearmanr(one.ravel(), other.ravel()).statistic)


def _blurred(values: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(values.astype(np.float64), (11, 11), 1.5), dtype=np.float64)


def _ssim(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the mean SSIM of two maps in [0, 1], with the paper's Gaussian of 1.5 px and constants."""
    c1, c2 = 0.01**2, 0.03**2
    mean_one, mean_other = _blurred(one), _blurred(other)
    var_one, var_other = _blurred(one * one) - mean_one**2, _blurred(other * other) - mean_other**2
    covariance = _blurred(one * other) - mean_one * mean_other
    luminance = (2 * mean_one * mean_other + c1) / (mean_one**2 + mean_other**2 + c1)
    structure = (2 * covariance + c2) / (var_one + var_other + c2)
    return float(np.mean(luminance * structure))
