"""`deepfake bench explain`: what explaining face crops costs on this machine's CPU cores, for each method.

The network has random weights, which cost what trained ones cost. Before a method is measured, its heatmaps are
checked to be those of `pytorch-grad-cam` called by hand on the same layer.
"""

from __future__ import annotations

import copy
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from deepfake_bench.machine.environment import environment, usable_cores, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_client.explain.types import METHODS, ExplainOptions
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError, OptionError
from deepfake_preprocess.support.extras import require_extra

if TYPE_CHECKING:
    from torch import nn

    from deepfake_explain import CheckpointExplainer

NUM_VERIFIED = 4
MAX_DIFFERENCE = 1e-5
"""Heatmaps are in [0, 1], and sums in the network may be ordered otherwise from call to call."""


def explain(
    architecture: Annotated[str, typer.Option(help="Network, as in a spec.")] = "timm:efficientnet_b0",
    crops: Annotated[int, typer.Option(help="Crops that are explained together.", min=1)] = 50,
    repeats: Annotated[int, typer.Option(help="Runs of each method.", min=1)] = 3,
    methods: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(METHODS)}.")] = ",".join(METHODS),
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch; all cores by default.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-explain.json.")
    ] = None,
) -> None:
    """Measure what explaining face crops costs on this machine's CPU, for each method.

    Each method's heatmaps are first compared with those of pytorch-grad-cam called by hand on the same layer.

    [bold]Examples[/]

      deepfake bench explain
      deepfake bench explain --architecture timm:resnet50 --methods grad-cam --crops 8
    """
    wanted = [item.strip() for item in methods.split(",") if item.strip()]
    if not wanted or set(wanted) - set(METHODS):
        raise OptionError(f"--methods is {methods!r}; allowed: {', '.join(METHODS)}, separated by commas")
    require_extra("pytorch_grad_cam", extra="explain")  # and with it torch
    import torch

    from deepfake_explain import CheckpointExplainer
    from deepfake_export.checkpoint.architectures import build_network

    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    spec = ModelSpec("measured", architecture, checkpoint_sha256="0" * 64)
    network = build_network(spec)
    # The explainer switches gradients off in the network that it takes over.
    by_hand = copy.deepcopy(network).eval()
    explainer = CheckpointExplainer(network, spec)
    size = (crops, spec.input_height_px, spec.input_width_px, 3)
    pictures = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    rows = []
    table = Table("method", box=None, header_style="bold")
    for column in ("wall", "CPU", "per crop", "furthest from the library"):
        table.add_column(column, justify="right")
    for method in wanted:
        furthest = verify(explainer, by_hand, pictures[:NUM_VERIFIED], method)
        took = measure(explainer, pictures, method, repeats)
        rows.append({"method": method, "max_difference": furthest, **took})
        per_crop_ms = 1000 * took["wall_s"] / crops
        table.add_row(
            method, f"{took['wall_s']:.2f} s", f"{took['cpu_s']:.2f} s", f"{per_crop_ms:.1f} ms", f"{furthest:.1e}"
        )
    table_console().print(table)
    results: dict[str, Any] = {
        "environment": environment(["torch", "grad-cam", "timm"]),
        "architecture": architecture,
        "layer": explainer.default_layer(),
        "crops": crops,
        "threads": threads,
        "repeats": repeats,
        "methods": rows,
    }
    typer.echo(f"written to {write_results('explain', results, path=output)}")


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
        DeepfakeError: they are further apart than `MAX_DIFFERENCE`.
    """
    import torch
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    from deepfake_explain._cam import CAMS
    from deepfake_export.graph.served_detector import ServedDetector

    ours = np.stack([item.heatmap for item in explainer.explain(crops, ExplainOptions(method))])
    inputs = ServedDetector(by_hand, explainer.spec).normalise(torch.from_numpy(crops))
    with CAMS[method](by_hand, [by_hand.get_submodule(explainer.default_layer())]) as cam:
        theirs = cam(inputs, [ClassifierOutputTarget(0)] * len(crops))
    furthest = float(np.abs(ours - theirs).max())
    if not furthest <= MAX_DIFFERENCE:
        raise DeepfakeError(f"{method}: heatmaps are {furthest:g} from the library's; nothing was measured")
    return furthest
