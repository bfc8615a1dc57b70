"""Fine-tunes a network for INT8 by self-distillation: the rounded network learns to answer as the checkpoint does.

No labels are used. The checkpoint, in FP32, is the teacher; besides its logit, what some of its layers give is
learned, because one number per crop says little. Some crops are held out, and the weights that come nearest to the
teacher on these are kept, so that the result is never worse than none.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.precision.fake_quant import give_taps, insert_rounding, measure_ranges, trace
from deepfake_export.precision.int8 import CPU_OPS, QdqForm, evenly
from deepfake_export.precision.ranges import Float
from deepfake_export.proof.running import UInt8Array, batches_of
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import ExportError

BATCH_SIZE = 16
LEARNING_RATE = 2e-5
"""Adam's highest; it falls to 0 along a cosine over the time given. One step of 5e-5 already moved the logits of
EfficientNet-B0 by 0.19."""
WARM_UP = 0.05
"""Share of the time in which it rises: Adam's first steps are of full length whatever the gradient."""
NUM_TAPS = 8
"""Layers whose output is learned besides the logit."""
NUM_CHECKS = 8
"""How often the held-out crops are looked at, and ranges measured again."""
RANGE_CROPS = 32
MAX_HELD_OUT = 64
LARGEST_ZOOM = 1.15
"""Largest zoom of the crops' augmentation; they are flipped, too."""
MIN_CROPS = 32
"""With fewer there is nothing to learn from and to hold out."""
PROGRESS_S = 10.0
SEED = 7


@dataclass(frozen=True, slots=True)
class Finetuning:
    """What was done.

    Attributes:
        minutes: that were given.
        steps: of `BATCH_SIZE` crops each.
        num_crops: that were learned from; `num_held_out` others chose among the weights.
        error_before: mean absolute difference of the rounded network's logit from the checkpoint's on the held-out
            crops, with every layer rounded.
        error_after: of the weights that were chosen.
    """

    minutes: float
    steps: int
    num_crops: int
    num_held_out: int
    error_before: float
    error_after: float

    def describe(self) -> str:
        """Return a clause for people."""
        return (
            f"{self.steps} steps of {BATCH_SIZE} crops in {self.minutes:g} min on {self.num_crops} crops; with every "
            f"layer rounded, the mean logit error on {self.num_held_out} others went from {self.error_before:.3g} to "
            f"{self.error_after:.3g}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """A fine-tuned detector, and the crops that judged it.

    Attributes:
        detector: in FP32, to be quantized as any other.
        held_out: uint8 ``[N, H, W, 3]``.
        reference: the checkpoint's logit of these, float32 ``[N, 1]``.
    """

    detector: ServedDetector
    finetuning: Finetuning
    held_out: UInt8Array
    reference: Float


def finetune(
    detector: ServedDetector,
    spec: ModelSpec,
    crops: UInt8Array,
    *,
    form: QdqForm,
    method: str,
    minutes: float,
    on_step: Callable[[str], None] = lambda step: None,
) -> Tuned:
    """Return a copy of `detector` that was trained to bear the rounding of `form`, with ranges by `method`.

    Raises:
        ExportError: there are too few crops, or the network cannot be traced, or not be trained.
    """
    if len(crops) < MIN_CROPS:
        raise ExportError(f"fine-tuning for INT8 needs {MIN_CROPS} crops, and there are {len(crops)}; add faces")
    start = monotonic()
    chosen = evenly(np.arange(len(crops)), min(MAX_HELD_OUT, len(crops) // 4))
    held_out, learned = crops[chosen], np.delete(crops, chosen, axis=0)
    network = copy.deepcopy(detector.network)
    student, teacher = student_and_teacher(network, detector.normalize(torch.from_numpy(crops[:2])), form)
    trainer = _Trainer(detector, network, student, teacher, evenly(learned, RANGE_CROPS), method)
    wanted = trainer.logits(teacher, held_out)

    def error() -> float:
        found = float((trainer.logits(student, held_out) - wanted).abs().mean())
        return found if math.isfinite(found) else math.inf

    trainer.measure()
    before = best = error()
    best_state = copy.deepcopy(network.state_dict())
    on_step(f"Fine-tuning for INT8 on {len(learned)} crops for {minutes:g} min; mean logit error {before:.3g}")
    seconds, last_word, next_check, steps = minutes * 60, start, 1, 0
    batches = _endless_batches(learned)
    done = 0.0
    while done < 1:
        trainer.step(next(batches), done)
        steps += 1
        now = monotonic()
        done = (now - start) / seconds
        if done >= next_check / NUM_CHECKS:
            next_check = math.floor(done * NUM_CHECKS) + 1
            trainer.measure()
            if (found := error()) < best:
                best, best_state = found, copy.deepcopy(network.state_dict())
        if now - last_word > PROGRESS_S:
            last_word = now
            on_step(f"Fine-tuned {steps} steps, about {max(0, seconds - (now - start)):.0f} s left; error {best:.3g}")
    network.load_state_dict(best_state)
    done_words = Finetuning(minutes, steps, len(learned), len(held_out), round(before, 6), round(best, 6))
    return Tuned(ServedDetector(network, spec).eval(), done_words, held_out, wanted.numpy())


def student_and_teacher(network: nn.Module, example: Tensor, form: QdqForm) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a network that rounds as `form`, and one that does not; both give the outputs of some layers, too.

    The first shares its parameters with `network`, the second has copies. `example` is a batch of at least two.

    Raises:
        ExportError: the network cannot be traced, or has nothing to round.
    """
    student = trace(network, example)
    teacher = copy.deepcopy(student).requires_grad_(requires_grad=False)
    insert_rounding(
        student,
        signed=form.signed_activations,
        weight_bits=7 if form.reduce_range else 8,
        all_ops=form.op_types == CPU_OPS,
    )
    # Not before: a layer whose output is also returned would not be one operator with the ReLU behind it.
    for traced in (student, teacher):
        give_taps(traced, NUM_TAPS)
    return student, teacher


class _Trainer:
    """What a step of the training needs."""

    def __init__(
        self,
        detector: ServedDetector,
        network: nn.Module,
        student: fx.GraphModule,
        teacher: fx.GraphModule,
        range_crops: UInt8Array,
        method: str,
    ) -> None:
        self._detector, self._student, self._teacher = detector, student, teacher
        self._range_crops, self._method = range_crops, method
        parameters = [item.requires_grad_() for item in network.parameters() if item.is_floating_point()]
        self._optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        self._random = torch.Generator().manual_seed(SEED)

    def measure(self) -> None:
        """Measure the student's ranges."""
        pixels = [self._detector.normalize(torch.from_numpy(crop)) for crop in batches_of(self._range_crops, 1)]
        measure_ranges(self._student, pixels, self._method)

    def logits(self, network: fx.GraphModule, crops: UInt8Array) -> Tensor:
        """Return logits ``[N, 1]``."""
        with torch.no_grad():
            return torch.cat([self._run(network, torch.from_numpy(batch))[0] for batch in batches_of(crops, 8)])

    def step(self, crops: UInt8Array, done: float) -> None:
        """Learn from a batch, where a share `done` of the time is over."""
        faces = _augmented(torch.from_numpy(crops), self._random)
        with torch.no_grad():
            wanted_logit, wanted = self._run(self._teacher, faces)
        logit, given = self._run(self._student, faces)
        loss = functional.mse_loss(logit, wanted_logit) / wanted_logit.square().mean().clamp_min(1e-6)
        for mine, others in zip(given, wanted, strict=True):
            loss = loss + functional.mse_loss(mine, others) / others.square().mean().clamp_min(1e-12) / len(given)
        rate = LEARNING_RATE * min(1.0, (done + 0.01) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def _run(self, network: fx.GraphModule, faces: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        outputs, *taps = network(self._detector.normalize(faces))
        return self._detector.logit_of(outputs), taps


def _endless_batches(crops: UInt8Array) -> Iterator[UInt8Array]:
    random = np.random.default_rng(SEED)
    while True:
        yield from batches_of(crops[random.permutation(len(crops))], BATCH_SIZE)


def _augmented(faces: Tensor, random: torch.Generator) -> Tensor:
    """Return uint8 ``[N, H, W, 3]`` crops, each flipped or not, zoomed by up to `LARGEST_ZOOM`, and moved."""
    count = len(faces)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    part = 1 / between(1, LARGEST_ZOOM)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = part * (1 - 2 * (between(0, 1) < 0.5).float())
    matrix[:, 1, 1] = part
    matrix[:, 0, 2], matrix[:, 1, 2] = between(-1, 1) * (1 - part), between(-1, 1) * (1 - part)
    pixels = faces.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
