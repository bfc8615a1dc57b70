"""`deepfake discount-blur`: scores without what faces score that show no detail."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from deepfake_training.cli.train import Device, Threads, Workers, usable
from deepfake_training.loop.discounting import NUM_CROPS, discount_blur


def discount_blur_command(
    run: Annotated[Path, typer.Argument(help="Directory of a training run.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Directory of the new run.")],
    num_crops: Annotated[int, typer.Option(min=20, help="Crops to look at, whole and blurred.")] = NUM_CROPS,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the run's configuration; repeatable."),
    ] = None,
    device: Device = None,
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Take out of a detector's logit what it says of the same face without detail; as fast as before.

    One real face scores higher than another for its light, its skin or the camera. Most of that is still there when
    the face is shrunk to 40 pixels, and most of what betrays a fake is not. Only the last layer changes. Look at the
    result before you use it:

    [bold]Example[/]

      deepfake discount-blur runs/first --output-dir runs/discounted
      deepfake evaluate-run runs/discounted --write-spec runs/discounted/best.yaml
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if threads is not None:
        torch.set_num_threads(threads)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking at crops", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = discount_blur(
            run, output_dir, changes=settings or (), num_crops=num_crops, device=usable(device), workers=workers,
            progress=progress,
        )  # fmt: skip
    console.print(
        f"{found.weights}: what was taken out has {found.share:.0%} of the logits' standard deviation, and its "
        f"correlation with what is said of blurred crops is {found.correlation:.2f} (crops that it was not fitted to)"
    )
