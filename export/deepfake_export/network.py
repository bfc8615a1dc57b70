"""`load_network`: from a checkpoint or an ensemble to a PyTorch network that is ready to run.

PyTorch is imported inside the function: the package loads where the `export` extra is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepfake_export.spec_file import PinnedCheckpoint, pin_checkpoint
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.support.extras import require_extra

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network with its weights.

    Attributes:
        network: in eval mode, float32, on the CPU; FP32 ``[N, 3, H, W]`` -> ``[N, num_logits]``.
        spec: its contract, with `checkpoint_sha256` filled in.
        notes: what was taken from the files and what was left out, as sentences without a full stop.
    """

    network: nn.Module
    spec: ModelSpec
    notes: tuple[str, ...]


def load_network(
    checkpoint: str | Path | PinnedCheckpoint, spec: ModelSpec | str | Path | None = None
) -> LoadedNetwork:
    """Load a checkpoint, or all of an ensemble, into the network of its spec; no code of a file is ever run.

    Args:
        checkpoint: a ``.safetensors`` file, a file of `torch.save`, for ``torchscript`` one of `torch.jit.save`, or
            for ``ensemble`` the YAML file that names the members; or what `pin_checkpoint` returned.
        spec: its contract, or the YAML file of that; None takes the file of the checkpoint's name next to it.

    Raises:
        CheckpointError: a file is missing, damaged, refused as unsafe, has another hash, holds NaN or Inf, or
            does not fit the architecture (the message lists what is missing, unexpected or of another shape).
        SpecError: there is no spec, it is wrong, or the architecture is unknown or cannot be built.
        MissingExtraError: the `export` extra is not installed.
    """
    pinned = checkpoint if isinstance(checkpoint, PinnedCheckpoint) else pin_checkpoint(checkpoint, spec)
    for module in ("torch", "safetensors"):
        require_extra(module, extra="export")
    if pinned.ensemble is not None:
        from deepfake_export.ensemble.network import load_ensemble

        ensemble, notes = load_ensemble(pinned.ensemble)
        return LoadedNetwork(ensemble, pinned.spec, notes)
    from deepfake_export.checkpoint.loading import load_checkpoint

    network, reading = load_checkpoint(pinned.path, pinned.spec)
    return LoadedNetwork(network, pinned.spec, tuple(reading.describe()))
