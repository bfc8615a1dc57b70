"""`deepfake teach`: a large detector's answers, for a small one to learn from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from deepfake_training.cli.train import Device, Threads, Workers, find_faces, usable
from deepfake_training.loop.config import TrainConfig
from deepfake_training.loop.distilling import teach


def teach_command(
    config: Annotated[Path, typer.Argument(help="Configuration of the small detector; its `taught` is filled.")],
    teacher: Annotated[Path, typer.Option(metavar="FILE", help="Checkpoint of the large one, its spec beside it.")],
    num_crops: Annotated[
        int | None,
        typer.Option(min=2, help="Crops to train on.", show_default="each real face, and a fake of it"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of CONFIG; repeatable.")
    ] = None,
    device: Device = None,
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Write crops with a large detector's answers, which `deepfake train` of the same CONFIG then learns from.

    What is written stays: a call that was interrupted goes on, and one with more crops adds to them.

    [bold]Example[/]

      deepfake teach small.yaml --teacher large.safetensors --num-crops 8000
      deepfake train small.yaml --output-dir runs/small
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    chosen = TrainConfig.from_file(config, settings or ())
    if threads is not None:
        torch.set_num_threads(threads)
    faces = find_faces(console, dataclasses.replace(chosen, taught=None).load_faces)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("teaching", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        folder = teach(
            faces, chosen, teacher, num_crops=num_crops, device=usable(device), workers=workers, progress=progress
        )
    console.print(f"{folder}: crops with the answers of {teacher}")
