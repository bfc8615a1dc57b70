"""`deepfake bench ensemble`: one fused graph against a Triton ensemble of members, both on one embedded Triton.

Both arrangements take the same crops and are checked to give the same probabilities before anything is timed:

- `fused`: what `deepfake export` makes, one model with all members in its graph;
- `triton`: each member is a model of its own, and Triton's ensemble scheduler sends the crops to all of them, and
  their logits to a small model that combines them.

Every model gets the instances and threads that `deepfake serve` gives it. Under each load the two take turns within a
round, and ratios are taken within a round, so that a machine that is busy elsewhere slows both alike.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from deepfake_bench.load.measure import RAMP_S
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.load.senders import Crops, Target
from deepfake_bench.machine.environment import environment, write_results
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME, ModelSpec
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.extras import require_extra
from deepfake_serve._repository import MODEL_FILE
from deepfake_serve.server import EmbeddedTriton

PACKAGES = ("numpy", "onnxruntime", "torch", "timm", "tritonclient", "grpcio")
LOADS = ((1, 1), (8, 1), (4, 8))
"""Requests in flight, and crops in each: a lone user, several, and a video."""
FUSED, TRITON, COMBINE = "fused", "triton_ensemble", "combine"
DEMO_MEMBERS = ("efficientnet_b0", "resnet18", "convnext_atto")
TOLERANCE = 1e-4
"""Of `fake_probability` between the two; the same FP32 arithmetic in other graphs."""

COMBINE_CODE = """
import json
import sys

sys.path[:0] = {search_path!r}
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        self.session = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            parts = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)) for name in self.inputs]
            values = self.session.run(self.outputs, {{"logits": np.concatenate(parts, axis=1)}})
            tensors = [pb_utils.Tensor.from_dlpack(*item) for item in zip(self.outputs, values)]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
"""
"""The model behind the members. By DLPack, for the reason in `deepfake_serve._backend`."""


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured under one load, as medians over the rounds.

    Attributes:
        requests: in flight at a time.
        crops_per_request: batch size of each.
        fused_crops_per_s: through the fused graph.
        triton_crops_per_s: through Triton's ensemble.
        ratio: fused over Triton's ensemble, within a round; above 1 the fused graph is faster.
        rounds: crops per second of each round, fused and Triton's.
    """

    requests: int
    crops_per_request: int
    fused_crops_per_s: float
    triton_crops_per_s: float
    ratio: float
    rounds: list[tuple[float, float]]


class TritonWithMembers(EmbeddedTriton):
    """The embedded Triton, with an ensemble over its models beside them."""

    def __init__(self, repository: Path, members: Sequence[str], combine_path: Path) -> None:
        super().__init__(repository)
        self._members, self._combine_path = tuple(members), combine_path

    def _write_repository(self, target: Path) -> None:
        super()._write_repository(target)
        fused = next(model for model in self.models if model.spec.name == FUSED)
        inputs = [f"logit_{index}" for index in range(len(self._members))]

        combine = target / COMBINE
        (combine / "1").mkdir(parents=True)
        code = COMBINE_CODE.format(search_path=[entry for entry in sys.path if entry], path=str(self._combine_path))
        (combine / "1/model.py").write_text(code, encoding="utf-8")
        config = type(fused.config)(name=COMBINE, backend="python", max_batch_size=fused.config.max_batch_size)
        for name in inputs:
            config.input.add(name=name, data_type=fused.config.output[0].data_type, dims=[1])
        config.output.extend(fused.config.output)
        (combine / "config.pbtxt").write_text(triton_config.config_to_text(config), encoding="utf-8")

        ensemble = target / TRITON
        (ensemble / "1").mkdir(parents=True)
        config = type(fused.config)(name=TRITON, platform="ensemble", max_batch_size=fused.config.max_batch_size)
        config.input.extend(fused.config.input)
        config.output.extend(fused.config.output)
        for member, logit in zip(self._members, inputs, strict=True):
            step = config.ensemble_scheduling.step.add(model_name=member, model_version=-1)
            step.input_map[INPUT_NAME] = INPUT_NAME
            step.output_map[LOGIT_NAME] = logit
        step = config.ensemble_scheduling.step.add(model_name=COMBINE, model_version=-1)
        for name in inputs:
            step.input_map[name] = name
        for output in config.output:
            step.output_map[output.name] = output.name
        (ensemble / "config.pbtxt").write_text(triton_config.config_to_text(config), encoding="utf-8")


def run(file: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Serve an ensemble both ways and compare; return plain JSON data.

    Args:
        file: of the ensemble, as `deepfake export` takes it.
        rounds: how often the two take turns, under each load.
        seconds: length of one measurement.

    Raises:
        DeepfakeError: the ensemble cannot be loaded or served, or the two give other results.
    """
    with tempfile.TemporaryDirectory(prefix="deepfake-bench-") as place:
        members, spec = _write_models(file, Path(place))
        width, height = spec.input_size_wh
        crops = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), dtype=np.uint8)
        with TritonWithMembers(Path(place) / "m", members, Path(place) / "combine.onnx") as triton:
            difference = _largest_difference(triton.grpc_url, crops)
            loads = [
                _measure(triton.grpc_url, crops[:batch], requests, rounds=rounds, seconds=seconds)
                for requests, batch in LOADS
            ]
            share = triton.shares[FUSED]
    return {
        "members": list(members),
        "input_size_wh": list(spec.input_size_wh),
        "instances_per_model": share.instances,
        "threads_per_instance": share.threads,
        "seconds_per_measurement": seconds,
        "largest_probability_difference": difference,
        "loads": [asdict(item) for item in loads],
    }


def _write_models(file: Path, place: Path) -> tuple[tuple[str, ...], ModelSpec]:
    """Write the fused model, each member as a model, and the combining graph; return the members' names."""
    # PyTorch is loaded here, so that --help is quick.
    import torch
    from torch import nn

    from deepfake_export.ensemble.network import load_ensemble
    from deepfake_export.ensemble.spec import EnsembleSpec
    from deepfake_export.graph.onnx_export import export_onnx
    from deepfake_export.graph.served_detector import ServedDetector
    from deepfake_export.repository.layout import refresh_configs

    network, _ = load_ensemble(file)
    spec = replace(EnsembleSpec.from_yaml(file).spec, name=FUSED)
    parts: list[tuple[ModelSpec, nn.Module]] = [(spec, network)]
    parts += [(replace(item, name=f"member_{item.name}"), branch)
              for item, branch in zip(network.member_specs, network.branches, strict=True)]  # fmt: skip
    for part, module in parts:
        version_dir = place / "m" / part.name / "1"
        version_dir.mkdir(parents=True)
        export_onnx(ServedDetector(module, part).eval(), version_dir / MODEL_FILE, part)
        manifest = Manifest.of_directory(version_dir, part, tools={}, parity={})
        manifest.write(version_dir)
        refresh_configs(version_dir.parent, manifest, max_batch_size=triton_config.EMBEDDED_MAX_BATCH_SIZE)

    class Combined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.combine = network.combine

        def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logit = self.combine(logits)
            return torch.sigmoid(logit), logit

    example = torch.zeros(2, len(network.branches))
    torch.onnx.export(
        Combined().eval(), (example,), place / "combine.onnx", dynamo=True, verbose=False,
        input_names=["logits"], output_names=[PROBABILITY_NAME, LOGIT_NAME],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), external_data=False,
    )  # fmt: skip
    return tuple(part.name for part, _ in parts[1:]), spec


def _largest_difference(url: str, crops: Crops) -> float:
    import tritonclient.grpc

    tensor = tritonclient.grpc.InferInput(INPUT_NAME, list(crops.shape), "UINT8")
    tensor.set_data_from_numpy(crops)
    with tritonclient.grpc.InferenceServerClient(url) as client:
        fused, triton = (client.infer(name, [tensor]).as_numpy(PROBABILITY_NAME) for name in (FUSED, TRITON))
    largest = float(np.abs(fused - triton).max())
    if not largest <= TOLERANCE:
        raise DeepfakeError(f"the two arrangements' probabilities differ by {largest:g}; nothing was measured")
    return largest


def _measure(url: str, crops: Crops, requests: int, *, rounds: int, seconds: float) -> Load:
    def rate(load: LoadProcesses) -> float:
        (trace,) = load.run(concurrency=requests, ramp_s=RAMP_S, measure_s=seconds)
        if trace.errors:
            raise DeepfakeError(f"the server failed requests: {trace.errors}; nothing was written")
        if not trace.answered:
            raise DeepfakeError(f"no request was answered within {seconds:g} s; measure for longer with --seconds")
        return len(crops) * trace.answered / seconds

    fused_target, triton_target = (Target("grpc", url, name, len(crops)) for name in (FUSED, TRITON))
    with LoadProcesses(fused_target, crops) as fused, LoadProcesses(triton_target, crops) as triton:
        for load in (fused, triton):
            rate(load)  # connections, allocations and caches of the server
        measured = [(rate(fused), rate(triton)) for _ in range(rounds)]
    return Load(
        requests,
        len(crops),
        round(statistics.median(item[0] for item in measured), 1),
        round(statistics.median(item[1] for item in measured), 1),
        round(statistics.median(item[0] / item[1] for item in measured), 3),
        [(round(first, 1), round(second, 1)) for first, second in measured],
    )


def write_demo_ensemble(directory: Path, members: Sequence[str] = DEMO_MEMBERS, *, size_px: int = 224) -> Path:
    """Write an ensemble of timm networks with made-up weights, and return its YAML file."""
    from safetensors.torch import save_file

    from deepfake_export.demo.untrained import build_untrained_network

    entries = []
    for name in members:
        spec = ModelSpec(name, f"timm:{name}", input_height_px=size_px, input_width_px=size_px)
        save_file(build_untrained_network(spec).state_dict(), directory / f"{name}.safetensors")
        (directory / f"{name}.yaml").write_text(spec.to_yaml(), encoding="utf-8")
        entries.append({"checkpoint": f"{name}.safetensors"})
    path = directory / "ensemble.yaml"
    path.write_text(
        yaml.safe_dump({"name": "demo", "architecture": "ensemble", "members": entries}), encoding="utf-8"
    )
    return path


def ensemble(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ENSEMBLE.yaml]", help="As `deepfake export` takes it. Default: three networks, made-up weights."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the two take turns, under each load.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one measurement.")] = 5.0,
    output: Annotated[
        Path | None, typer.Option(help="Results file; by default benchmarks/results/MACHINE-ensemble.json.")
    ] = None,
) -> None:
    """Compare one fused graph with a Triton ensemble of members, on this machine's embedded Triton.

    Both are checked to give the same probabilities before anything is timed. Ratios are of the fused graph's
    throughput to the ensemble's, within a round; above 1 the fused graph is faster.

    [bold]Examples[/]

      deepfake bench ensemble
      deepfake bench ensemble my_ensemble.yaml --rounds 9
    """
    for module in ("torch", "timm", "onnx"):
        require_extra(module, extra="export")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="deepfake-bench-") as place:
        result = run(file or write_demo_ensemble(Path(place)), rounds=rounds, seconds=seconds)
    data = {"environment": environment(PACKAGES), "load_average_before": round(load_before, 2), "result": result}
    path = write_results("ensemble", data, path=output)
    for load in result["loads"]:
        typer.echo(
            f"{load['requests']} request(s) of {load['crops_per_request']} crop(s): fused "
            f"{load['fused_crops_per_s']:.1f} crops/s, Triton ensemble {load['triton_crops_per_s']:.1f} crops/s, "
            f"ratio {load['ratio']:.2f}"
        )
    typer.echo(f"largest difference {result['largest_probability_difference']:.1e}; written to {path}")
