"""Class activation maps of one network, computed by `pytorch-grad-cam`; only what surrounds the call is ours.

The target is the network's own output for "fake" before sigmoid or softmax, as the papers have it: the one logit of
a ``sigmoid`` head (negated where a positive one means real), or of a ``softmax`` head the logit of the fake class.
A probability would do no better: its gradient is the logit's times p(1 - p), which vanishes where a detector is sure.

Gradients end at the target layer's output, so the pass up to it records nothing, and no parameter gets one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import BinaryClassifierOutputTarget, ClassifierOutputTarget
from torch import Tensor, nn

from deepfake_client.explain.types import METHODS
from deepfake_explain._target_layer import TargetLayer
from deepfake_preprocess.contract.spec import Head
from deepfake_preprocess.errors import ExplainError

CAMS: dict[str, type[BaseCAM]] = {
    "grad-cam": GradCAM,
    "grad-cam++": GradCAMPlusPlus,
    "eigen-cam": EigenCAM,
    "layer-cam": LayerCAM,
    "hires-cam": HiResCAM,
}
"""By name. Grad-CAM: Selvaraju et al., ICCV 2017. Grad-CAM++: Chattopadhay et al., WACV 2018. Eigen-CAM: Muhammad and
Yeasin, IJCNN 2020 (looks at the features only, not at the score). Layer-CAM: Jiang et al., IEEE TIP 2021. HiRes-CAM:
Draelos and Carin, arXiv:2011.08891."""
assert tuple(CAMS) == METHODS


def heatmaps_of(
    network: nn.Module, inputs: Tensor, layer: TargetLayer, head: Head, method: str
) -> tuple[NDArray[np.float32], Tensor]:
    """Return the heatmaps of a batch, float32 ``[N, H, W]`` in [0, 1], and the network's outputs.

    Each map is scaled to its own largest value. The network, in eval mode and without `requires_grad`, must not be
    used elsewhere meanwhile.

    Raises:
        ExplainError: the method needs gradients, and none reach the layer.
    """
    target = ClassifierOutputTarget if head.kind == "softmax" else BinaryClassifierOutputTarget
    with _gradients_end_at(layer.module):
        cam: Any = CAMS[method](network, [layer.module], reshape_transform=layer.reshape)

        def check_output(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if cam.uses_gradients and not output.requires_grad:
                raise ExplainError(
                    f"no gradient of the score reaches layer {layer.name!r}, so {method} cannot explain it: the "
                    "network's forward() cuts it off, as by detach() or numpy(); take that out, or take eigen-cam"
                )
            return output.reshape(-1, 1) if output.ndim < 2 else output  # `[N]`, and what squeeze() leaves

        listening = network.register_forward_hook(check_output)
        # Not as a context manager: that one swallows an IndexError and prints it.
        try:
            maps = cam(inputs, [target(head.fake_index)] * len(inputs))
            outputs: Tensor = cam.outputs.detach()
        finally:
            listening.remove()
            cam.activations_and_grads.release()
    return np.asarray(maps, dtype=np.float32), outputs


@contextmanager
def _gradients_end_at(module: nn.Module) -> Iterator[None]:
    # A copy, because an in-place activation behind the layer may not change a tensor that gradients end at.
    handle = module.register_forward_hook(lambda _module, _inputs, output: output.detach().requires_grad_().clone())
    try:
        with torch.enable_grad():
            yield
    finally:
        handle.remove()
