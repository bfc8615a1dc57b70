"""A small network learns from a large one: `teach` writes what the large one says, `Distillation` asks for the same.

Labels alone tell of each crop one bit. What reaches the teacher's last layer says what it saw (Hinton et al., arXiv
1503.02531; Romero et al., arXiv 1412.6550).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from deepfake_export.checkpoint.layers import last_linear
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.network import load_network
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.taught import KEYS, PARTS, TaughtFolder
from deepfake_training.loop.checkpointing import save_whole
from deepfake_training.loop.config import TrainConfig
from deepfake_training.loop.precision import fast_precision

CROPS_PER_FILE: Final = 128
"""19 MB at 224 px."""
BATCH_SIZE: Final = 8


class Distillation(nn.Module):
    """How far a student is from what its teacher said.

    Args:
        layer: the student's last one. What reaches it, projected, shall point where that of the teacher points.
        width: the teacher's features.
        features: weight of that.
        logit: weight of the difference of the probabilities.
    """

    def __init__(self, layer: nn.Linear, width: int, *, features: float, logit: float) -> None:
        super().__init__()
        self.projection = nn.Linear(layer.in_features, width)
        self._features, self._logit = features, logit

    def forward(self, seen: Tensor, logit: Tensor, teachers_seen: Tensor, teachers_logit: Tensor) -> Tensor:
        """Return the loss of features ``[N, F]`` and logits ``[N, 1]``."""
        apart = 1 - functional.cosine_similarity(self.projection(seen), teachers_seen).mean()
        unlike = functional.binary_cross_entropy_with_logits(logit, teachers_logit.sigmoid())
        return self._features * apart + self._logit * unlike


def seen_and_logit(detector: nn.Module, layer: nn.Module, crops: Tensor) -> tuple[Tensor, Tensor]:
    """Return what reaches a layer, ``[N, F]``, and the logit ``[N, 1]``."""
    caught: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        _, logit = detector(crops)
    finally:
        hook.remove()
    return caught[0], logit


def teach(
    faces: PackedFaces | TaughtFolder,
    config: TrainConfig,
    teacher: str | Path,
    *,
    num_crops: int | None = None,
    device: str = "cpu",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the crops that a configuration draws, with what a detector says of them, into the folder it names.

    They have the size that the teacher takes; a student of a smaller one shrinks them.
    Files that are there already stay, so a call that was killed goes on, and one with more crops adds to them.

    Args:
        faces: where the crops are from.
        config: draws them, and says with `taught` where they go.
        teacher: its checkpoint, with its spec beside it.
        num_crops: to train on. None draws each real face once, and as many fakes.
        device: ``cpu`` or ``cuda``.
        workers: processes that prepare crops.
        progress: called with the number of crops that are done, and of all.

    Returns:
        The folder.

    Raises:
        OptionError: `taught` is missing, the folder is of another teacher, or the teacher takes other crops.
        CheckpointError: the teacher cannot be read.
        TrainingError: a file cannot be written.
    """
    if config.taught is None:
        raise OptionError("the configuration does not say where taught crops lie; set 'taught' to a folder")
    loaded = load_network(teacher)
    if (theirs := _cut(loaded.spec)) != (ours := _cut(config.spec)):
        raise OptionError(f"{teacher} takes faces with {theirs}, and the configuration {ours}; change its 'spec'")
    detector = ServedDetector(loaded.network, loaded.spec).to(device).eval()
    answer = partial(_answers, detector, last_linear(loaded.network)[1], device)
    folder, digest = Path(config.taught), sha256_file(Path(teacher))
    train, validation = dataclasses.replace(config, spec=loaded.spec).split(faces)
    counts = (num_crops or len(train), len(validation))
    done = 0
    for part, dataset, number in zip(PARTS, (train, validation), counts, strict=True):
        for index, (epoch, places) in enumerate(_files(len(dataset), number)):
            path = folder / part / f"{index:05d}.safetensors"
            if not _is_there(path, digest):
                if dataset is train:
                    train.set_epoch(epoch)
                loader = DataLoader(dataset, batch_size=BATCH_SIZE, sampler=places, num_workers=workers)
                batches = [answer(crops, labels) for crops, labels, *_ in loader]
                columns = [torch.cat(column) for column in zip(*batches, strict=True)]
                path.parent.mkdir(parents=True, exist_ok=True)
                content = dict(zip(KEYS, columns, strict=True))
                save_whole(path, partial(save_file, content, metadata={"teacher": digest}))
            done += len(places)
            if progress is not None:
                progress(done, sum(counts))
    return folder


def _cut(spec: ModelSpec) -> str:
    return f"a margin of {spec.crop.margin:g} and the alignment {spec.crop.align!r}"


def _files(per_epoch: int, number: int) -> Iterator[tuple[int, range]]:
    """Yield which crops each file holds: the epoch that draws them, and their places in it."""
    for epoch in range(-(-number // per_epoch)):
        end = min(per_epoch, number - epoch * per_epoch)
        for start in range(0, end, CROPS_PER_FILE):
            yield epoch, range(start, min(start + CROPS_PER_FILE, end))


def _is_there(path: Path, teacher: str) -> bool:
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("teacher") != teacher:
            raise OptionError(f"{path} is of another teacher; set 'taught' to another folder, or delete this one")
    return True


@torch.inference_mode()
def _answers(
    detector: nn.Module, layer: nn.Module, device: str, crops: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a batch as a file holds it."""
    with fast_precision(detector, device):
        seen, logit = seen_and_logit(detector, layer, crops.to(device))
    return crops, labels, seen.cpu().half(), logit.cpu().float()
