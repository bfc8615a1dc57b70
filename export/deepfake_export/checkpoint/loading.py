"""Loads one training checkpoint into its network, without ever running code from the file.

What does not fit is reported; nothing is skipped silently.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import torch
from torch import nn

from deepfake_export.checkpoint.architectures import build_network, build_renaming
from deepfake_export.checkpoint.checks import check_finite, check_outputs, check_values
from deepfake_export.checkpoint.foreign import describe_foreign
from deepfake_export.checkpoint.hints import describe_content, why_unfit
from deepfake_export.checkpoint.reading import read_checkpoint
from deepfake_export.checkpoint.readings import Reading, best_reading
from deepfake_export.checkpoint.remarks import contradiction, with_metadata
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError


def load_checkpoint(path: Path, spec: ModelSpec, *, in_channels: int = 3) -> tuple[nn.Module, Reading]:
    """Load one checkpoint file, whose hash is checked already, into the network of its spec; see `load_network`.

    Returns:
        The network in eval mode, float32, on the CPU, FP32 ``[N, in_channels, H, W]`` -> ``[N, num_logits]``; and
        where in the file its weights were.

    Raises:
        CheckpointError: the file is damaged, refused as unsafe, holds NaN or Inf, or does not fit the architecture.
        SpecError: the architecture is unknown or cannot be built.
    """
    if spec.architecture_family == "torchscript":
        network, reading = _load_torchscript(path), Reading()
    else:
        data = read_checkpoint(path)
        network = build_network(spec, in_channels=in_channels, code_dir=path.absolute().parent)
        found = best_reading(path, data, network, spec.ignore_keys, build_renaming(spec))
        if found is None:
            raise CheckpointError(f"{path} holds no weights; {describe_content(data)}")
        if found.problems:
            raise CheckpointError(why_unfit(path, data, found, spec, network.state_dict()))
        check_values(path, found.tensors)
        # Not strict, only because batch norm's counters may be missing; everything else is known to fit.
        network.load_state_dict(dict(found.tensors), strict=False)
        reading = dataclasses.replace(found, remark=contradiction(with_metadata(path, data), spec.head))
    network.float().eval()
    check_finite(path, network)
    check_outputs(path, network, spec, in_channels)
    return network, reading


def _load_torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # PyTorch deprecates TorchScript as a whole; people who hold such a file know what it is.
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
            return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-any-return, no-untyped-call]
    except (RuntimeError, ValueError) as exc:
        what = describe_foreign(path)
        what = what or (
            "not a TorchScript file; for a plain state dict name the network in the spec, for example "
            "'architecture: timm:efficientnet_b0'"
        )
        raise CheckpointError(f"{path} is {what}") from exc
