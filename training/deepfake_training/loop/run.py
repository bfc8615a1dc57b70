"""The training loop: one epoch after the other, validated and saved, and the same one after a kill as without.

What makes a resumed run identical on a CPU: the pictures of an epoch follow from seed and epoch (`data`), so do the
random numbers of the network (drop-path), and everything else is in the checkpoint. A kill in the middle of an epoch
costs that epoch, which then runs again from its start.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from deepfake_export.checkpoint.layers import last_linear
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_preprocess.errors import OptionError, TrainingError
from deepfake_preprocess.support.ranking import roc_auc
from deepfake_training.data.dataset import FaceDataset
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.taught import TaughtCrops, TaughtFolder
from deepfake_training.loop.checkpointing import load_state, save_best, save_last, save_whole
from deepfake_training.loop.config import CONFIG, TrainConfig
from deepfake_training.loop.distilling import Distillation, seen_and_logit
from deepfake_training.loop.head_fit import HeadFit, LabelFit, TaughtFit
from deepfake_training.loop.losses import alignment, pair_loss, uniformity
from deepfake_training.loop.memory import advice_on_batch, is_out_of_memory
from deepfake_training.loop.network import prepare_network, weight_groups
from deepfake_training.loop.precision import fast_precision
from deepfake_training.loop.sharpness import uphill

LOG = "log.jsonl"
CLIP_NORM = 5.0
"""Gradients are scaled down to this norm: one odd batch shall not undo an epoch."""


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One line of the log.

    Attributes:
        epoch: from 1.
        train_loss: mean over the epoch.
        validation_loss: of the averaged weights.
        validation_auc: of the averaged weights, per crop.
        learning_rate: at the end of the epoch.
        crops: crops trained on so far.
        seconds: length of this epoch with its validation.
        best: whether these are the weights to publish, so far.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_auc: float
    learning_rate: float
    crops: int
    seconds: float
    best: bool


class TrainingRun:
    """A training run in a directory.

    Args:
        faces: what to learn from; a part is held out by group.
        config: everything else that decides the result. Where it says that faces are found is not looked at.
        directory: where checkpoints, logs and the configuration go.
        device: ``cpu`` or ``cuda``.
        workers: processes that prepare crops; 0 prepares them between the steps.

    Raises:
        OptionError: the faces do not suffice, or a name to freeze is unknown.
        CheckpointError: the initial weights do not fit.
    """

    def __init__(
        self,
        faces: PackedFaces | TaughtFolder,
        config: TrainConfig,
        directory: str | Path,
        *,
        device: str = "cpu",
        workers: int = 0,
    ) -> None:
        self.config, self.directory = config, Path(directory)
        self._device, self._workers = torch.device(device), workers
        torch.manual_seed(config.seed)
        network, self._in_eval_mode, self.initial_note = prepare_network(config)
        self.detector = ServedDetector(network, config.spec).to(self._device).to(memory_format=torch.channels_last)
        self.ema = ModelEmaV3(self.detector, decay=config.ema_decay, use_warmup=True)
        self._optimizer = torch.optim.AdamW(weight_groups(network, config))
        self.train_set: FaceDataset | TaughtCrops
        self.validation_set: FaceDataset | TaughtCrops
        self.train_set, self.validation_set = config.split(faces)
        self._layer = self._distillation = None
        by_steps = config.trained != "head"
        if by_steps and (config.alignment or config.uniformity or isinstance(self.train_set, TaughtCrops)):
            _, self._layer = last_linear(network)
        if self._layer is not None and isinstance(self.train_set, TaughtCrops):
            weights = {"features": config.teacher_features, "logit": config.teacher_logit}
            self._distillation = Distillation(self._layer, self.train_set.width, **weights).to(self._device)
            rate = config.learning_rate * config.head_rate
            self._optimizer.add_param_group({"params": [*self._distillation.parameters()], "lr": rate})
        self._head_fit: HeadFit | None = None
        if not by_steps:
            layer = last_linear(network)[1]
            is_taught = isinstance(self.train_set, TaughtCrops)
            self._head_fit = (
                TaughtFit(self.detector, layer) if is_taught else LabelFit(self.detector, layer, config.weight_decay)
            )
        self._crops = min(config.crops_per_epoch or len(self.train_set), len(self.train_set))
        self._batches = -(-self._crops // config.batch_size)
        self._updates = -(-self._batches // config.accumulate)
        self._scheduler = self._make_scheduler()
        weight = torch.tensor([self.train_set.positive_weight], device=self._device)
        self._loss = nn.BCEWithLogitsLoss(pos_weight=weight)
        self.epoch = 0
        self.history: list[EpochResult] = []

    def _make_scheduler(self) -> Scheduler | ReduceLROnPlateau:
        config = self.config
        lowest = config.learning_rate / 100
        if config.schedule == "plateau":
            # PyTorch's own: timm's does not keep its counters in a checkpoint.
            return ReduceLROnPlateau(self._optimizer, mode="max", factor=0.5, patience=2, min_lr=lowest)
        scheduler: Scheduler
        scheduler, _ = create_scheduler_v2(
            self._optimizer,
            sched=config.schedule,
            num_epochs=config.epochs,
            decay_epochs=max(1, config.epochs // 3),
            decay_rate=0.1,
            min_lr=lowest,
            warmup_epochs=min(config.warmup_epochs, config.epochs - 1),
            warmup_lr=config.learning_rate / 20,
            step_on_epochs=False,
            updates_per_epoch=self._updates,
        )
        return scheduler

    @property
    def best(self) -> EpochResult | None:
        """The epoch with the best validation AUC so far."""
        return next((result for result in reversed(self.history) if result.best), None)

    def resume(self, checkpoint: str | Path) -> None:
        """Go on where a checkpoint of this run ended.

        Raises:
            OptionError: there is no such file, or the run was started with another configuration.
            CheckpointError: the file is damaged, or is not the checkpoint of a run.
        """
        state = load_state(checkpoint)
        ours = self._identity()
        if state["identity"] != ours:
            differ = sorted(key for key in ours if state["identity"].get(key) != ours[key])
            raise OptionError(
                f"{checkpoint} belongs to a run that differs in {', '.join(differ)}; resume it with its own {CONFIG}"
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.history = [EpochResult(**line) for line in state["history"]]
        self.epoch = state["epoch"]

    def train(
        self,
        *,
        keep_all: bool = False,
        on_batch: Callable[[int, int, int, float], None] | None = None,
        on_epoch: Callable[[EpochResult], None] | None = None,
    ) -> EpochResult:
        """Train until the last epoch, or until the validation AUC has not risen for `patience` epochs.

        Args:
            keep_all: keep the checkpoint of every epoch, to resume from any of them.
            on_batch: called with epoch (from 1), batch (from 1), number of batches and loss.
            on_epoch: called with each result, once it is saved.

        Returns:
            The best epoch.

        Raises:
            TrainingError: the loss is not finite, memory or disk is full; what was saved stays good.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        save_whole(self.directory / CONFIG, json.dumps(self.config.to_dict(), indent=2) + "\n")
        while self.epoch < self.config.epochs and not self._stopped_improving():
            result = self._one_epoch(on_batch)
            self.history.append(result)
            self.epoch = result.epoch
            if result.best:
                save_best(self.directory, self.ema.module.network, self.config.spec)
            save_last(self.directory, self._state(), keep_epoch=self.epoch if keep_all else None)
            lines = "".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in self.history)
            save_whole(self.directory / LOG, lines)
            if on_epoch is not None:
                on_epoch(result)
        assert self.best is not None
        return self.best

    def validate(self, detector: nn.Module) -> tuple[float, float]:
        """Return loss and AUC of a detector on the crops that were held out."""
        detector.eval()
        total = 0.0
        scores, known = [], []
        with torch.inference_mode(), fast_precision(detector, self._device.type):
            for crops, labels, *_ in self._loader(self.validation_set, range(len(self.validation_set))):
                logit = detector(crops.to(self._device))[1].float().cpu()
                total += float(nn.functional.binary_cross_entropy_with_logits(logit, labels, reduction="sum"))
                scores.append(logit[:, 0].sigmoid())
                known.append(labels[:, 0].long())
        return total / len(self.validation_set), roc_auc(torch.cat(scores).numpy(), torch.cat(known).numpy())

    def _one_epoch(self, on_batch: Callable[[int, int, int, float], None] | None) -> EpochResult:
        start = time.monotonic()
        epoch = self.epoch
        self.train_set.set_epoch(epoch)
        torch.manual_seed((self.config.seed + 1) * 100_003 + epoch)
        self.detector.train()
        for module in self._in_eval_mode:
            module.eval()
        train = self._take_steps if self._head_fit is None else partial(self._fit_head, self._head_fit)
        train_loss = train(on_batch)
        validation_loss, auc = self.validate(self.ema.module)
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(auc)
        best = self.best
        return EpochResult(
            epoch=epoch + 1,
            train_loss=train_loss,
            validation_loss=validation_loss,
            validation_auc=auc,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            crops=(epoch + 1) * self._crops,
            seconds=round(time.monotonic() - start, 1),
            best=best is None or self.config.keep == "last" or auc > best.validation_auc,
        )

    def _fit_head(self, head_fit: HeadFit, on_batch: Callable[[int, int, int, float], None] | None) -> float:
        """Pass the epoch's crops through the network and fit its last layer; return the mean loss."""
        self.detector.eval()
        for batch, (crops, *known) in enumerate(self._loader(self.train_set, range(self._crops)), start=1):
            with fast_precision(self.detector, self._device.type):
                loss = head_fit.collect(crops.to(self._device), *known)
            if on_batch is not None:
                on_batch(self.epoch + 1, batch, self._batches, loss)
        loss = head_fit.fit()
        self.ema.set(self.detector)  # type: ignore[no-untyped-call]
        return loss

    def _take_steps(self, on_batch: Callable[[int, int, int, float], None] | None) -> float:
        """Train the weights step by step on the epoch's crops; return the mean loss."""
        epoch, total, seen = self.epoch, 0.0, 0
        update = epoch * self._updates
        self._optimizer.zero_grad()
        for batch, (crops, *known) in enumerate(self._loader(self.train_set, range(self._crops)), start=1):
            # The last step of an epoch may have fewer passes than the others.
            first = (batch - 1) // self.config.accumulate * self.config.accumulate
            passes = min(self.config.accumulate, self._batches - first)
            loss = self._step_loss(crops, known, passes, epoch, batch)
            if batch % self.config.accumulate == 0 or batch == self._batches:
                nn.utils.clip_grad_norm_(self.detector.parameters(), CLIP_NORM)
                self._optimizer.step()
                self._optimizer.zero_grad()
                update += 1
                self.ema.update(self.detector, step=update)
                if isinstance(self._scheduler, Scheduler):
                    self._scheduler.step_update(update)
            total += loss * len(crops)
            seen += len(crops)
            if on_batch is not None:
                on_batch(epoch + 1, batch, self._batches, loss)
        return total / seen

    def _step_loss(self, crops: Tensor, known: Sequence[Tensor], passes: int, epoch: int, batch: int) -> float:
        """Run one batch forward and backward; return its loss."""
        try:
            loss = self._loss_of(crops, *known)
            value = float(loss.detach())
            if not np.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} in epoch {epoch + 1} at batch {batch} of {self._batches}; the last "
                    f"good state is in {self.directory} (epoch {self.epoch}); start again with a 'learning_rate' "
                    f"below {self.config.learning_rate:g}"
                )
            if not self.config.sam_radius:
                torch.autograd.backward(loss / passes)
            else:
                trained = [parameter for parameter in self.detector.parameters() if parameter.requires_grad]
                with uphill(trained, loss, self.config.sam_radius):
                    torch.autograd.backward(self._loss_of(crops, *known) / passes)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            self._optimizer.zero_grad()
            advice = advice_on_batch(self.detector, crops.to("cpu"), self.config.accumulate)
            raise TrainingError(f"there is not enough memory for a batch of {len(crops)}; {advice}") from exc
        return value

    def _loss_of(self, crops: Tensor, labels: Tensor, *answers: Tensor) -> Tensor:
        crops = crops.to(self._device, non_blocking=True)
        with fast_precision(self.detector, self._device.type):
            if self._layer is None:
                logit = self.detector(crops)[1]
            else:
                seen, logit = seen_and_logit(self.detector, self._layer, crops)
        smooth = self.config.label_smoothing
        target = labels.to(self._device, non_blocking=True) * (1 - 2 * smooth) + smooth
        loss: Tensor = self._loss(logit.float(), target)
        if self._distillation is not None:
            loss = loss * (1 - self.config.teacher_logit)
        if self.config.pair_weight:
            loss = loss + self.config.pair_weight * pair_loss(logit.float(), labels.to(self._device))
        if self.config.alignment:
            loss = loss + self.config.alignment * alignment(seen.float(), labels.to(self._device))
        if self.config.uniformity:
            loss = loss + self.config.uniformity * uniformity(seen.float())
        if self._distillation is not None:
            token, teachers = (answer.to(self._device) for answer in answers)
            loss = loss + self._distillation(seen.float(), logit.float(), token, teachers)
        return loss

    def _loader(self, dataset: FaceDataset | TaughtCrops, places: range) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            sampler=places,
            num_workers=self._workers,
            worker_init_fn=_quiet_worker,
            pin_memory=self._device.type == "cuda",
            prefetch_factor=4 if self._workers else None,
        )

    def _stopped_improving(self) -> bool:
        best = self.best
        return bool(self.config.patience and best and self.epoch - best.epoch >= self.config.patience)

    def _identity(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with this one; files may have moved."""
        identity = {**self.config.to_dict(), "initial_weights": self.initial_note}
        return {key: value for key, value in identity.items() if key not in ("pack", "folders", "taught")}

    def _parts(self) -> dict[str, Any]:
        """Return by name what changes in training."""
        return {
            "detector": self.detector,
            "ema": self.ema.module,
            "optimizer": self._optimizer,
            "scheduler": self._scheduler,
            **({"head_fit": self._head_fit} if self._head_fit is not None else {}),
            **({"distillation": self._distillation} if self._distillation is not None else {}),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self._identity(),
            "epoch": self.epoch,
            "history": [dataclasses.asdict(line) for line in self.history],
            **{name: part.state_dict() for name, part in self._parts().items()},
        }


def _quiet_worker(_: int) -> None:
    cv2.setNumThreads(0)
