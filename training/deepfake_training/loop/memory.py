"""What to do where memory does not suffice for a batch."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch says that memory, of the GPU or of the machine, is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def fitting_batch_size(detector: nn.Module, crops: Tensor) -> int:
    """Return the largest half, quarter, ... of a batch that runs forward and backward; 0 when one crop does not.

    `crops`, uint8 on the CPU, did not fit. The detector gives probability and logit; its gradients are cleared.
    """
    device = next(detector.parameters()).device
    size = len(crops) // 2
    while size:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            detector(crops[:size].to(device))[1].mean().backward()
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            size //= 2
        else:
            return size
        finally:
            detector.zero_grad()
    return 0


def advice_on_batch(detector: nn.Module, crops: Tensor, accumulate: int) -> str:
    """Return what to change in the configuration where a batch did not fit, as a clause; see `fitting_batch_size`."""
    fits = fitting_batch_size(detector, crops)
    if not fits:
        return "a single crop does not fit either; take a smaller network or input"
    return (
        f"{fits} fits: a 'batch_size' of {fits} with 'accumulate' of {accumulate * -(-len(crops) // fits)} computes "
        "nearly the same"
    )
