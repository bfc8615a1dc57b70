"""The demo checkpoints that the package holds fit the networks that their specs name."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.demo.checkpoint import DEMOS, Demo, write_demo_checkpoint
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError


@pytest.mark.parametrize("demo", [demo for demo, ours in DEMOS.items() if ours.composed])
def test_what_is_held_of_a_composed_checkpoint_is_what_its_network_has_beyond_the_tower(demo: Demo) -> None:
    with as_file(files("deepfake_export.demo")) as folder:
        spec = ModelSpec.from_yaml(folder / f"{DEMOS[demo].name}.yaml")
        held = load_file(folder / f"{DEMOS[demo].name}.safetensors")
    assert spec.name == DEMOS[demo].name
    assert spec.calibration is not None
    with torch.device("meta"):
        network = build_network(spec)
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    assert held.keys() >= {name for name in wanted if name.startswith("head.")}
    assert {name: value.shape for name, value in held.items()} == {name: wanted[name] for name in held}
    others = {name for name in held if not name.startswith("head.") and "norm" not in name}
    # 197 positions, of 14 x 14 patches and the class token, are the tower's own.
    assert others == (set() if wanted["pos_embed"][1] == 197 else {"pos_embed"})


def test_without_a_network_the_tiny_one_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise CheckpointError("pip could not fetch it")

    monkeypatch.setattr("deepfake_export.demo.clip_tower.unpacked", unreachable)
    with pytest.raises(CheckpointError, match=r"could not fetch it; the demo checkpoint `tiny` needs no network"):
        write_demo_checkpoint(tmp_path / "demo", "fast")
    assert not (tmp_path / "demo").exists()


def test_the_tiny_one_is_copied_with_its_card(tmp_path: Path) -> None:
    checkpoint, spec = write_demo_checkpoint(tmp_path, "tiny")
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.name, spec.name, "MODEL_CARD_TINY.md"}
    network = build_network(ModelSpec.from_yaml(spec))
    assert load_file(checkpoint).keys() == network.state_dict().keys()
