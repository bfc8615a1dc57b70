"""`deepfake export` and `deepfake demo-checkpoint`: thin shells around `api` and `demo`.

Plain functions with typer's annotations; the `deepfake` command mounts them by name. Errors are raised as
`DeepfakeError` and printed there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepfake_export.api import ExportResult, export_checkpoint
from deepfake_export.proof.gate import BEST, parse_precisions
from deepfake_export.spec_file import default_spec_path, read_spec
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import PRODUCTION_MAX_BATCH_SIZE
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.extras import require_extra


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Weights (.safetensors, or of torch.save), or an ensemble's .yaml.")
    ],
    spec: Annotated[
        Path | None,
        typer.Option("--spec", help="Model spec (YAML). Default: the .yaml with the checkpoint's name beside it."),
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    max_batch: Annotated[
        int, typer.Option("--max-batch", help="Largest batch the server will form.")
    ] = PRODUCTION_MAX_BATCH_SIZE,
    crops: Annotated[
        Path | None,
        typer.Option("--crops", help="Directory of face crops for the proof. Default: generated images."),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Precisions to make and measure, for example fp32,fp16,int8.")
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Directory of your clips or face images; 500 faces or more are best."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="CSV 'path,real|fake' for --calibration. Default: folders 'real' and 'fake'."),
    ] = None,
    promote: Annotated[
        str, typer.Option("--promote", help="What to serve: best (the fastest that passes), fp32, fp16 or int8.")
    ] = BEST,
    int8_target: Annotated[
        str, typer.Option("--int8-target", help="Form of INT8: cpu, or tensorrt to build an engine from.")
    ] = "cpu",
    artifacts: Annotated[
        Path | None, typer.Option("--artifacts", help="Directory for the ONNX files of all precisions that pass.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make a new version even if nothing has changed.")] = False,
    tensorrt: Annotated[
        bool,
        typer.Option("--tensorrt", help="Also build a TensorRT plan; without a GPU, check that one can be built."),
    ] = False,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="With --tensorrt: file that keeps kernel timings.")
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="With --tensorrt: a plan that later minor versions load, too."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the messages of PyTorch's exporter.")] = False,
) -> None:
    """Export a PyTorch checkpoint to ONNX, prove it, and add it to a model repository."""
    spec_path = spec if spec is not None else default_spec_path(checkpoint)
    model_spec = read_spec(spec_path)
    if not tensorrt and (timing_cache is not None or version_compatible):
        raise OptionError("--timing-cache and --version-compatible are about TensorRT plans; add --tensorrt")
    engine_options = (
        EngineOptions(timing_cache=timing_cache, version_compatible=version_compatible) if tensorrt else None
    )
    # Progress goes to stderr, so that stdout is the result alone.
    console = Console(stderr=True)
    with console.status("Starting") as status:

        def show(step: str) -> None:
            status.update(f"{escape(step)} ...")
            if not as_json:
                console.print(f"[dim]{escape(step)}[/dim]", highlight=False, soft_wrap=True)

        result = export_checkpoint(
            checkpoint,
            model_spec,
            repository,
            max_batch_size=max_batch,
            crops=crops,
            force=force,
            tensorrt=engine_options,
            verbose=verbose,
            precisions=parse_precisions(precision),
            calibration=calibration,
            labels=labels,
            promote=promote,
            int8_target=int8_target,
            artifacts=artifacts,
            spec_path=spec,
            on_step=show,
        )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print_summary(Console(), result)


def demo_checkpoint(
    directory: Annotated[Path, typer.Argument(help="Where to write checkpoint and spec.")] = Path(),
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="A network at 224 px with random weights instead, to measure speed with."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Write the demo checkpoint (a trained EfficientNet-B0), its spec and its model card.

    The model card says what it was trained on, what it is worth, and where it fails.
    """
    if untrained:
        for module in ("torch", "timm", "safetensors"):
            require_extra(module, extra="export")
        from deepfake_export.demo.untrained import write_untrained_checkpoint as write
    else:
        from deepfake_export.demo.checkpoint import write_demo_checkpoint as write
    checkpoint, spec_path = write(directory)
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(checkpoint), "spec": str(spec_path)}))
        return
    console = Console()
    console.print(f"Wrote {escape(str(checkpoint))} and {escape(spec_path.name)}", highlight=False, soft_wrap=True)
    console.print(escape(ModelSpec.from_yaml(spec_path).training_data), highlight=False, soft_wrap=True)
    console.print(f"Next: deepfake export {escape(str(checkpoint))}", highlight=False, soft_wrap=True)


def _print_summary(console: Console, result: ExportResult) -> None:
    spec, figures = result.manifest.spec, result.manifest.parity
    what = "Exported" if result.created else "Nothing to do for"
    console.print(f"{what} [bold]{escape(spec.name)}[/bold] version {result.version}", highlight=False)
    table = Table.grid(padding=(0, 2))
    for name, value in _summary_rows(result, figures):
        table.add_row(name, escape(value))
    console.print(table, highlight=False)
    for note in result.notes:
        console.print(f"Note: {escape(note)}.", highlight=False, soft_wrap=True)
    console.print(
        f"Next: deepfake serve --repository {escape(str(result.repository))}", highlight=False, soft_wrap=True
    )


def _summary_rows(result: ExportResult, figures: Any) -> list[tuple[str, str]]:
    spec = result.manifest.spec
    probability, logit = figures["probability"], figures["logit"]
    return [
        ("model", str(result.version_dir)),
        ("network", f"{spec.architecture}, {spec.input_width_px}x{spec.input_height_px} px, {spec.head.kind} head"),
        ("precision", result.manifest.precision.upper()),
        ("size", f"{figures['size_bytes'] / 1e6:.1f} MB"),
        (
            "probability",
            f"differs by at most {probability['max_abs']:.1e} from PyTorch (limit {probability['limit']:.2g})",
        ),
        ("logit", f"differs by at most {logit['max_abs']:.1e} (limit {logit['limit']:.2g})"),
        (
            "verdicts",
            f"{figures['verdict_flips']} of {figures['num_crops']} flipped, at batch "
            f"{', '.join(map(str, figures['batch_sizes']))}",
        ),
        ("crops", str(figures["crops"])),
    ]
