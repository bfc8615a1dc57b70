"""A small network learns from what a large one says of crops."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from drawn_faces import QUICK, TINY, make_faces
from safetensors.torch import load_file

from deepfake_export import load_network
from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.checkpoint.layers import last_linear
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_preprocess.contract.spec import Crop, Head
from deepfake_preprocess.errors import OptionError
from deepfake_training.data.taught import TaughtFolder
from deepfake_training.evaluate.held_out import score_held_out
from deepfake_training.loop import distilling
from deepfake_training.loop.checkpointing import save_best
from deepfake_training.loop.config import TrainConfig
from deepfake_training.loop.distilling import Distillation, seen_and_logit, teach
from deepfake_training.loop.precision import fast_precision
from deepfake_training.loop.run import TrainingRun

TEACHER = dataclasses.replace(
    TINY, name="teacher", architecture="timm:test_vit", head=Head(layers=("normalize", "linear:1")), temperature=2.0
)
CROPS = 12


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer with random weights, whose answers differ between crops."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    network = build_network(TEACHER)
    with torch.no_grad():
        last_linear(network)[1].weight.normal_(std=3)
    save_best(folder, network, TEACHER)
    return folder / "best.safetensors"


@pytest.fixture(scope="module")
def taught(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The configuration of a student, with a folder that its teacher filled in two calls, as after a kill."""
    folder = tmp_path_factory.mktemp("taught") / "taught"
    config = dataclasses.replace(QUICK, taught=str(folder), crops_per_epoch=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distilling, "CROPS_PER_FILE", 4)
        teach(make_faces(), config, teacher, num_crops=6)
        before = {path.name: path.read_bytes() for path in (folder / "train").iterdir()}
        (folder / "train" / "00001.safetensors").unlink()
        counts: list[tuple[int, int]] = []
        teach(make_faces(), config, teacher, num_crops=CROPS, progress=lambda *seen: counts.append(seen))
    assert counts[-1] == (CROPS + 8, CROPS + 8)
    assert (folder / "train" / "00000.safetensors").read_bytes() == before["00000.safetensors"]
    return config


def test_a_file_holds_the_crops_and_what_the_teacher_says_of_them(taught: TrainConfig, teacher: Path) -> None:
    assert taught.taught is not None
    content = load_file(sorted((Path(taught.taught) / "train").iterdir())[2])
    detector = ServedDetector(load_network(teacher).network, TEACHER).eval()
    with torch.inference_mode(), fast_precision(detector, "cpu"):
        seen, logit = seen_and_logit(detector, last_linear(detector.network)[1], content["crops"])
    torch.testing.assert_close(content["logits"], logit.float())
    torch.testing.assert_close(content["tokens"], seen.half(), atol=1e-3, rtol=1e-2)
    drawn, _ = dataclasses.replace(taught, taught=None).split(make_faces())
    for row in range(4):
        crop, label = drawn[8 + row]
        assert torch.equal(content["crops"][row], crop)
        assert torch.equal(content["labels"][row], label)


def test_a_student_learns_to_see_what_its_teacher_sees(taught: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(
        taught, epochs=8, batch_size=4, accumulate=1, learning_rate=3e-3, ema_decay=0.0, pair_weight=0.0
    )
    faces = config.load_faces()
    assert isinstance(faces, TaughtFolder)
    run = TrainingRun(faces, config, tmp_path)
    run.train()
    assert run.history[0].crops == CROPS, "an epoch takes each crop once"
    assert min(line.train_loss for line in run.history) < 0.8 * run.history[0].train_loss
    again = TrainingRun(faces, config, tmp_path)
    again.resume(tmp_path)
    projections = [each._parts()["distillation"].projection.weight for each in (again, run)]
    assert torch.equal(*projections), "what projects the features goes on, too"
    assert len(score_held_out(tmp_path)[1]) == config.validation_crops


def test_a_last_layer_alone_learns_what_the_teacher_says(teacher: Path, tmp_path: Path) -> None:
    student = build_network(TEACHER)
    student.load_state_dict(load_file(teacher))
    layer = last_linear(student)[1]
    with torch.no_grad():
        layer.weight += 5 * torch.randn(layer.weight.shape, generator=torch.manual_seed(1))
    (tmp_path / "start").mkdir()
    save_best(tmp_path / "start", student, TEACHER)
    config = dataclasses.replace(
        QUICK,
        taught=str(tmp_path / "taught"),
        spec=TEACHER,
        initial_weights=str(tmp_path / "start" / "best.safetensors"),
        trained="head",
        epochs=1,
        crops_per_epoch=None,
    )
    teach(make_faces(real=120), config, teacher, num_crops=200)
    run = TrainingRun(config.load_faces(), config, tmp_path / "run")
    losses: list[float] = []
    result = run.train(on_batch=lambda *seen: losses.append(seen[3]))
    assert result.train_loss < 0.1 * sum(losses) / len(losses)
    weights = [tmp_path / name / "best.safetensors" for name in ("start", "run")]
    started, learned = map(load_file, weights)
    differ = {name for name in started if not torch.equal(started[name], learned[name])}
    assert differ == {"head.1.weight", "head.1.bias"}

    _, held_out = config.split(config.load_faces())
    items = [held_out[place] for place in range(len(held_out))]
    crops, _, _, wanted = (torch.stack(column) for column in zip(*items, strict=True))
    apart = []
    for path in weights:
        detector = ServedDetector(load_network(path).network, TEACHER).eval()
        with torch.inference_mode():
            apart.append(float((detector(crops)[1] - wanted).square().mean()))
    assert apart[1] < 0.2 * apart[0], "crops that it was not fitted to are said alike, too"


def test_a_last_layer_is_fitted_in_one_pass_to_enough_taught_crops(taught: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(taught, spec=TEACHER, trained="head", epochs=1)
    with pytest.raises(OptionError, match="12 taught crops are too few for a regression; it takes 20"):
        TrainingRun(config.load_faces(), config, tmp_path).train()
    with pytest.raises(OptionError, match="in one pass; set 'epochs' to 1"):
        dataclasses.replace(config, epochs=2)


def test_the_loss_is_none_where_student_and_teacher_agree() -> None:
    layer = torch.nn.Linear(3, 1)
    loss = Distillation(layer, 3, features=1.0, logit=0.0)
    torch.nn.init.eye_(loss.projection.weight)
    torch.nn.init.zeros_(loss.projection.bias)
    seen, logit = torch.randn(4, 3), torch.randn(4, 1)
    with torch.inference_mode():
        assert float(loss(seen, logit, 5 * seen, logit)) == pytest.approx(0, abs=1e-6)
        assert float(loss(seen, logit, -seen, logit)) == pytest.approx(2, abs=1e-6)


def test_pairs_stay_neighbors_in_every_epoch(taught: TrainConfig) -> None:
    train, _ = taught.split(taught.load_faces())
    orders = []
    for epoch in range(2):
        train.set_epoch(epoch)
        sources = [train.source(place) for place in range(CROPS)]
        assert sources[::2] == sources[1::2]
        assert [float(train[place][1]) for place in range(CROPS)] == [0.0, 1.0] * (CROPS // 2)
        orders.append(sources)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_student_of_a_smaller_input_shrinks_the_crops(taught: TrainConfig) -> None:
    small = dataclasses.replace(taught, spec=dataclasses.replace(TINY, input_width_px=16, input_height_px=16))
    train, held_out = small.split(small.load_faces())
    large, _ = taught.split(taught.load_faces())
    assert len(train) == CROPS
    assert len(held_out) == small.validation_crops
    crop = train[0][0]
    assert crop.shape == (16, 16, 3)
    assert crop.float().mean() == pytest.approx(float(large[0][0].float().mean()), abs=1)


def test_what_does_not_fit_is_said(taught: TrainConfig, teacher: Path, tmp_path: Path) -> None:
    faces = make_faces()
    with pytest.raises(OptionError, match="set 'taught' to a folder"):
        teach(faces, QUICK, teacher)
    wide = dataclasses.replace(taught, spec=dataclasses.replace(TINY, crop=Crop(0.4)))
    with pytest.raises(OptionError, match=r"takes faces with a margin of 0\.1 and the alignment 'none', and"):
        teach(faces, wide, teacher)
    network = build_network(TEACHER)
    save_best(tmp_path, network, TEACHER)
    with pytest.raises(OptionError, match="is of another teacher"):
        teach(faces, taught, tmp_path / "best.safetensors")
    large = dataclasses.replace(taught, spec=dataclasses.replace(TINY, input_width_px=64))
    with pytest.raises(OptionError, match=r"holds crops of 32 x 32 px, which the spec's 64 x 32 exceed"):
        large.split(large.load_faces())
    nothing = dataclasses.replace(taught, taught=str(tmp_path / "nothing"))
    with pytest.raises(OptionError, match="holds no crops; fill it with `deepfake teach`"):
        nothing.split(nothing.load_faces())
    for part in ("train", "held_out"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "0.safetensors").write_bytes(b"torn")
    torn = dataclasses.replace(taught, taught=str(tmp_path))
    with pytest.raises(OptionError, match="holds no crops with a teacher's answers"):
        torn.split(torn.load_faces())
