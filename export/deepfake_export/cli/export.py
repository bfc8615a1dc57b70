"""`deepfake export`: a thin shell around `deepfake_export.export_checkpoint`.

Plain functions with typer's annotations; the `deepfake` command mounts them by name. Errors are raised as
`DeepfakeError` and printed there.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepfake_export.api import ExportResult, export_checkpoint
from deepfake_export.proof.gate import BEST
from deepfake_export.repository.listing import size_bytes
from deepfake_export.request.faces import FaceOptions
from deepfake_export.request.precisions import PrecisionOptions
from deepfake_export.request.request import ExportRequest
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_preprocess.cli.console import results_alone, results_console, shown
from deepfake_preprocess.cli.grouping import Group, with_groups
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, JsonOption, RepositoryOption
from deepfake_preprocess.contract.triton_config import PRODUCTION_MAX_BATCH_SIZE


def _precisions(
    precisions: Annotated[
        str,
        typer.Option(help="Precisions to measure, as fp32,fp16,bf16,int8; auto: what promises speed on this CPU."),
    ] = "fp32",
    promote: Annotated[
        str, typer.Option(help="What to serve: best (the fastest that passes), fp32, fp16, bf16 or int8.")
    ] = BEST,
    int8_target: Annotated[str, typer.Option(help="Form of INT8: cpu, or tensorrt to build an engine from.")] = "cpu",
    int8_finetune: Annotated[
        float,
        typer.Option(metavar="MINUTES", help="Let the weights learn INT8, where rounding is not enough."),
    ] = 0.0,
) -> PrecisionOptions:
    return PrecisionOptions(
        [item.strip().lower() for item in precisions.split(",") if item.strip()],
        promote=promote,
        int8_target=int8_target,
        int8_finetune=int8_finetune,
    )


def _faces(
    calibration: Annotated[
        Path | None, typer.Option(help="Directory of your clips or face images; 500 faces or more are best.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV 'path,real|fake' for --calibration. Default: folders 'real' and 'fake'.")
    ] = None,
    crops: Annotated[
        Path | None, typer.Option(help="Directory of face crops for the proof. Default: generated images.")
    ] = None,
) -> FaceOptions:
    return FaceOptions(calibration, labels, crops)


@with_groups
def export(
    context: typer.Context,
    precisions: Annotated[PrecisionOptions, Group(_precisions, "Precisions")],
    faces: Annotated[FaceOptions, Group(_faces, "Faces")],
    checkpoint: Annotated[
        Path, typer.Argument(help="Weights (.safetensors, or of torch.save), or an ensemble's .yaml.")
    ],
    spec: Annotated[
        Path | None, typer.Option(help="Model spec (YAML). Default: the .yaml of the checkpoint's name next to it.")
    ] = None,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    max_batch_size: Annotated[
        int, typer.Option(help="Largest batch the server will form.")
    ] = PRODUCTION_MAX_BATCH_SIZE,
    artifacts: Annotated[
        Path | None, typer.Option(help="Directory for the ONNX files of all precisions that pass.")
    ] = None,
    tensorrt: Annotated[
        bool,
        typer.Option("--tensorrt", help="Also build a TensorRT plan; without a GPU, check that one can be built."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Make a new version even if nothing has changed.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the messages of PyTorch's exporter.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a PyTorch checkpoint to ONNX, prove it, and add it to a model repository."""
    request = ExportRequest(
        checkpoint,
        repository,
        spec=spec,
        max_batch_size=max_batch_size,
        precisions=precisions,
        faces=faces,
        artifacts=artifacts,
        tensorrt=EngineOptions() if tensorrt else None,
        force=force,
        verbose=verbose,
        command=_command_line(context),
    )
    result = _run(request, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
    else:
        # Notes name parameters, as the library does; here they are options.
        options = {f"`{item.name}`": item.opts[0] for item in context.command.params}
        notes = [re.sub(r"`\w+`", lambda found: options.get(found[0], found[0]), note) for note in result.notes]
        _print_summary(Console(highlight=False, soft_wrap=True), result, notes)


def _run(request: ExportRequest, *, quiet: bool) -> ExportResult:
    """Export with progress on stderr: stdout is the result alone."""
    console = Console(stderr=True, highlight=False)
    with console.status("Starting") as status:

        def show(step: str) -> None:
            status.update(f"{shown(step)} ...")
            if not quiet:
                console.print(f"[dim]{shown(step)}[/dim]", soft_wrap=True)

        with results_alone():
            return export_checkpoint(request, on_step=show)


def _command_line(context: typer.Context) -> str:
    """Return the command line that makes the same version again: what was given, and --force."""
    words = ["deepfake", "export"]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in ("as_json", "force") or source is None or source.name == "DEFAULT":
            continue
        value = context.params[name]
        is_option = parameter.param_type_name == "option"
        words += [parameter.opts[0]] if is_option else []
        words += [] if value is True else [str(value)]
    return shlex.join([*words, "--force"])


def _print_summary(console: Console, result: ExportResult, notes: Sequence[str]) -> None:
    what = "Exported" if result.created else "Nothing to do for"
    console.print(f"{what} [bold]{shown(result.manifest.spec.name)}[/bold] version {result.version}")
    table = Table.grid(padding=(0, 2))
    for name, value in _summary_rows(result):
        table.add_row(name, shown(value))
    results_console().print(table)
    for note in notes:
        console.print(f"Note: {shown(note)}.")
    console.print(f"Next: deepfake serve --repository {shown(result.repository)}")


def _summary_rows(result: ExportResult) -> list[tuple[str, str]]:
    spec, figures = result.manifest.spec, result.manifest.parity
    probability, logit = figures["probability"], figures["logit"]
    return [
        ("model", str(result.version_dir)),
        ("network", f"{spec.architecture}, {spec.input_width_px}x{spec.input_height_px} px, {spec.head.kind} head"),
        ("engine", str(result.manifest.served_forms[0])),
        ("size", f"{size_bytes(result.version_dir) / 1e6:.1f} MB"),
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
