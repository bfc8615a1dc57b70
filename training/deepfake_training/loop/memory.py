"""When memory does not suffice for a batch: recognized, and answered with the batch size that fits."""

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

    Args:
        detector: takes uint8 crops on its own device; gives probability and logit. Its gradients are cleared.
        crops: the batch that did not fit, on the CPU.
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
