"""`deepfake bench gpu`: one network on a GPU through every engine, batch 1 to 256, against the roofline.

The scores of each engine are compared with float32 PyTorch on the CPU before it is timed. What cannot be measured
here is in the results as "not measured", with the reason; without a GPU that is everything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from deepfake_bench.gpu.measure import DIFFERS, MEASURED, NOT_MEASURED, Batch, EngineResult, measure_engine
from deepfake_bench.machine.environment import default_path, environment, write_results
from deepfake_bench.machine.tables import table_console
from deepfake_export.tensorrt.gpu import find_gpu
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import EngineError, OptionError
from deepfake_preprocess.support.extras import require_extra

if TYPE_CHECKING:
    from torch import nn

    from deepfake_bench.gpu.engines import EngineKind, Subject
    from deepfake_bench.gpu.measure import Work
    from deepfake_bench.gpu.roofline import Ceilings

PACKAGES = ("torch", "timm", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx_cu12_libs", "numpy")
DEFAULT_NETWORKS = "timm:efficientnet_b0@224,timm:efficientnet_b4@380"
DEFAULT_BATCHES = "1,2,4,8,16,32,64,128,256"
DEVICES = ("cuda", "cpu")
VERIFIED_CROPS = 32
"""Different crops; larger batches repeat them. Float32 on a CPU takes its time."""

REFERENCE_BATCH = 8
CEILING_S = 1.0
"""Length of each ceiling's measurement at most."""

NO_GPU = "no NVIDIA GPU was found"


def gpu(
    network: Annotated[
        str, typer.Option(help="ARCHITECTURE@PIXELS with random weights, several with commas between.")
    ] = DEFAULT_NETWORKS,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Measure this checkpoint instead of --network; its spec lies beside it.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Spec of --checkpoint where it lies elsewhere.")] = None,
    engines: Annotated[str, typer.Option(help="Names of engines, with commas between.")] = "all",
    batches: Annotated[str, typer.Option(help="Crops per execution.")] = DEFAULT_BATCHES,
    device: Annotated[
        str, typer.Option(help="cuda, or cpu to try the command with the engines that a CPU has.")
    ] = "cuda",
    seconds: Annotated[float, typer.Option(help="Length of each measurement.", min=0.01)] = 1.0,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-gpu.json.")
    ] = None,
) -> None:
    """Measure a network on a GPU: ONNX Runtime, PyTorch, TensorRT, batch 1 to 256, against the roofline.

    Crops lie on the GPU and scores stay there; what is timed is the network. Scores are compared with float32
    PyTorch first. Results are written after each engine, so a run that is cut short keeps what it has.

    [bold]Examples[/]

      deepfake bench gpu
      deepfake bench gpu --checkpoint detector.safetensors --engines tensorrt-fp16,onnxruntime-fp16
      deepfake bench gpu --device cpu --network timm:efficientnet_b0@224 --batches 1,8 --engines onnxruntime-fp32

    [bold]Exit codes[/]  0 something was measured · 1 nothing could be measured, or an engine's scores differ · 2 an
    option is wrong, or the export extra is not installed
    """
    if device not in DEVICES:
        raise OptionError(f"--device is {device!r}; allowed: {', '.join(DEVICES)}")
    sizes = parse_batches(batches)
    for module in ("torch", "onnx", "onnxscript", "safetensors", "timm"):
        require_extra(module, extra="export")
    from deepfake_bench.gpu.roofline import count_operations

    kinds = _parse_engines(engines)
    models = _models(network, checkpoint, spec)
    what = "gpu" if device == "cuda" else "gpu-code-on-cpu"
    problem = NO_GPU if device == "cuda" and find_gpu() is None else ""
    path = output or default_path(what)
    if problem and path.is_file() and f'"status": "{MEASURED}"' in path.read_text(encoding="utf-8"):
        raise EngineError(
            f"{problem}, and {path} holds measurements, which are kept; name another file with --output"
        )
    screen = Console(stderr=True)
    with screen.status("Ceilings of the device"):
        ceilings, ceilings_told = _ceilings(device, problem, min(seconds, CEILING_S))
    entries: list[dict[str, Any]] = []
    data = {
        "benchmark": "gpu",
        "environment": environment(PACKAGES),
        "device": device,
        "status": NOT_MEASURED if problem else MEASURED,
        "reason": problem,
        "seconds_per_measurement": seconds,
        "ceilings": ceilings_told,
        "networks": entries,
    }
    for model_spec in models:
        with screen.status(f"{model_spec.name}: building"):
            net = _load(checkpoint, model_spec, to_run=not problem)
            work = {size: count_operations(net, size, model_spec.input_size_wh) for size in sizes}
        entry = _describe(model_spec, work, ceilings)
        entries.append(entry)
        results: list[EngineResult] = []
        with tempfile.TemporaryDirectory(prefix="deepfake-bench-gpu-") as folder:
            # Without a GPU there is nothing to run, and nothing to wait for.
            subject = None if problem else _subject(model_spec, net, Path(folder), max(sizes))
            for name, kind in kinds.items():
                if subject is None:
                    result = EngineResult(name, kind.precision, NOT_MEASURED, problem, ())
                else:
                    with screen.status(f"{model_spec.name}: {name}"):
                        result = measure_engine(name, kind, subject, work, device, seconds, ceilings)
                results.append(result)
                entry["engines"] = [asdict(item) for item in results]
                write_results(what, data, path=path)  # after each engine: one may take the process along
        _print(model_spec.name, results, sizes)
    typer.echo(f"written to {path}")
    told = [item for entry in entries for item in entry["engines"]]
    if all(item["status"] == NOT_MEASURED for item in told) or any(item["status"] == DIFFERS for item in told):
        raise typer.Exit(1)


def parse_batches(text: str) -> list[int]:
    """Return batch sizes, ascending, of a text like ``1,2,4``.

    Raises:
        OptionError: one is no whole number from 1.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise OptionError(f"--batches is {text!r}; allowed: whole numbers from 1 with commas between, as 1,8,64")
    return sorted({int(part) for part in parts})


def parse_networks(text: str) -> list[ModelSpec]:
    """Return the specs of untrained networks in a text like ``timm:efficientnet_b0@224``.

    Raises:
        OptionError: it is no such list.
        SpecError: an architecture or a size is not allowed.
    """
    specs = []
    for part in (item.strip() for item in text.split(",") if item.strip()):
        architecture, _, pixels = part.rpartition("@")
        if not architecture or not pixels.isdecimal():
            raise OptionError(f"--network is {part!r}; expected ARCHITECTURE@PIXELS, as timm:efficientnet_b0@224")
        specs.append(
            ModelSpec(
                name=f"untrained_{architecture.rpartition(':')[2]}_{pixels}",
                architecture=architecture,
                input_height_px=int(pixels),
                input_width_px=int(pixels),
                training_data="UNTRAINED: random weights, for measurements of speed. Its scores mean nothing.",
            )
        )
    if not specs:
        raise OptionError("--network is empty; expected ARCHITECTURE@PIXELS, as timm:efficientnet_b0@224")
    return specs


def _models(network: str, checkpoint: Path | None, spec: Path | None) -> list[ModelSpec]:
    if checkpoint is None:
        return parse_networks(network)
    from deepfake_export import pin_checkpoint

    return [pin_checkpoint(checkpoint, spec).spec]


def _parse_engines(text: str) -> dict[str, EngineKind]:
    from deepfake_bench.gpu.engines import ENGINES

    names = [item.strip() for item in text.split(",") if item.strip()]
    if names == ["all"]:
        return dict(ENGINES)
    if not names or set(names) - set(ENGINES):
        raise OptionError(f"--engines is {text!r}; allowed: all, or of {', '.join(ENGINES)}")
    return {name: ENGINES[name] for name in names}


def _ceilings(device: str, problem: str, seconds: float) -> tuple[Ceilings | None, dict[str, Any]]:
    from deepfake_bench.gpu.engines import require_torch_device
    from deepfake_bench.gpu.roofline import measure_ceilings, release

    try:
        require_torch_device(device)
    except EngineError as exc:
        problem = problem or str(exc)
    if problem:
        return None, {"status": NOT_MEASURED, "reason": problem}
    ceilings = measure_ceilings(device, seconds=seconds)
    release(device)
    return ceilings, {"status": MEASURED, "reason": "", **asdict(ceilings)}


def _load(checkpoint: Path | None, spec: ModelSpec, *, to_run: bool) -> nn.Module:
    """Return the network; with random weights and not `to_run`, one that has not been scaled to give scores."""
    if checkpoint is not None:
        from deepfake_export import load_network

        return load_network(checkpoint, spec).network
    if to_run:
        from deepfake_export.demo.untrained import build_untrained_network

        return build_untrained_network(spec)
    from deepfake_export.checkpoint.architectures import build_network

    return build_network(spec)


def _subject(spec: ModelSpec, network: nn.Module, folder: Path, max_batch_size: int) -> Subject:
    import torch

    from deepfake_bench.gpu.engines import Subject
    from deepfake_export.graph.served_detector import ServedDetector
    from deepfake_export.proof.crops import batches_of, generate_crops

    detector = ServedDetector(network, spec).eval()
    crops = generate_crops(min(VERIFIED_CROPS, max_batch_size), spec.input_size_wh)
    with torch.inference_mode():
        scores = [detector(torch.from_numpy(part))[0][:, 0].numpy() for part in batches_of(crops, REFERENCE_BATCH)]
    return Subject(spec, detector, crops, np.concatenate(scores), folder, max_batch_size)


def _describe(spec: ModelSpec, work: Work, ceilings: Ceilings | None) -> dict[str, Any]:
    from deepfake_bench.gpu.roofline import BYTES_PER_VALUE

    width, height = spec.input_size_wh
    largest = max(work)
    values = sum(item.values for item in work[largest])
    upload = None if ceilings is None else ceilings.upload_bytes_per_s
    return {
        "name": spec.name,
        "architecture": spec.architecture,
        "input_size_wh": [width, height],
        "checkpoint_sha256": spec.checkpoint_sha256,
        "gflops_per_crop": round(sum(item.flops for item in work[largest]) / largest / 1e9, 4),
        "mbytes_per_crop": {
            precision: round(size * values / largest / 1e6, 3) for precision, size in BYTES_PER_VALUE.items()
        },
        "mbytes_at_batch": largest,
        "upload_crops_per_s": None if upload is None else round(upload / (width * height * 3), 1),
        "engines": [],
    }


def _print(title: str, results: Sequence[EngineResult], sizes: Sequence[int]) -> None:
    """Print crops/s of each engine and batch size with the share of the roofline, and what was not measured."""
    typer.echo(f"{title}, crops/s at each batch (share of the roofline)")
    table = Table(box=None, header_style="bold")
    table.add_column("engine", no_wrap=True)
    for size in sizes:
        table.add_column(str(size), justify="right", no_wrap=True)
    for result in results:
        cells = {item.batch: item for item in result.batches}
        if cells:
            table.add_row(result.engine, *(_cell(cells.get(size)) for size in sizes))
    if table.row_count:
        table_console().print(table)
    engines_by_note: dict[str, list[str]] = {}
    for result in results:
        if result.reason:
            engines_by_note.setdefault(f"{result.status}: {result.reason}", []).append(result.engine)
    for note, engines in engines_by_note.items():
        typer.echo(f"  {', '.join(engines)}: {note}")


def _cell(item: Batch | None) -> str:
    if item is None:
        return "-"
    share = "" if item.share_of_roofline is None else f" ({100 * item.share_of_roofline:.0f}%)"
    return f"{item.crops_per_s:.0f}{share}"
