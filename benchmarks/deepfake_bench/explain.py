"""What explaining face crops costs on this machine's CPU cores, for each method of an architecture.

Run ``python -m deepfake_bench.explain``. The network has random weights, which cost what trained ones cost. Before a
method is measured, its heatmaps are checked to be those of `pytorch-grad-cam` called by hand on the same layer.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from deepfake_bench.environment import environment, usable_cores, write_results
from deepfake_client.explain_types import METHODS, ExplainOptions
from deepfake_explain import CheckpointExplainer
from deepfake_explain.cam import CAMS
from deepfake_export.architectures import build_network
from deepfake_export.graph import ServedDetector
from deepfake_preprocess.spec import ModelSpec

NUM_VERIFIED = 4
MAX_DIFFERENCE = 1e-5
"""Heatmaps are in [0, 1], and sums in the network may be ordered otherwise from call to call."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each method, print a table and write the results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m deepfake_bench.explain", description=__doc__)
    parser.add_argument("--architecture", default="timm:efficientnet_b0", help="network (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=50, help="crops that are explained (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each method (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of PyTorch (default: all cores)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/MACHINE-explain.json")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    spec = ModelSpec("measured", options.architecture, checkpoint_sha256="0" * 64)
    network = build_network(spec)
    # The explainer switches gradients off in the network that it takes over.
    by_hand = copy.deepcopy(network).eval()
    explainer = CheckpointExplainer(network, spec)
    size = (options.crops, spec.input_height_px, spec.input_width_px, 3)
    crops = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    rows = []
    print(f"{'method':12} {'wall':>9} {'CPU':>9} {'per crop':>12} {'furthest from the library':>26}")
    for method in options.methods:
        furthest = verify(explainer, by_hand, crops[:NUM_VERIFIED], method)
        row = {"method": method, "max_difference": furthest, **measure(explainer, crops, method, options.repeats)}
        rows.append(row)
        per_crop_ms = 1000 * row["wall_s"] / options.crops
        print(f"{method:12} {row['wall_s']:7.2f} s {row['cpu_s']:7.2f} s {per_crop_ms:9.1f} ms {furthest:26.1e}")
    results: dict[str, Any] = {
        "environment": environment(["torch", "grad-cam", "timm"]),
        "architecture": options.architecture,
        "layer": explainer.default_layer(),
        "crops": options.crops,
        "threads": options.threads,
        "repeats": options.repeats,
        "methods": rows,
    }
    print(f"written to {write_results('explain', results, path=options.output)}")
    return 0


def measure(explainer: CheckpointExplainer, crops: NDArray[np.uint8], method: str, repeats: int) -> dict[str, float]:
    """Return the seconds (median and smallest of `repeats` runs) that explaining all crops takes."""
    pairs = []
    for _ in range(repeats):
        started, busy = time.perf_counter(), time.process_time()
        explainer.explain(crops, ExplainOptions(method))
        pairs.append((time.perf_counter() - started, time.process_time() - busy))
    wall, cpu = zip(*pairs, strict=True)
    return {
        "wall_s": round(statistics.median(wall), 3),
        "wall_min_s": round(min(wall), 3),
        "cpu_s": round(statistics.median(cpu), 3),
        "cpu_min_s": round(min(cpu), 3),
    }


def verify(explainer: CheckpointExplainer, by_hand: nn.Module, crops: NDArray[np.uint8], method: str) -> float:
    """Return how far heatmaps are from those of the library called by hand.

    Raises:
        SystemExit: they are further apart than `MAX_DIFFERENCE`.
    """
    ours = np.stack([item.heatmap for item in explainer.explain(crops, ExplainOptions(method))])
    inputs = ServedDetector(by_hand, explainer.spec).normalise(torch.from_numpy(crops))
    with CAMS[method](by_hand, [by_hand.get_submodule(explainer.default_layer())]) as cam:
        theirs = cam(inputs, [ClassifierOutputTarget(0)] * len(crops))
    furthest = float(np.abs(ours - theirs).max())
    if not furthest <= MAX_DIFFERENCE:
        raise SystemExit(f"{method}: heatmaps are {furthest:g} from the library's; nothing was measured")
    return furthest


if __name__ == "__main__":
    sys.exit(main())
