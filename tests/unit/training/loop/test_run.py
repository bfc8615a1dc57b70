"""The loop: the same weights after a kill, and a clear end where a run cannot go on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_faces import QUICK, TINY, make_faces
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from deepfake_export import load_network
from deepfake_export.checkpoint.architectures import build_network
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError, OptionError, SpecError, TrainingError
from deepfake_training.data.augment import Augmentation
from deepfake_training.data.dataset import Mixture
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC, LAST, publish, save_last
from deepfake_training.loop.initial import load_initial
from deepfake_training.loop.memory import fitting_batch_size
from deepfake_training.loop.run import LOG, TrainingRun
from deepfake_training.loop.sharpness import uphill

# A run in a process of its own, which kills itself as a power cut would: in the middle of an epoch, without warning.
KILLED = """
import os, signal, sys
import torch
from drawn_faces import QUICK, TINY, make_faces
from deepfake_training.loop.run import TrainingRun

torch.set_num_threads(1)

def kill(epoch, batch, batches, loss):
    if (epoch, batch) == (3, 2):
        os.kill(os.getpid(), signal.SIGKILL)

TrainingRun(make_faces(), QUICK, sys.argv[1]).train(on_batch=kill)
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are faster without threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    state = torch.load(directory / LAST, weights_only=True)
    return {**state["detector"], **{f"ema.{name}": value for name, value in state["ema"].items()}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    TrainingRun(make_faces(), QUICK, tmp_path / "whole").train()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")], env=environment, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len((tmp_path / "killed" / LOG).read_text().splitlines()) == 2

    run = TrainingRun(make_faces(), QUICK, tmp_path / "killed", workers=1)
    run.resume(tmp_path / "killed")
    assert run.epoch == 2
    run.train()
    assert same(weights_of(tmp_path / "killed"), weights_of(tmp_path / "whole"))
    histories = [
        [{**json.loads(line), "seconds": 0} for line in (tmp_path / name / LOG).read_text().splitlines()]
        for name in ("killed", "whole")
    ]
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    "change",
    [{"schedule": "plateau"}, {"schedule": "step"}, {"sam_radius": 0.05}, {"alignment": 0.1, "uniformity": 0.5}],
)
def test_other_recipes_resume_from_any_epoch(tmp_path: Path, change: dict[str, Any]) -> None:
    config = dataclasses.replace(QUICK, **change)
    TrainingRun(make_faces(), config, tmp_path).train(keep_all=True)
    whole = weights_of(tmp_path)
    again = TrainingRun(make_faces(), config, tmp_path)
    again.resume(tmp_path / "epoch_0001.pt")
    again.train()
    assert same(weights_of(tmp_path), whole)


def test_the_best_weights_are_a_checkpoint_that_the_export_loads(tmp_path: Path) -> None:
    run = TrainingRun(make_faces(), QUICK, tmp_path)
    best = run.train()
    spec = ModelSpec.from_yaml(tmp_path / BEST_SPEC)
    assert spec == TINY
    assert load_network(tmp_path / BEST, spec).notes == ()
    assert best.validation_auc == max(result.validation_auc for result in run.history)


def test_published_weights_are_half_as_large_and_answer_alike(tmp_path: Path) -> None:
    TrainingRun(make_faces(), dataclasses.replace(QUICK, epochs=1), tmp_path).train()
    spec_path, spec = publish(tmp_path, tmp_path / "out" / "tiny.safetensors", training_data="drawn faces")
    assert ModelSpec.from_yaml(spec_path) == spec
    assert spec.training_data == "drawn faces"
    published = tmp_path / "out" / "tiny.safetensors"
    assert published.stat().st_mode == spec_path.stat().st_mode
    assert published.stat().st_size < 0.6 * (tmp_path / BEST).stat().st_size
    faces = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        halved, whole = (load_network(path, TINY).network(faces) for path in (published, tmp_path / BEST))
    assert torch.allclose(halved, whole, atol=2e-2)
    with pytest.raises(OptionError, match=r"holds no best\.safetensors"):
        publish(tmp_path / "nothing", published)


def test_published_scores_are_moved_so_that_one_becomes_a_half(tmp_path: Path) -> None:
    TrainingRun(make_faces(), dataclasses.replace(QUICK, epochs=1), tmp_path).train()
    publish(tmp_path, tmp_path / "as-it-was.safetensors")
    publish(tmp_path, tmp_path / "moved.safetensors", half_at=0.2)
    faces = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        before, after = (
            load_network(tmp_path / f"{name}.safetensors", TINY).network(faces) for name in ("as-it-was", "moved")
        )
    assert torch.allclose(after - before, torch.tensor(0.2).logit().neg(), atol=2e-3)
    with pytest.raises(OptionError, match="`half_at` is 1; name a score between 0 and 1"):
        publish(tmp_path, tmp_path / "moved.safetensors", half_at=1.0)


def test_a_transformer_is_published_for_crops_of_another_size_and_margin(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY, architecture="timm:test_vit")
    TrainingRun(make_faces(), dataclasses.replace(QUICK, spec=spec, epochs=1), tmp_path).train()
    published = tmp_path / "large.safetensors"
    _, large = publish(tmp_path, published, input_px=64, margin=0.2)
    assert (large.input_height_px, large.input_width_px, large.crop.margin) == (64, 64, 0.2)
    kept, laid_out = load_file(tmp_path / BEST), load_file(published)
    assert [name for name in kept if kept[name].shape != laid_out[name].shape] == ["pos_embed"]
    small = kept["pos_embed"][0, 1:].T.reshape(1, -1, 2, 2)
    larger = laid_out["pos_embed"][0, 1:].T.reshape(1, -1, 4, 4).float()
    resized = functional.interpolate(small, (4, 4), mode="bicubic", antialias=True)
    assert torch.allclose(resized, larger, atol=1e-3)
    with torch.inference_mode():
        assert load_network(published).network(torch.randn(2, 3, 64, 64)).isfinite().all()
    with pytest.raises(SpecError, match="margin"):
        publish(tmp_path, published, margin=-1.0)


def test_training_learns_what_is_obvious(tmp_path: Path) -> None:
    config = dataclasses.replace(
        QUICK,
        epochs=6,
        crops_per_epoch=32,
        batch_size=8,
        accumulate=1,
        learning_rate=3e-3,
        ema_decay=0.0,
        mixture=Mixture(made=0.0),
        augmentation=Augmentation(color=0, resize=0, blur=0, noise=0, jpeg=0, h264=0),
    )
    run = TrainingRun(make_faces(24, 24, dark_fakes=True), config, tmp_path)
    best = run.train()
    assert min(result.train_loss for result in run.history) < run.history[0].train_loss / 2
    assert best.validation_auc > 0.9


def test_early_stopping_counts_from_the_best_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aucs = iter([0.6, 0.7, 0.65, 0.66, 0.9])
    monkeypatch.setattr(TrainingRun, "validate", lambda self, detector: (0.5, next(aucs)))
    run = TrainingRun(make_faces(), dataclasses.replace(QUICK, epochs=5, patience=2), tmp_path)
    assert run.train().epoch == 2
    assert run.epoch == 4


def test_the_last_epoch_is_published_where_the_configuration_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aucs = iter([0.9, 0.7])
    monkeypatch.setattr(TrainingRun, "validate", lambda self, detector: (0.5, next(aucs)))
    run = TrainingRun(make_faces(), dataclasses.replace(QUICK, epochs=2, keep="last"), tmp_path)
    assert run.train().epoch == 2
    kept = load_file(tmp_path / BEST)
    last = run.ema.module.network.state_dict()
    assert all(torch.equal(kept[name], last[name]) for name in last)


def test_frozen_parts_and_statistics_stay_as_they_were(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=1, freeze=("conv_stem", "blocks.0"), freeze_statistics=True)
    run = TrainingRun(make_faces(), config, tmp_path)
    before = {name: value.clone() for name, value in run.detector.state_dict().items()}
    run.train()
    changed = {name for name, value in run.detector.state_dict().items() if not torch.equal(value, before[name])}
    assert "network.classifier.weight" in changed
    assert not [name for name in changed if "running_" in name or "conv_stem" in name or "blocks.0." in name]
    with pytest.raises(OptionError, match=r"'blocks\.77' cannot be frozen"):
        TrainingRun(make_faces(), dataclasses.replace(QUICK, freeze=("blocks.77",)), tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainingRun(make_faces(), QUICK, tmp_path)

    def poison(epoch: int, batch: int, batches: int, loss: float) -> None:
        if (epoch, batch) == (2, 3):
            with torch.no_grad():
                run.detector.network.classifier.weight.fill_(float("nan"))

    with pytest.raises(
        TrainingError, match=r"became nan in epoch 2 at batch 4 of 4; .* \(epoch 1\); .* below 0.0005"
    ):
        run.train(on_batch=poison)
    assert all(value.isfinite().all() for value in weights_of(tmp_path).values())
    again = TrainingRun(make_faces(), QUICK, tmp_path)
    again.resume(tmp_path)
    assert again.epoch == 1


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from deepfake_training.loop.checkpointing import save_last

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
save_last(Path(sys.argv[1]), {"epoch": 2, "detector": torch.zeros(100_000)})
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    save_last(tmp_path, {"epoch": 1})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    full = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert "TrainingError" in full.stderr
    assert "cannot be written" in full.stderr
    assert f"resume the run in {tmp_path}" in full.stderr
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert torch.load(tmp_path / LAST, weights_only=True)["epoch"] == 1


def test_out_of_memory_names_a_batch_that_fits(tmp_path: Path) -> None:
    run = TrainingRun(make_faces(), dataclasses.replace(QUICK, batch_size=8), tmp_path)

    def limited(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    run.detector.register_forward_pre_hook(limited)
    with pytest.raises(TrainingError, match=r"batch of 8; 2 fits: a 'batch_size' of 2 with 'accumulate' of 8"):
        run.train()
    assert fitting_batch_size(run.detector, torch.zeros(8, 32, 32, 3, dtype=torch.uint8)) == 2


def test_a_run_resumes_with_its_own_configuration_only(tmp_path: Path) -> None:
    TrainingRun(make_faces(), dataclasses.replace(QUICK, epochs=1), tmp_path).train()
    other = TrainingRun(make_faces(), dataclasses.replace(QUICK, epochs=1, learning_rate=1e-3, seed=9), tmp_path)
    with pytest.raises(OptionError, match=r"differs in learning_rate, seed;"):
        other.resume(tmp_path)
    with pytest.raises(OptionError, match="no such checkpoint to resume from"):
        other.resume(tmp_path / "nowhere")
    torch.save({"epoch": 1}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="was not written by a training run"):
        other.resume(tmp_path / "foreign.pt")


def test_initial_weights_are_taken_by_name_or_by_order(tmp_path: Path) -> None:
    donor = build_network(TINY).state_dict()
    save_file(donor, tmp_path / "named.safetensors")
    torch.save({f"layer{number}": value for number, value in enumerate(donor.values())}, tmp_path / "ordered.pt")
    for name in ("named.safetensors", "ordered.pt"):
        network = build_network(TINY)
        head = network.classifier.weight.clone()
        assert name in load_initial(network, tmp_path / name)
        assert torch.equal(network.conv_stem.weight, donor["conv_stem.weight"])
        # The head goes along only where the names say that it is the very same network, else it starts small.
        if "named" in name:
            assert torch.equal(network.classifier.weight, donor["classifier.weight"])
        else:
            assert network.classifier.weight.abs().max() <= network.classifier.in_features**-0.5 < head.abs().max()


def test_initial_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    other = build_network(dataclasses.replace(TINY, architecture="timm:test_resnet"))
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="which do not fit"):
        load_initial(build_network(TINY), tmp_path / "other.safetensors")
    assert load_file(tmp_path / "other.safetensors")


def test_sharpness_aware_steps_look_uphill_and_come_back() -> None:
    weights = [torch.tensor([3.0, 0.0], requires_grad=True), torch.tensor([4.0], requires_grad=True)]
    before = [weight.detach().clone() for weight in weights]
    loss = (weights[0].square().sum() + weights[1].square().sum()) / 2  # its gradient is the weights, of norm 5
    with uphill(weights, loss, 0.5):
        assert weights[0].tolist() == pytest.approx([3.3, 0.0])
        assert weights[1].tolist() == pytest.approx([4.4])
    assert all(torch.equal(weight, value) for weight, value in zip(weights, before, strict=True))


def test_sharpness_aware_training_ends_elsewhere(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=1)
    TrainingRun(make_faces(), config, tmp_path / "plain").train()
    TrainingRun(make_faces(), dataclasses.replace(config, sam_radius=0.05), tmp_path / "sharp").train()
    plain, sharp = weights_of(tmp_path / "plain"), weights_of(tmp_path / "sharp")
    assert not same(plain, sharp)
    assert all(torch.isfinite(value.float()).all() for value in sharp.values())
