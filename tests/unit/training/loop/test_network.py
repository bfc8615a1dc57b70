"""Training the norms and the head of a transformer alone: what changes, what is published, what is put together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from drawn_faces import QUICK, TINY, make_faces
from safetensors.torch import load_file, save_file

from deepfake_export.checkpoint.architectures import build_network
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.data.augment import Augmentation
from deepfake_training.data.dataset import Mixture
from deepfake_training.loop.checkpointing import BEST, publish
from deepfake_training.loop.network import prepare_network, weight_groups
from deepfake_training.loop.run import TrainingRun

TRANSFORMER = ModelSpec(
    "transformer",
    "timm:test_vit",
    head=Head(layers=("normalize", "linear:1")),
    input_height_px=32,
    input_width_px=32,
    crop=TINY.crop,
)
HEAD = {"head.1.weight", "head.1.bias"}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the network without its head, as others publish them."""
    path = tmp_path_factory.mktemp("tower") / "tower.safetensors"
    weights = build_network(TRANSFORMER).state_dict()
    save_file({name: value for name, value in weights.items() if name not in HEAD}, path)
    return path


def test_norms_and_head_are_trained_and_published_without_the_rest(tower: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(
        QUICK, spec=TRANSFORMER, initial_weights=str(tower), trained="norms_and_head", head_rate=10.0, epochs=1
    )
    run = TrainingRun(make_faces(), config, tmp_path / "run")
    assert "by name" in run.initial_note
    run.train()
    before, after = load_file(tower), load_file(tmp_path / "run" / BEST)
    changed = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    assert changed >= HEAD
    assert changed - HEAD
    assert all("norm" in name for name in changed - HEAD)
    publish(tmp_path / "run", tmp_path / "changes.safetensors", base=tower)
    assert load_file(tmp_path / "changes.safetensors").keys() == changed


def test_weights_of_larger_crops_are_taken_with_the_positions_of_patches_laid_out_anew(tmp_path: Path) -> None:
    larger = dataclasses.replace(TRANSFORMER, input_height_px=64, input_width_px=64)
    given = build_network(larger).state_dict()
    # From left to right and from top to bottom, the same in all channels; 4 x 4 patches behind the class token.
    ramp = torch.arange(4.0)[:, None] * 10 + torch.arange(4.0)
    given["pos_embed"][0, 1:] = ramp.reshape(-1, 1)
    save_file(given, tmp_path / "larger.safetensors")
    config = dataclasses.replace(
        QUICK, spec=TRANSFORMER, initial_weights=str(tmp_path / "larger.safetensors"), trained="norms_and_head"
    )
    network, _, origin = prepare_network(config)
    assert "by name" in origin
    taken = network.state_dict()
    differ = {name for name, value in given.items() if not torch.equal(value, taken[name])}
    assert differ == {"pos_embed"}
    assert torch.equal(taken["pos_embed"][0, 0], given["pos_embed"][0, 0])
    grid = taken["pos_embed"][0, 1:, 0].reshape(2, 2)
    torch.testing.assert_close(grid.flip(0, 1) + grid, torch.full((2, 2), 33.0))  # the middle stays where it was
    assert grid[0, 0] < grid[0, 1] < grid[1, 0] < grid[1, 1]
    save_file({name: given[name] for name in given if name not in HEAD}, tmp_path / "tower.safetensors")
    TrainingRun(make_faces(), dataclasses.replace(config, epochs=1), tmp_path / "run").train()
    publish(tmp_path / "run", tmp_path / "changes.safetensors", base=tmp_path / "tower.safetensors")
    assert load_file(tmp_path / "changes.safetensors")["pos_embed"].shape == taken["pos_embed"].shape


def test_weights_that_went_through_half_precision_are_still_those_of_the_base(tower: Path, tmp_path: Path) -> None:
    halved = tmp_path / "halved.safetensors"
    save_file({name: value.half() for name, value in load_file(tower).items()}, halved)
    config = dataclasses.replace(
        QUICK, spec=TRANSFORMER, initial_weights=str(halved), trained="head", epochs=1, weight_decay=1e-3
    )
    TrainingRun(make_faces(), config, tmp_path / "run").train()
    publish(tmp_path / "run", tmp_path / "changes.safetensors", base=tower)
    assert load_file(tmp_path / "changes.safetensors").keys() == HEAD


def test_the_head_is_trained_at_its_own_rate(tower: Path) -> None:
    config = dataclasses.replace(
        QUICK,
        spec=TRANSFORMER,
        initial_weights=str(tower),
        trained="norms_and_head",
        learning_rate=0.01,
        head_rate=5.0,
    )
    network, _, _ = prepare_network(config)
    groups = weight_groups(network, config)
    assert {group["lr"] for group in groups} == {0.01, 0.05}
    at_its_own = [group["params"] for group in groups if group["lr"] == 0.05]
    assert sum(weight.numel() for weights in at_its_own for weight in weights) == 64 + 1
    assert {group["weight_decay"] for group in groups} == {config.weight_decay, 0.0}


def test_patches_are_left_out_in_training_only(tower: Path) -> None:
    config = dataclasses.replace(
        QUICK, spec=TRANSFORMER, initial_weights=str(tower), trained="norms_and_head", patch_drop=0.5
    )
    network, _, _ = prepare_network(config)
    tokens: list[int] = []
    network.get_submodule("blocks.0").register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    crops = torch.zeros(2, 3, 32, 32)
    network.train()(crops)
    network.eval()(crops)
    trained, served = (count - 1 for count in tokens)
    assert trained == served // 2
    with pytest.raises(OptionError, match="'patch_drop'"):
        prepare_network(dataclasses.replace(QUICK, patch_drop=0.5))


def test_a_head_alone_is_fitted_and_goes_on_after_a_kill(tower: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(
        QUICK,
        spec=TRANSFORMER,
        initial_weights=str(tower),
        trained="head",
        weight_decay=1e-3,
        epochs=2,
        crops_per_epoch=24,
        mixture=Mixture(made=0.0),
        augmentation=Augmentation(untouched=1),
    )
    faces = make_faces(24, 24, dark_fakes=True)
    run = TrainingRun(faces, config, tmp_path / "run")
    best = run.train(keep_all=True)
    assert best.validation_auc > 0.9
    assert run.history[-1].train_loss < 0.1
    publish(tmp_path / "run", tmp_path / "changes.safetensors", base=tower)
    assert load_file(tmp_path / "changes.safetensors").keys() == HEAD

    resumed = TrainingRun(faces, config, tmp_path / "resumed")
    resumed.resume(tmp_path / "run" / "epoch_0001.pt")
    resumed.train()
    wanted, found = run.detector.state_dict(), resumed.detector.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


def test_a_head_of_two_logits_cannot_be_fitted_alone(tmp_path: Path) -> None:
    spec = dataclasses.replace(TRANSFORMER, head=Head(kind="softmax", layers=("linear:2",)))
    with pytest.raises(OptionError, match="a head that ends in one logit"):
        TrainingRun(make_faces(), dataclasses.replace(QUICK, spec=spec, trained="head"), tmp_path)


def test_a_normalized_head_looks_at_directions_only() -> None:
    head = build_network(TRANSFORMER).get_submodule("head")
    features = torch.randn(3, 64)
    assert torch.allclose(head(features), head(features * 7), atol=1e-5)
