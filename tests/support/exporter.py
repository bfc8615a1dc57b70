"""PyTorch's exporter, which takes seconds, once for each network of a test run. Import it as ``exporter``.

What an export makes of the exporter's graph, and everything after it, runs each time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from filelock import FileLock
from torch import nn

from deepfake_export.graph import onnx_export
from deepfake_preprocess.support.files import write_whole


@contextlib.contextmanager
def runs_once(folder: Path) -> Iterator[None]:
    """Keep what the exporter gives for a network in a folder of all test processes, and give it for the same one."""
    real = onnx_export._export

    def export(detector, example, **options):
        path = folder / f"{fingerprint(detector, tuple(example.shape))}.onnx"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                write_whole(path, real(detector, example, **options).SerializeToString())
        return onnx.load(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(onnx_export, "_export", export)
        yield


def fingerprint(network: nn.Module, shape: tuple[int, ...]) -> str:
    """Return a hash of all that decides about the graph: modules, their code, attributes and hooks, all tensors."""
    found = hashlib.sha256(f"{network!r} {shape}".encode())
    for name, module in network.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, str | int | float | tuple)}
        code = getattr(type(module).forward, "__code__", None)
        found.update(f"{name} {type(module)} {plain} {len(module._forward_pre_hooks)}".encode())
        found.update(b"" if code is None else code.co_code + repr((code.co_names, code.co_consts)).encode())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        found.update(f"{name} {tensor.dtype}".encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
