"""What explaining face crops costs on this machine's CPU cores, for each method.

The network has random weights, which cost what trained ones cost. Before a method is measured, its heatmaps are
checked to be those of `pytorch-grad-cam` called by hand on the same layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
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


def measure_methods(
    architecture: str, methods: Sequence[str], *, num_crops: int, threads: int, repeats: int
) -> dict[str, Any]:
    """Return what explaining noise takes by each method, verified, as plain JSON data; sets PyTorch's threads."""
    import torch

    from deepfake_explain import CheckpointExplainer
    from deepfake_export.checkpoint.architectures import build_network

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    spec = ModelSpec("measured", architecture, checkpoint_sha256="0" * 64)
    network = build_network(spec)
    # The explainer switches gradients off in the network that it takes over.
    by_hand = copy.deepcopy(network).eval()
    explainer, crops = CheckpointExplainer(network, spec), random_crops(num_crops, spec.input_size_wh)
    measured = []
    for method in methods:
        furthest = verify(explainer, by_hand, crops[:NUM_VERIFIED], method)
        taken = in_turn({method: partial(explainer.explain, crops, ExplainOptions(method))}, repeats)
        measured.append({"method": method, "max_difference": furthest, **spread(taken[method])})
    return {
        "architecture": architecture,
        "layer": explainer.default_layer(),
        "crops": num_crops,
        "threads": threads,
        "repeats": repeats,
        "methods": measured,
    }


def verify(explainer: CheckpointExplainer, by_hand: nn.Module, crops: NDArray[np.uint8], method: str) -> float:
    """Return how far heatmaps are from those of the library called by hand; an error above `MAX_DIFFERENCE`."""
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from deepfake_explain._cam import CAMS
    from deepfake_export.graph.served_detector import ServedDetector

    ours = np.stack([item.heatmap for item in explainer.explain(crops, ExplainOptions(method))])
    inputs = ServedDetector(by_hand, explainer.spec).normalize(torch.from_numpy(crops))
    with CAMS[method](by_hand, [by_hand.get_submodule(explainer.default_layer())]) as cam:
        theirs = cam(inputs, [ClassifierOutputTarget(0)] * len(crops))
    furthest = float(np.abs(ours - theirs).max())
    if not furthest <= MAX_DIFFERENCE:
        raise DeepfakeError(f"{method}: heatmaps are {furthest:g} from the library's; nothing was measured")
    return furthest
