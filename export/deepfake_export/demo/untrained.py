"""Networks without training, for tests and for measurements of speed: their scores mean nothing.

What they do have is the speed and size of a real detector, and outputs that depend on the crop: parity checks
can fail. Random weights alone give neither: signals die out or grow through 49 convolutions whose batch norms
have seen no data. So each batch norm is set to the scale of what reaches it.

The same PyTorch version on the same kind of CPU writes the same bytes: what is measured is rounded to powers of
two, and neither the number of threads nor the order of a sum shows in the file.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.running import UInt8Array
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.support.files import writing

UNTRAINED_SPEC = ModelSpec(
    name="untrained_efficientnet_b0",
    architecture="timm:efficientnet_b0",
    training_data="Random weights, for measurements of speed.",
    trained=False,
)
"""EfficientNet-B0 at 224 px, the network and size that the field's figures are for."""

SEED = 0
CALIBRATION_CROPS = 16
GRAIN = 20
"""Largest change that the grain makes to a pixel, of 255."""
RESIDUAL_SCALE = 0.25


def write_untrained_checkpoint(directory: str | Path) -> tuple[Path, Path]:
    """Write the untrained EfficientNet-B0 and its spec; see `write_demo_checkpoint`."""
    from safetensors.torch import save_file

    directory = Path(directory)
    checkpoint = directory / f"{UNTRAINED_SPEC.name}.safetensors"
    spec_path = directory / f"{UNTRAINED_SPEC.name}.yaml"
    network = build_untrained_network(UNTRAINED_SPEC)
    with writing(directory, "name another directory"):
        directory.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), checkpoint)
        spec_path.write_text(UNTRAINED_SPEC.to_yaml(), encoding="utf-8")
    return checkpoint, spec_path


def build_untrained_network(spec: ModelSpec) -> nn.Module:
    """Build the untrained network of a spec, scaled so that its logits spread by about 1 over different crops."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = build_network(spec).eval()
    for module in network.modules():
        last_norm = getattr(module, "bn3", None)
        if getattr(module, "has_skip", False) and isinstance(last_norm, nn.BatchNorm2d):
            # Nearly skipped blocks keep random weights from turning small changes of the crop into large ones
            # (Goyal et al., 2017, section 5.1): without it logits of real crops reach 100 and more.
            nn.init.constant_(last_norm.weight, RESIDUAL_SCALE)
    crops = torch.from_numpy(_calibration_crops(spec))
    detector = ServedDetector(network, spec).eval()
    hooks = [
        module.register_forward_pre_hook(_match_scale)
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        _, logit = detector(crops)
        for hook in hooks:
            hook.remove()
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.mul_(_power_of_two(1 / float(logit.std())))
        _, logit = detector(crops)
        # Both verdicts shall occur; an eighth is coarse enough to hide the last bits of the sum.
        last.bias.sub_(round(float(logit.median()) * 8) / 8)
    return network


def _calibration_crops(spec: ModelSpec) -> UInt8Array:
    """Return face-like crops with a camera's grain, and pure noise: the detail of real crops lies between the two."""
    random = np.random.default_rng(SEED)
    smooth = generate_crops(CALIBRATION_CROPS, spec.input_size_wh, seed=SEED)
    grainy = smooth + random.integers(-GRAIN, GRAIN + 1, smooth.shape)
    noise = random.integers(0, 256, (CALIBRATION_CROPS // 4, *smooth.shape[1:]))
    crops: UInt8Array = np.clip(np.concatenate([grainy, noise]), 0, 255).astype(np.uint8)
    return crops


def _match_scale(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    """Set a batch norm to the variance of what reaches it; hooks run in forward order, so one pass does all."""
    assert isinstance(module, nn.BatchNorm2d)
    assert module.running_var is not None
    module.running_var.fill_(_power_of_two(float(inputs[0].var())))


def _power_of_two(value: float) -> float:
    return float(2.0 ** round(math.log2(value)))
