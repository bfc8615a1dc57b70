"""What a detector says of a face without detail is taken out of what it says of the face."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_faces import QUICK, TINY, make_faces
from safetensors.torch import load_file
from torch import Tensor

from deepfake_client.cli.main import main
from deepfake_export import load_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import OptionError
from deepfake_training.loop.checkpointing import BEST, BEST_SPEC
from deepfake_training.loop.config import TrainConfig
from deepfake_training.loop.discounting import Discount, _without_detail, discount_blur
from deepfake_training.loop.run import TrainingRun

CROPS = 160


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on packed faces, with a transformer that says of each face something else."""
    place = tmp_path_factory.mktemp("runs")
    make_faces(real=120).save(place / "faces.safetensors")
    spec = dataclasses.replace(
        TINY, architecture="timm:test_vit", head=Head(layers=("normalize", "linear:1")), threshold=0.7, caution="Old."
    )
    config = dataclasses.replace(
        QUICK, pack=str(place / "faces.safetensors"), spec=spec, epochs=1, crops_per_epoch=CROPS, learning_rate=3e-3
    )
    TrainingRun(make_faces(real=120), config, place / "run").train()
    return place / "run"


@pytest.fixture(scope="module")
def discounted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Discount, list[tuple[int, int]]]:
    counts: list[tuple[int, int]] = []
    place = tmp_path_factory.mktemp("discounted") / "run"
    found = discount_blur(run, place, num_crops=CROPS, progress=lambda *seen: counts.append(seen))
    return found, counts


def logits(weights: Path, crops: Tensor) -> Tensor:
    detector = ServedDetector(load_network(weights).network, ModelSpec.from_yaml(weights.with_name(BEST_SPEC))).eval()
    with torch.inference_mode():
        return torch.as_tensor(detector(crops)[1])[:, 0]


def test_the_new_logits_say_less_of_what_the_old_ones_say_of_blurred_crops(
    run: Path, discounted: tuple[Discount, list[tuple[int, int]]]
) -> None:
    found, counts = discounted
    assert counts[-1] == (CROPS, CROPS)
    config = TrainConfig.of_run(run)
    fitted, _ = config.split(config.load_faces())
    crops = torch.stack([fitted[place][0] for place in range(CROPS)])
    blurred, before, after = (
        logits(run / BEST, _without_detail(crops)),
        *(logits(weights, crops) for weights in (run / BEST, found.weights)),
    )
    assert float(torch.corrcoef(torch.stack([before, blurred]))[0, 1]) > 0.5
    # Not the correlation: a network that says nothing else is left with noise, whose correlation is by chance.
    shared = [abs(float(torch.cov(torch.stack([one, blurred]))[0, 1])) for one in (before, after)]
    assert shared[1] < 0.5 * shared[0]
    assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-3)
    assert found.share == pytest.approx(float((before - after).std() / before.std()), rel=1e-3)
    assert 0.5 < found.correlation < 1


def test_only_the_last_layer_changes_and_nothing_found_for_the_old_weights_stays(
    run: Path, discounted: tuple[Discount, list[tuple[int, int]]]
) -> None:
    weights = discounted[0].weights
    old, new = load_file(run / BEST), load_file(weights)
    assert old.keys() == new.keys()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {"head.1.weight", "head.1.bias"}
    spec = ModelSpec.from_yaml(weights.with_name(BEST_SPEC))
    assert (spec.threshold, spec.caution) == (0.5, "")
    assert TrainConfig.of_run(weights.parent) == TrainConfig.of_run(run)


def test_a_last_layer_without_bias_has_none_afterwards(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unbiased.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 1, bias=False))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = TrainConfig.of_run(run)
    spec = dataclasses.replace(config.spec, architecture="python:unbiased:make", head=Head())
    TrainingRun(config.load_faces(), dataclasses.replace(config, spec=spec), tmp_path / "run").train()
    discounted = load_file(discount_blur(tmp_path / "run", tmp_path / "new", num_crops=20).weights)
    assert list(discounted) == ["2.weight"]
    assert not torch.equal(discounted["2.weight"], load_file(tmp_path / "run" / BEST)["2.weight"])


def test_a_crop_without_detail_has_its_colors() -> None:
    rng = np.random.default_rng(0)
    crops = torch.from_numpy(rng.integers(100, 140, (2, 224, 224, 3)).astype(np.uint8))
    crops[:, :112] //= 2
    blurred = _without_detail(crops)
    assert blurred.shape == crops.shape
    assert blurred.dtype == torch.uint8
    for half in (slice(0, 100), slice(124, None)):
        np.testing.assert_allclose(blurred[:, half].float().mean(), crops[:, half].float().mean(), atol=0.5)
        assert float(blurred[:, half].float().std()) < 0.3 * float(crops[:, half].float().std())


def test_what_cannot_be_discounted_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds a run already"):
        discount_blur(run, run)
    with pytest.raises(OptionError, match="is not the directory of a run"):
        discount_blur(tmp_path / "none", tmp_path / "new")
    with pytest.raises(OptionError, match="19 crops are too few"):
        discount_blur(run, tmp_path / "new", num_crops=19)
    assert not (tmp_path / "new").exists()


def test_the_command_says_how_much_it_took_out(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["discount-blur", str(run), "-o", str(tmp_path / "new"), "--num-crops", "40", "--workers", "0"]
    for code, said in ((0, "of the logits' standard deviation"), (2, "holds a run already; name another directory")):
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--set", "seed=5"])
        assert int(left.value.code or 0) == code
        assert said in " ".join(capfd.readouterr().err.split())
