"""`deepfake train`, `pack-faces`, `average-runs`, `publish-checkpoint`: thin shells around what does the work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deepfake_preprocess.contract.spec import Crop, ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.data.augment import Augmentation
from deepfake_training.data.faces import FaceSet
from deepfake_training.data.packing import JPEG_QUALITY, MAX_PICTURE_PX, pack_faces
from deepfake_training.loop.averaging import average_runs
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC, publish
from deepfake_training.loop.config import Mixture, TrainConfig
from deepfake_training.loop.loop import EpochResult, Run

DEFAULTS = TrainConfig()
MIXTURE = Mixture()

Real = Annotated[
    list[Path] | None, typer.Option("--real", help="Folder of real faces, images or videos; may be given often.")
]
Fake = Annotated[
    list[Path] | None, typer.Option("--fake", help="Folder of fakes; may be given often. Self-blending needs none.")
]
FramesPerVideo = Annotated[int, typer.Option("--frames-per-video", help="Frames to take from each video.")]
IdentityPattern = Annotated[
    str | None,
    typer.Option(
        "--identity-pattern",
        help="Regular expression whose groups are the people in a file's name; the split keeps them together.",
    ),
]


def pack_faces_command(
    out: Annotated[Path, typer.Argument(help="File to write (.safetensors).")],
    real: Real = None,
    fake: Fake = None,
    frames_per_video: FramesPerVideo = 16,
    identity_pattern: IdentityPattern = None,
    max_side: Annotated[
        int, typer.Option("--max-side", help="Shrink a face's picture to this longest side, in pixels.")
    ] = MAX_PICTURE_PX,
    quality: Annotated[int, typer.Option("--quality", help="JPEG quality of the pictures.")] = JPEG_QUALITY,
) -> None:
    """Find the faces of folders once, and write them to one file that `deepfake train --pack` takes."""
    console = Console(stderr=True)
    faces = _pack(
        console,
        real,
        fake,
        frames_per_video=frames_per_video,
        identity_pattern=identity_pattern,
        max_side=max_side,
        quality=quality,
    )
    faces.save(out)
    console.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB", highlight=False)


def train(
    out: Annotated[Path, typer.Argument(help="Directory of the run: checkpoints, log, configuration.")],
    real: Real = None,
    fake: Fake = None,
    pack: Annotated[
        Path | None, typer.Option("--pack", help="Faces packed by 'deepfake pack-faces', instead of folders.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Model spec (YAML) to train for, instead of the options below.")
    ] = None,
    architecture: Annotated[str, typer.Option("--architecture")] = "timm:efficientnet_b0",
    name: Annotated[str, typer.Option("--name", help="Name of the model.")] = "deepfake_detector",
    input_size: Annotated[int, typer.Option("--input-size", help="Side of the crop, in pixels.")] = 224,
    margin: Annotated[float, typer.Option("--margin", help="Context around the face box, as a share of it.")] = 0.3,
    initial: Annotated[
        Path | None, typer.Option("--initial", help="Published weights to start from; their head is left out.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on from this run or this checkpoint (last.pt, epoch_0003.pt).")
    ] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Keep a checkpoint of every epoch.")] = False,
    epochs: Annotated[int, typer.Option("--epochs")] = DEFAULTS.epochs,
    crops_per_epoch: Annotated[
        int | None, typer.Option("--crops-per-epoch", help="Default: each real face once, and as many fakes.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size")] = DEFAULTS.batch_size,
    accumulate: Annotated[
        int, typer.Option("--accumulate", help="Batches whose gradients are added up for one step.")
    ] = DEFAULTS.accumulate,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = DEFAULTS.learning_rate,
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = DEFAULTS.weight_decay,
    schedule: Annotated[str, typer.Option("--schedule", help="cosine, plateau or step.")] = DEFAULTS.schedule,
    warmup_epochs: Annotated[int, typer.Option("--warmup-epochs")] = DEFAULTS.warmup_epochs,
    ema_decay: Annotated[float, typer.Option("--ema-decay", help="0 averages nothing.")] = DEFAULTS.ema_decay,
    label_smoothing: Annotated[float, typer.Option("--label-smoothing")] = DEFAULTS.label_smoothing,
    pair_weight: Annotated[
        float, typer.Option("--pair-weight", help="Weight of the loss that compares a fake with its own original.")
    ] = DEFAULTS.pair_weight,
    sam_radius: Annotated[
        float,
        typer.Option("--sam-radius", help="Sharpness-aware minimization, such as 0.05; twice the time per step."),
    ] = DEFAULTS.sam_radius,
    drop_path: Annotated[float, typer.Option("--drop-path")] = DEFAULTS.drop_path,
    freeze: Annotated[
        list[str] | None, typer.Option("--freeze", help="Module not to train, such as blocks.0; may be given often.")
    ] = None,
    freeze_statistics: Annotated[
        bool, typer.Option("--freeze-statistics", help="Keep batch norms' statistics; good for batches under 16.")
    ] = False,
    self_blend: Annotated[
        float, typer.Option("--self-blend", help="Share of fakes that is blended from real faces.")
    ] = MIXTURE.self_blend,
    swap: Annotated[
        float, typer.Option("--swap", help="Share of those in which another real face is blended in.")
    ] = MIXTURE.swap,
    balance: Annotated[str, typer.Option("--balance", help="sampler, loss or none.")] = MIXTURE.balance,
    augment: Annotated[
        list[str] | None,
        typer.Option("--augment", help="How often a change happens, such as jpeg=0.5; may be given often."),
    ] = None,
    validation_share: Annotated[float, typer.Option("--validation-share")] = DEFAULTS.validation_share,
    validation_crops: Annotated[int, typer.Option("--validation-crops")] = DEFAULTS.validation_crops,
    patience: Annotated[
        int, typer.Option("--patience", help="Stop after so many epochs without a better validation AUC; 0 never.")
    ] = DEFAULTS.patience,
    frames_per_video: FramesPerVideo = 16,
    identity_pattern: IdentityPattern = None,
    seed: Annotated[int, typer.Option("--seed")] = DEFAULTS.seed,
    split_seed: Annotated[
        int, typer.Option("--split-seed", help="What is held out; keep it when starting from another run's weights.")
    ] = DEFAULTS.split_seed,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda. Default: cuda where there is one.")] = "",
    workers: Annotated[int, typer.Option("--workers", help="Processes that prepare crops.")] = 1,
    threads: Annotated[int, typer.Option("--threads", help="PyTorch's threads on the CPU; 0 keeps its choice.")] = 0,
) -> None:
    """Train a detector on real and fake faces, or on real faces alone by self-blending."""
    console = Console(stderr=True)
    if resume is None and (out / "last.pt").exists():
        raise OptionError(f"{out} holds a run already; go on with --resume {out}, or name another directory")
    model_spec = (
        ModelSpec.from_yaml(spec)
        if spec is not None
        else ModelSpec(name, architecture, input_height_px=input_size, input_width_px=input_size, crop=Crop(margin))
    )
    config = TrainConfig(
        epochs=epochs,
        crops_per_epoch=crops_per_epoch,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,  # type: ignore[arg-type]
        warmup_epochs=warmup_epochs,
        ema_decay=ema_decay,
        label_smoothing=label_smoothing,
        pair_weight=pair_weight,
        sam_radius=sam_radius,
        drop_path=drop_path,
        freeze=tuple(freeze or ()),
        freeze_statistics=freeze_statistics,
        validation_share=validation_share,
        validation_crops=validation_crops,
        patience=patience,
        seed=seed,
        split_seed=split_seed,
        mixture=Mixture(self_blend, swap, balance),  # type: ignore[arg-type]
        augmentation=_augmentation(augment or []),
    )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise OptionError(f"device {device!r} cannot be used here; choose cpu, or cuda on a machine with a GPU")
    if threads:
        torch.set_num_threads(threads)
    if (pack is None) == (not real and not fake):
        raise OptionError("name either folders with --real (and --fake), or packed faces with --pack")
    faces = (
        FaceSet.load(pack)
        if pack is not None
        else _pack(console, real, fake, frames_per_video=frames_per_video, identity_pattern=identity_pattern)
    )
    run = Run(faces, model_spec, config, out, initial=initial, device=device, workers=workers)
    console.print(
        f"{faces!r}: {len(run.train_set)} crops to train on, {len(run.validation_set)} held out; "
        f"{model_spec.architecture} from {run.initial_note}, on {device}",
        highlight=False,
    )
    if resume is not None:
        run.resume(resume)
        console.print(f"resumed after epoch {run.epoch}", highlight=False)
    best = _with_progress(run, console, keep_all)
    console.print(
        f"best: epoch {best.epoch}, validation AUC {best.validation_auc:.4f}; {out / BEST} and {out / BEST_SPEC} are "
        "what 'deepfake evaluate' and 'deepfake export' take",
        highlight=False,
    )


def average_runs_command(
    runs: Annotated[list[Path], typer.Argument(help="Directories of training runs, at least two.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to make: a run with the mean as best weights.")],
) -> None:
    """Take the mean of several runs' best weights: often better than each, and as fast.

    For runs that went on from each other's weights, with the same faces held out. Look at the mean before you use it:

    [bold]Example[/]

      deepfake average-runs runs/first runs/second --out runs/mean
      deepfake evaluate --run runs/mean --pack faces.safetensors --write runs/mean/best.yaml
    """
    path = average_runs(runs, out)
    Console(stderr=True).print(f"{path}: mean of {len(runs)} runs", highlight=False)


def publish_checkpoint(
    run: Annotated[Path, typer.Argument(help="Directory of a training run.")],
    out: Annotated[Path, typer.Argument(help="File to write (.safetensors); its spec goes beside it as .yaml.")],
    training_data: Annotated[
        str, typer.Option("--training-data", help="For the spec: what it was trained on, what its scores are worth.")
    ] = "",
) -> None:
    """Write the best weights of a run in half precision, with their spec, for others to use."""
    spec_path, _ = publish(run, out, training_data=training_data)
    Console(stderr=True).print(f"{out} ({out.stat().st_size / 1e6:.1f} MB) and {spec_path}", highlight=False)


def _with_progress(run: Run, console: Console, keep_all: bool) -> EpochResult:
    from torch.utils.tensorboard import SummaryWriter

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
                f"{result.seconds:.0f} s",
                highlight=False,
            )

        return run.train(keep_all=keep_all, on_batch=on_batch, on_epoch=on_epoch)


def _pack(console: Console, real: list[Path] | None, fake: list[Path] | None, **options: Any) -> FaceSet:
    with console.status("looking for faces") as status:
        faces = pack_faces(
            real or (),
            fake or (),
            progress=lambda name, number, count: status.update(
                f"looking for faces: {number + 1} of {count} ({name})"
            ),
            **options,
        )
    for note in faces.notes:
        console.print(note, style="yellow", highlight=False)
    console.print(f"{faces!r}", highlight=False)
    return faces


def _augmentation(texts: list[str]) -> Augmentation:
    known = [item.name for item in dataclasses.fields(Augmentation)]
    values: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            values[name] = -1.0
        if name not in known or not 0 <= values[name] <= 1:
            raise OptionError(f"--augment {text!r} is no change=share; known: {', '.join(known)}, share from 0 to 1")
    return Augmentation(**values)
