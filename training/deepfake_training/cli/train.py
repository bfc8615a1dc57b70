"""`deepfake train`, `pack-faces`, `average-runs`, `publish-checkpoint`: thin shells around what does the work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final, TypeVar

import torch
import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from deepfake_preprocess.errors import OptionError
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.packing import FRAMES_PER_VIDEO, JPEG_QUALITY, MAX_PICTURE_PX, FaceFolders, pack_faces
from deepfake_training.data.taught import TaughtFolder
from deepfake_training.loop.averaging import average_runs
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC, LAST, publish
from deepfake_training.loop.config import CONFIG, TrainConfig
from deepfake_training.loop.run import EpochResult, TrainingRun

EXAMPLE: Final = "example.yaml"
Device = Annotated[str | None, typer.Option(metavar="cpu|cuda", show_default="cuda where there is one")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare crops.")]
Threads = Annotated[int | None, typer.Option(min=1, help="PyTorch's threads on the CPU.", show_default="its choice")]
Faces = TypeVar("Faces", bound=PackedFaces | TaughtFolder)


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML or JSON file: faces, detector and recipe.", show_default="that of --resume"),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-o", metavar="DIR", help="Directory of the run.", show_default="that of --resume"
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Go on with the run in this directory, or from one of its checkpoints."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of CONFIG (mixture.swap=0); repeatable."),
    ] = None,
    device: Device = None,
    workers: Workers = 1,
    threads: Threads = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Keep a checkpoint of every epoch.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a CONFIG with all keys and comments.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print what would be trained.")] = False,
) -> None:
    """Train a detector on real and fake faces, or on real faces alone by self-blending.

    [bold]Examples[/]

      deepfake train --example > train.yaml
      deepfake train train.yaml --output-dir runs/first
      deepfake train --resume runs/first
      deepfake train train.yaml --output-dir runs/second --set learning_rate=1e-4 --set seed=1
    """
    if example:
        print(files(__package__).joinpath(EXAMPLE).read_text(encoding="utf-8"), end="")
        return
    if resume is not None:
        resumed = resume if resume.is_dir() else resume.parent
        config, output_dir = config or resumed / CONFIG, output_dir or resumed
    if config is None:
        raise OptionError("name a CONFIG file; `deepfake train --example` prints one to start from")
    chosen = TrainConfig.from_file(config, settings or ())
    if print_config:
        print(yaml.safe_dump(chosen.to_dict(), sort_keys=False, allow_unicode=True), end="")
        return
    if output_dir is None:
        raise OptionError("name the directory of the run with --output-dir")
    if resume is None and (output_dir / LAST).exists():
        raise OptionError(
            f"{output_dir} holds a run already; go on with --resume {output_dir}, or name another directory"
        )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    device = usable(device)
    if threads is not None:
        torch.set_num_threads(threads)
    faces = find_faces(console, chosen.load_faces)
    run = TrainingRun(faces, chosen, output_dir, device=device, workers=workers)
    console.print(
        f"{faces!r}: {len(run.train_set)} crops to train on, {len(run.validation_set)} held out; "
        f"{chosen.spec.architecture} from {run.initial_note}, on {device}"
    )
    if resume is not None:
        run.resume(resume)
        console.print(f"resumed after epoch {run.epoch}")
    best = _train_visibly(run, console, keep_all=keep_all)
    console.print(
        f"best: epoch {best.epoch}, validation AUC {best.validation_auc:.4f}; {output_dir / BEST} and "
        f"{output_dir / BEST_SPEC} are what `deepfake evaluate` and `deepfake export` take"
    )


def usable(device: str | None) -> str:
    """Return the device to compute on, as it was asked for or as there is one."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise OptionError(f"device {device!r} cannot be used here; choose cpu, or cuda on a machine with a GPU")
    return device


def find_faces(console: Console, find: Callable[..., Faces]) -> Faces:
    """Show how far the search is, and what it had to leave out."""
    with console.status("looking for faces") as status:

        def progress(name: str, number: int, count: int) -> None:
            status.update(f"looking for faces: {number + 1} of {count} ({name})")

        faces = find(progress=progress)
    if isinstance(faces, PackedFaces):
        for note in faces.notes:
            console.print(note, style="yellow")
    return faces


def _train_visibly(run: TrainingRun, console: Console, *, keep_all: bool) -> EpochResult:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with SummaryWriter(str(run.directory / "tensorboard"), purge_step=run.epoch + 1) as writer, bar:
        task = bar.add_task("epoch", total=None, loss="")

        def on_batch(epoch: int, batch: int, batches: int, loss: float) -> None:
            bar.update(task, description=f"epoch {epoch}", total=batches, completed=batch, loss=f"loss {loss:.3f}")

        def on_epoch(result: EpochResult) -> None:
            for key, value in dataclasses.asdict(result).items():
                if key not in ("epoch", "best"):
                    writer.add_scalar(key, value, result.epoch)
            writer.flush()
            console.print(
                f"epoch {result.epoch}/{run.config.epochs}: loss {result.train_loss:.4f}, validation loss "
                f"{result.validation_loss:.4f}, AUC {result.validation_auc:.4f}{' (best)' if result.best else ''}, "
                f"{result.seconds:.0f} s"
            )

        return run.train(keep_all=keep_all, on_batch=on_batch, on_epoch=on_epoch)


def pack_faces_command(
    output: Annotated[Path, typer.Argument(help="File to write (.safetensors).")],
    real: Annotated[list[str] | None, typer.Option(metavar="DIR", help="Folder of real faces; repeatable.")] = None,
    fake: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="Folder of fakes; repeatable. Self-blending needs none.")
    ] = None,
    frames_per_video: Annotated[int, typer.Option(help="Frames to take from each video.")] = FRAMES_PER_VIDEO,
    identity_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Its groups are the people in a file's name, whom a split keeps together."
        ),
    ] = None,
    max_side: Annotated[int, typer.Option(help="Longest side of a face's picture, in pixels.")] = MAX_PICTURE_PX,
    quality: Annotated[int, typer.Option(help="JPEG quality of the pictures.")] = JPEG_QUALITY,
) -> None:
    """Find the faces in folders of images and videos once, and write them to one file: `pack` of `deepfake train`."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    folders = FaceFolders(
        real=tuple(real or ()),
        fake=tuple(fake or ()),
        frames_per_video=frames_per_video,
        identity_pattern=identity_pattern,
    )
    faces = find_faces(console, partial(pack_faces, folders, max_side_px=max_side, quality=quality))
    faces.save(output)
    console.print(f"{faces!r}\n{output}: {output.stat().st_size / 1e6:.1f} MB")


def average_runs_command(
    runs: Annotated[list[Path], typer.Argument(help="Directories of training runs, at least two.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", metavar="DIR", help="Directory of the new run.")],
) -> None:
    """Take the mean of several runs' best weights: often better than each, and as fast.

    For runs that went on from each other's weights, with the same faces held out. Look at the mean before you use it:

    [bold]Example[/]

      deepfake average-runs runs/first runs/second --output-dir runs/mean
      deepfake evaluate-run runs/mean --write-spec runs/mean/best.yaml
    """
    path = average_runs(runs, output_dir)
    Console(stderr=True, highlight=False).print(f"{path}: mean of {len(runs)} runs")


def publish_checkpoint(
    run: Annotated[Path, typer.Argument(help="Directory of a training run.")],
    output: Annotated[Path, typer.Argument(help="File to write (.safetensors); its spec gets the suffix .yaml.")],
    training_data: Annotated[
        str, typer.Option(help="For the spec: what it was trained on, what its scores are worth.")
    ] = "",
    changes_of: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Leave out the weights that are as in this file, which others have."),
    ] = None,
    half_at: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE", help="This score becomes 0.5, such as a calibration's threshold; the order stays."
        ),
    ] = None,
    input_px: Annotated[
        int | None,
        typer.Option(metavar="PX", min=16, show_default="as trained", help="Side of the crops; smaller cost less."),
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="What the crops show around the face's box.", show_default="as trained")
    ] = None,
) -> None:
    """Write the best weights of a run in half precision, with their spec, for others to use.

    With another size or margin of the crops the scores differ: evaluate what was published.
    """
    spec_path, _ = publish(
        run, output, training_data=training_data, base=changes_of, half_at=half_at, input_px=input_px, margin=margin
    )
    Console(stderr=True, highlight=False).print(f"{output} ({output.stat().st_size / 1e6:.1f} MB) and {spec_path}")
