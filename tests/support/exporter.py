"""PyTorch's exporter, which takes seconds, once for each network. Import it as ``exporter`` (see conftest.py).

What an export makes of the exporter's graph, and everything after it, runs each time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import onnx
import pytest
from torch import nn

from deepfake_export.graph import onnx_export


@contextlib.contextmanager
def runs_once() -> Iterator[None]:
    """Keep what the exporter gives for a network, and give a copy of it for the same one."""
    real, kept = onnx_export._export, {}

    def export(detector, example, **options):
        key = fingerprint(detector, tuple(example.shape))
        if key not in kept:
            kept[key] = real(detector, example, **options)
        model = onnx.ModelProto()
        model.CopyFrom(kept[key])
        return model

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(onnx_export, "_export", export)
        yield


def fingerprint(network: nn.Module, shape: tuple[int, ...]) -> str:
    """Return a hash of all that decides about the graph: modules, their plain attributes and hooks, all tensors."""
    found = hashlib.sha256(f"{network!r} {shape}".encode())
    for name, module in network.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, str | int | float | tuple)}
        found.update(f"{name} {type(module)} {plain} {len(module._forward_pre_hooks)}".encode())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        found.update(f"{name} {tensor.dtype}".encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
