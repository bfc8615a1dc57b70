"""`deepfake init-spec`: a first spec for a checkpoint, or the ready one of a published detector."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from deepfake_export.published.recipes import RECIPES
from deepfake_preprocess.cli.console import shown
from deepfake_preprocess.cli.options import JsonOption
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.files import write_whole, writing


def init_spec(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Weights to guess the spec of (.safetensors, or of torch.save).")
    ] = None,
    published: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write the ready spec of this published detector.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the published detectors.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to. Default: the .yaml of the checkpoint's name."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a spec that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a first spec: what the file proves is marked sure, the rest is a guess to be checked.

    Architecture, head, input size and prefixes are found by comparing names and shapes with those of timm,
    torchvision and the published detectors. Nothing is downloaded, and no code of the file is run.

    [bold]Examples[/]

      deepfake init-spec ckpt_best.pth
      deepfake init-spec --published sbi FFc23.tar
      deepfake init-spec --list
    """
    if show_list:
        _print_list(as_json=as_json)
        return
    if checkpoint is None and published is None:
        raise OptionError("there is nothing to write a spec for; name a checkpoint, or --published NAME (see --list)")
    for module in ("torch", "timm", "safetensors"):
        require_extra(module, extra="export")
    from deepfake_export.checkpoint.file import check_file
    from deepfake_export.checkpoint.guessing import guess_spec, recipe_guess

    if checkpoint is not None:
        check_file(checkpoint)
    if published is not None:
        published = _named(published)
    target = output or (checkpoint.with_suffix(".yaml") if checkpoint is not None else Path(f"{published}.yaml"))
    if target.exists() and not force:
        raise OptionError(f"{target} is there already; add --force to write over it, or name another --output")
    if published is not None:
        guess = recipe_guess(published)
    else:
        assert checkpoint is not None
        guess = guess_spec(checkpoint)
    with writing(target, "name another --output"):
        write_whole(target, guess.to_yaml())
    if as_json:
        typer.echo(json.dumps({"written": str(target), **guess.to_dict()}, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(escape(guess.to_yaml()), end="")
    console.print(f"\nWrote {shown(target)}.")
    if not guess.recognized:
        console.print("The network was not recognized: the spec names one that you must write.")
    console.print("Check what is a guess: a wrong size, mean, color order or crop changes scores silently.")
    name = str(checkpoint) if checkpoint is not None else "CHECKPOINT"
    option = "" if checkpoint is not None and output is None else f" --spec {target}"
    console.print(f"Next: deepfake export {shown(name)}{shown(option)}")


def _named(text: str) -> str:
    """Return the name of a recipe, however it is spelled."""
    plain = {re.sub(r"[^a-z0-9]", "", name): name for name in RECIPES}
    wanted = re.sub(r"[^a-z0-9]", "", text.lower())
    if wanted not in plain:
        near = difflib.get_close_matches(wanted, plain, n=3, cutoff=0.4)
        allowed = ", ".join(plain[name] for name in near) or ", ".join(RECIPES)
        raise OptionError(f"--published is {text!r}; allowed: {allowed} (--list shows all)")
    return plain[wanted]


def _print_list(*, as_json: bool) -> None:
    if as_json:
        listed = {
            name: {"title": item.title, "source": item.source, "file": item.file} for name, item in RECIPES.items()
        }
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    width = max(map(len, RECIPES))
    for name, item in RECIPES.items():
        console.print(f"[bold]{name:<{width}}[/]  {shown(item.title)}")
        console.print(f"{'':<{width}}  [dim]{shown(item.source)}[/]")
