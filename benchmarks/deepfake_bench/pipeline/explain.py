"""What explaining face crops costs on this machine's CPU cores, for each method.

The network has random weights, which cost what trained ones cost. Before a method is measured, its heatmaps are
checked to be those of `pytorch-grad-cam` called by hand on the same layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepfake_bench.machine.stopwatch import in_turn, spread
from deepfake_bench.server.reference import random_crops
from deepfake_client.explain.types import ExplainOptions
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError

if TYPE_CHECKING:
    from torch import nn

    from deepfake_explain import CheckpointExplainer

NUM_VERIFIED = 4
MAX_DIFFERENCE = 1e-5
"""Heatmaps are in [0, 1], and sums in the network may be ordered otherwise from call to call."""


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """What is explained, and by what.

    Attributes:
        explainer: ours, with a network of its own.
        by_hand: the same network, for the library called by hand.
        crops: uint8 ``[N, H, W, 3]`` RGB.
    """

    explainer: CheckpointExplainer
    by_hand: nn.Module
    crops: NDArray[np.uint8]


def untrained(architecture: str, *, num_crops: int, threads: int) -> Explained:
    """Return noise and a network with random weights to explain it by; sets PyTorch's threads.

    Raises:
        SpecError: there is no such architecture.
    """
    import torch

    from deepfake_explain import CheckpointExplainer
    from deepfake_export.checkpoint.architectures import build_network

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    spec = ModelSpec("measured", architecture, checkpoint_sha256="0" * 64)
    network = build_network(spec)
    # The explainer switches gradients off in the network that it takes over.
    by_hand = copy.deepcopy(network).eval()
    return Explained(CheckpointExplainer(network, spec), by_hand, random_crops(num_crops, spec.input_size_wh))


def measure_method(explained: Explained, method: str, *, repeats: int) -> dict[str, Any]:
    """Return what explaining all crops takes by one method, as plain JSON data.

    Raises:
        DeepfakeError: its heatmaps are not those of the library.
    """
    furthest = verify(explained, method)
    options = ExplainOptions(method)
    taken = in_turn({method: lambda: explained.explainer.explain(explained.crops, options)}, repeats)
    return {"method": method, "max_difference": furthest, **spread(taken[method])}


def verify(explained: Explained, method: str) -> float:
    """Return how far heatmaps are from those of the library called by hand.

    Raises:
        DeepfakeError: they are further apart than `MAX_DIFFERENCE`.
    """
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from deepfake_explain._cam import CAMS
    from deepfake_export.graph.served_detector import ServedDetector

    explainer, by_hand, crops = explained.explainer, explained.by_hand, explained.crops[:NUM_VERIFIED]
    ours = np.stack([item.heatmap for item in explainer.explain(crops, ExplainOptions(method))])
    inputs = ServedDetector(by_hand, explainer.spec).normalize(torch.from_numpy(crops))
    with CAMS[method](by_hand, [by_hand.get_submodule(explainer.default_layer())]) as cam:
        theirs = cam(inputs, [ClassifierOutputTarget(0)] * len(crops))
    furthest = float(np.abs(ours - theirs).max())
    if not furthest <= MAX_DIFFERENCE:
        raise DeepfakeError(f"{method}: heatmaps are {furthest:g} from the library's; nothing was measured")
    return furthest
