"""`deepfake bench gpu`: one network on a GPU through every engine, batch 1 to 256, against the roofline."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from deepfake_bench.cli.options import OutputOption, print_table, read_counts, read_names
from deepfake_bench.machine.results import default_path, write_results
from deepfake_export.tensorrt.gpu import find_gpu
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import EngineError, OptionError
from deepfake_preprocess.support.extras import require_extra

if TYPE_CHECKING:
    from torch import nn

    from deepfake_bench.gpu.engines import Subject
    from deepfake_bench.gpu.measure import EngineSpeed

DEFAULT_NETWORKS = "timm:efficientnet_b0@224,timm:efficientnet_b4@380"
DEFAULT_BATCHES = "1,2,4,8,16,32,64,128,256"
DEVICES = ("cuda", "cpu")
CEILING_S = 1.0
"""Length of each ceiling's measurement at most."""


def gpu(
    network: Annotated[
        str, typer.Option(help="ARCHITECTURE@PIXELS with random weights, several with commas between.")
    ] = DEFAULT_NETWORKS,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Measure this checkpoint instead of --network; its spec is next to it.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Spec of --checkpoint where it is elsewhere.")] = None,
    engines: Annotated[str, typer.Option(help="Names of engines, with commas between.")] = "all",
    batches: Annotated[str, typer.Option(help="Crops per execution.")] = DEFAULT_BATCHES,
    device: Annotated[
        str, typer.Option(help="cuda, or cpu to try the command with the engines that a CPU has.")
    ] = "cuda",
    seconds: Annotated[float, typer.Option(help="Length of each measurement.", min=0.01)] = 1.0,
    minutes: Annotated[
        float | None, typer.Option(help="Begin nothing further after so long, the networks sharing it.", min=0.01)
    ] = None,
    output: OutputOption = None,
) -> None:
    """Measure a network on a GPU: ONNX Runtime, PyTorch, TensorRT, batch 1 to 256, against the roofline.

    PyTorch runs eager, by torch.compile with CUDA graphs, and ahead of time (AOTInductor), in FP16 and BF16.

    Crops are on the GPU and scores stay there; what is timed is the network. Scores are compared with float32
    PyTorch first. Results are written after each engine, so a run that is cut short keeps what it has.

    [bold]Examples[/]

      deepfake bench gpu
      deepfake bench gpu --checkpoint detector.safetensors --engines tensorrt-fp16,onnxruntime-fp16
      deepfake bench gpu --device cpu --network timm:efficientnet_b0@224 --batches 1,8 --engines onnxruntime-fp32

    [bold]Exit codes[/]  0 something was measured · 1 nothing could be measured, or an engine's scores differ · 2 an
    option is wrong, or the export extra is not installed
    """
    (device,) = read_names("--device", device, DEVICES)[:1]
    sizes = sorted(set(read_counts("--batches", batches)))
    if not sizes:
        raise OptionError("--batches is empty; expected whole numbers with commas between, such as 1,8,32")
    for module in ("torch", "onnx", "safetensors", "timm"):
        require_extra(module, extra="export")
    from deepfake_bench.gpu.engines import ENGINES
    from deepfake_bench.gpu.measure import make_subject, measure_engine
    from deepfake_bench.gpu.roofline import measure_ceilings, release
    from deepfake_export import pin_checkpoint

    names = read_names("--engines", engines, ("all", *ENGINES))
    names = list(ENGINES) if "all" in names else names
    specs = parse_networks(network) if checkpoint is None else [pin_checkpoint(checkpoint, spec).spec]
    if device == "cuda" and find_gpu() is None:
        raise EngineError("no NVIDIA GPU was found; --device cpu tries the command with the engines that a CPU has")
    screen, ceilings, started = Console(stderr=True), None, time.monotonic()
    # Where PyTorch sees no GPU, its engines say why, and the others may run.
    with screen.status("Ceilings of the device"), suppress(EngineError):
        ceilings = measure_ceilings(device, seconds=min(seconds, CEILING_S))
        release(device)
    data: dict[str, Any] = {"device": device, "seconds_per_measurement": seconds}
    data |= {"ceilings": None if ceilings is None else asdict(ceilings), "networks": []}
    path: Path | None = None
    differs = False
    for number, model_spec in enumerate(specs, start=1):
        until = math.inf if minutes is None else started + 60 * minutes * number / len(specs)
        with screen.status(model_spec.name), tempfile.TemporaryDirectory(prefix="deepfake-bench-gpu-") as folder:
            subject = make_subject(model_spec, _load(checkpoint, model_spec), Path(folder), max(sizes))
            entry = _entry(subject)
            data["networks"].append(entry)
            speeds = []
            for name in names:
                speed = measure_engine(
                    name,
                    ENGINES[name],
                    subject,
                    sizes,
                    device=device,
                    seconds=seconds,
                    ceilings=ceilings,
                    until=until,
                )
                speeds.append(speed)
                if speed.batches:
                    entry["engines"].append(asdict(speed))
                else:
                    entry["not_measured"][name] = speed.reason
                if speed.batches or path is not None:  # after each engine: one may take the process along
                    default = default_path("gpu" if device == "cuda" else "gpu-code-on-cpu")
                    path = write_results("gpu", data, output or default)
        _print(model_spec.name, speeds, sizes)
        differs = differs or any(item.differs for item in speeds)
    if path is not None:
        typer.echo(f"written to {path}")
    if path is None or differs:
        raise typer.Exit(1)


def parse_networks(text: str) -> list[ModelSpec]:
    """Return the specs of untrained networks in a text like ``timm:efficientnet_b0@224``."""
    specs = []
    for part in (item.strip() for item in text.split(",")):
        architecture, _, pixels = part.rpartition("@")
        if not architecture or not pixels.isdecimal():
            raise OptionError(f"--network is {part!r}; expected ARCHITECTURE@PIXELS, as timm:efficientnet_b0@224")
        specs.append(
            ModelSpec(
                name=f"untrained_{architecture.rpartition(':')[2]}_{pixels}",
                architecture=architecture,
                input_height_px=int(pixels),
                input_width_px=int(pixels),
                training_data="Random weights, for measurements of speed.",
                trained=False,
            )
        )
    return specs


def _load(checkpoint: Path | None, spec: ModelSpec) -> nn.Module:
    if checkpoint is not None:
        from deepfake_export import load_network

        return load_network(checkpoint, spec).network
    from deepfake_export.demo.untrained import build_untrained_network

    return build_untrained_network(spec)


def _entry(subject: Subject) -> dict[str, Any]:
    """Return what results say of a network, without an engine yet."""
    spec = subject.spec
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "input_size_wh": list(spec.input_size_wh),
        "checkpoint_sha256": spec.checkpoint_sha256,
        "gflops_per_crop": round(sum(item.flops for item in subject.operations(1)) / 1e9, 4),
        "engines": [],
        "not_measured": {},
    }


def _print(title: str, speeds: Sequence[EngineSpeed], sizes: Sequence[int]) -> None:
    """Print crops/s of each engine and batch size with the share of the roofline, and what was not measured."""
    items = [{"engine": speed.engine, **{f"at_{item['batch']}": item for item in speed.batches}}
             for speed in speeds if speed.batches]  # fmt: skip
    columns = [("engine", "{engine}")]
    columns += [
        (str(size), f"{{at_{size}[crops_per_s]:.0f}} ({{at_{size}[share_of_roofline]:.0%}})") for size in sizes
    ]
    if items:
        print_table(items, columns, title=f"{title}, crops/s at each batch (share of the roofline)")
    engines_by_reason: dict[str, list[str]] = {}
    for speed in speeds:
        if speed.reason:
            engines_by_reason.setdefault(speed.reason, []).append(speed.engine)
    for reason, engines in engines_by_reason.items():
        typer.echo(f"  {', '.join(engines)}: {reason}")
