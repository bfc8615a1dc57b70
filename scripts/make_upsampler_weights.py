"""Bring the weights of the npm package @upscalerjs/esrgan-medium (MIT) into the file that `mixture.upsampler` names.

npm pack @upscalerjs/esrgan-medium@1.0.0
python scripts/make_upsampler_weights.py upscalerjs-esrgan-medium-1.0.0.tgz upsampler.safetensors
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from deepfake_training.data.fakes.upsampler import SCALE, Upsampler

FOLDER = f"package/models/x{SCALE}"
NAMES = {
    "F_m1": "first",
    "F_0": "second",
    "GFF_1": "fuse_all.0",
    "GFF_2": "fuse_all.1",
    "UPN1": "unfold.0",
    "UPN2": "unfold.2",
    "UPN3": "unfold.4",
    "SR": "last",
}


def read(package: Path) -> dict[str, Tensor]:
    """Return the weights by our names; kernels as PyTorch has them, ``[out, in, height, width]``."""
    weights = {}
    with tarfile.open(package) as archive:

        def content(name: str) -> bytes:
            member = archive.extractfile(f"{FOLDER}/{name}")
            assert member is not None
            return member.read()

        for group in json.loads(content("model.json"))["weightsManifest"]:
            data = np.frombuffer(b"".join(map(content, group["paths"])), np.float32)
            sizes = [int(np.prod(weight["shape"])) for weight in group["weights"]]
            parts = np.split(data, np.cumsum(sizes)[:-1])
            for weight, part in zip(group["weights"], parts, strict=True):
                layer, kind = weight["name"].split("/")
                value = torch.from_numpy(part.reshape(weight["shape"]).copy())
                if kind == "kernel":
                    value = value.permute(3, 2, 0, 1).contiguous()
                weights[f"{our_name(layer)}.{'weight' if kind == 'kernel' else 'bias'}"] = value
    return weights


def our_name(layer: str) -> str:
    """Return the name of a layer in `Upsampler`: blocks count from 1 there, from 0 here."""
    if layer in NAMES:
        return NAMES[layer]
    kind, block, *_ = layer.split("_")
    return f"{'grow' if kind == 'F' else 'fuse'}.{int(block) - 1}"


def main() -> None:
    """Read the package, check that the network takes its weights, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the .tgz of npm pack")
    parser.add_argument("output", type=Path, help="a .safetensors file")
    given = parser.parse_args()
    weights = read(given.package)
    Upsampler().load_state_dict(weights)
    save_file(weights, given.output)


if __name__ == "__main__":
    main()
