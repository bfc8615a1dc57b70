"""Detectors as others publish them: their code, their checkpoints and their scores, exported and served.

Each is written as its publisher would: a folder with code and weights, its own preprocessing, its own way of
returning scores. The networks are small; names, prefixes and shapes follow the conventions named beside each.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
import tritonclient.grpc
from checkout import ROOT
from safetensors.torch import save_file

from deepfake_export import ExportRequest, export_checkpoint
from deepfake_export.demo.untrained import build_untrained_network
from deepfake_export.proof.crops import generate_crops
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import CheckpointError, ExportError, SpecError
from deepfake_serve import EmbeddedTriton

pytestmark = pytest.mark.usefixtures("exported_once")

SIZE_PX = 64
CROPS = generate_crops(5, (SIZE_PX, SIZE_PX), seed=31)

CODE = {
    # The DFDC winner's convention: a timm encoder that keeps its unused classifier, and a head beside it.
    "challenge/zoo/classifiers.py": """
import timm
from torch import nn

class DeepFakeClassifier(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = timm.create_model(encoder)
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(self.encoder.num_features, 1)

    def forward(self, x):
        x = self.encoder.forward_features(x)
        x = self.avg_pool(x).flatten(1)
        return self.fc(self.dropout(x))

def test_efficientnet_classifier():
    return DeepFakeClassifier("test_efficientnet")
""",
    # DeepfakeBench's convention: a detector takes and returns a dict; packages with relative imports.
    "bench/detectors/__init__.py": "from .xception_like import Detector\n",
    "bench/detectors/blocks.py": """
from torch import nn

def conv(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True))
""",
    "bench/detectors/xception_like.py": """
import torch
from torch import nn
from .blocks import conv

class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 8), conv(8, 16))
        self.last_layer = nn.Linear(16, 2)

    def features(self, x):
        return self.body(x)

    def classifier(self, features):
        return self.last_layer(nn.functional.adaptive_avg_pool2d(features, 1).flatten(1))

class Detector(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.backbone = Backbone()

    def forward(self, data_dict, inference=False):
        features = self.backbone.features(data_dict["image"])
        pred = self.backbone.classifier(features)
        return {"cls": pred, "prob": torch.softmax(pred, dim=1)[:, 1], "feat": features}
""",
    # Lightning's convention: the network is an attribute of the module that trains it, and so is the loss.
    "lightning/nets.py": """
from torch import nn

def detector():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))

class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = detector()

    def forward(self, pixels):
        return self.net(pixels).squeeze(1)
""",
    # Hugging Face's convention: an object with `logits`, whose labels config.json lists.
    "hub/modeling.py": """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class ImageClassifierOutput:
    loss: object = None
    logits: torch.Tensor = None

class ForImageClassification(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Sequential(nn.Conv2d(3, 8, 5, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(8, 2)

    def forward(self, pixel_values, labels=None):
        return ImageClassifierOutput(logits=self.classifier(self.base(pixel_values)))

class Logits(ForImageClassification):
    def forward(self, pixels):
        return super().forward(pixels).logits
""",
    # A network that applies sigmoid itself, as Keras code that was ported does.
    "ported/meso.py": """
import torch
from torch import nn

class Meso(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.LeakyReLU(0.1), nn.MaxPool2d(16), nn.Flatten())
        self.fc = nn.Linear(8 * 16, 1)

    def forward(self, x):
        return torch.sigmoid(self.fc(self.features(x)))

class Logit(nn.Module):
    def __init__(self):
        super().__init__()
        self.meso = Meso()

    def forward(self, pixels):
        return torch.logit(self.meso(pixels))

class Features(Meso):
    def forward(self, x):
        return self.fc(self.features(x)), self.features(x)

def needs_options(backbone):
    return Meso()
""",
}
PAGE = (ROOT / "docs/export.md").read_text(encoding="utf-8")
EXAMPLE = dict(re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
"""What the documentation puts beside the checkpoint of `bench`, by name."""


class Published(NamedTuple):
    """A detector, the spec that a user writes for it, and what its publisher's own code says of a crop."""

    spec: ModelSpec
    checkpoint: Path
    score: Callable[[np.ndarray], np.ndarray]
    notes: tuple[str, ...]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The publishers' folders; the command is not run in any of them."""
    for name, text in {**CODE, **{f"bench/{name}": text for name, text in EXAMPLE.items()}}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.partition(".")[0] in ("zoo", "detectors", "for_export", "nets", "modeling", "meso"):
            del sys.modules[name]


def of_publisher(folder: Path, module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    with monkeypatch.context() as patched:
        patched.syspath_prepend(folder)
        network = getattr(importlib.import_module(module), name)()
    with torch.random.fork_rng():
        torch.manual_seed(8)
        for value in network.parameters():
            # Wide enough that crops get different scores.
            torch.nn.init.normal_(value, std=0.3)
    return network.eval()


def spec_of(name: str, architecture: str, **fields: Any) -> ModelSpec:
    return ModelSpec(name, architecture, input_height_px=SIZE_PX, input_width_px=SIZE_PX, **fields)


def tensors(crops: np.ndarray, mean: float | list[float], std: float | list[float]) -> torch.Tensor:
    """The preprocessing that publishers write down, in NumPy."""
    pixels = (crops.astype(np.float64) / 255 - mean) / std
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def challenge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    with monkeypatch.context() as patched:
        patched.syspath_prepend(folder)
        network = importlib.import_module("zoo.classifiers").test_efficientnet_classifier()
    trained = build_untrained_network(spec_of("demo", "timm:test_efficientnet")).state_dict()
    network.encoder.load_state_dict({k: v for k, v in trained.items() if "classifier" not in k}, strict=False)
    network.eval()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 40, "state_dict": state, "bce_best": np.float64(0.27)}, folder / "final_888_b7_ns.pt")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return Published(
        spec_of("challenge", "python:zoo.classifiers:test_efficientnet_classifier"),
        folder / "final_888_b7_ns.pt",
        lambda crops: network(tensors(crops, mean, std)).sigmoid()[:, 0].numpy(),
        ("under 'state_dict', without the prefix 'module.'",),
    )


def bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    network = of_publisher(folder, "detectors", "Detector", monkeypatch)
    torch.save(network.state_dict(), folder / "ckpt_best.pth")
    return Published(
        ModelSpec.from_yaml(folder / "ckpt_best.yaml"),
        folder / "ckpt_best.pth",
        lambda crops: network({"image": tensors(crops, 0.5, 0.5)})["prob"].numpy(),
        ("put under 'detector.' of the network",),
    )


def lightning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    network = of_publisher(folder, "nets", "detector", monkeypatch)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    checkpoint = {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state | {"criterion.pos_weight": torch.tensor([2.0])},
        "hyper_parameters": {"lr": 1e-4, "data_dir": Path("data")},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_auc'}": {"best_model_score": torch.tensor(0.97)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}],
    }
    torch.save(checkpoint, folder / "epoch=3.ckpt")
    return Published(
        # Trained on OpenCV's channel order and pixels from -1 to 1, with the label 0 for fake.
        spec_of(
            "lightning", "python:nets:Squeezed", head=Head("sigmoid", 0), mean=(0.5,) * 3, std=(0.5,) * 3,
            color_order="BGR",
        ),
        folder / "epoch=3.ckpt",
        lambda crops: 1 - network(tensors(crops[..., ::-1], 0.5, 0.5)).sigmoid()[:, 0].numpy(),
        ("1 tensor(s) outside of the network were left out (criterion.pos_weight)", "put under 'net.'"),
    )  # fmt: skip


def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    network = of_publisher(folder, "modeling", "ForImageClassification", monkeypatch)
    save_file(network.state_dict(), folder / "model.safetensors")
    return Published(
        # config.json: "id2label": {"0": "Deepfake", "1": "Realism"}
        spec_of("hub", "python:modeling:Logits", head=Head("softmax", 0)),
        folder / "model.safetensors",
        lambda crops: (
            network(tensors(crops, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).logits.softmax(1)[:, 0].numpy()
        ),
        (),
    )


def ported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    network = of_publisher(folder, "meso", "Meso", monkeypatch)
    torch.save({"model": network.state_dict()}, folder / "Meso4_DF.pth")
    return Published(
        spec_of("ported", "python:meso:Logit", mean=(0.0,) * 3, std=(1.0,) * 3),
        folder / "Meso4_DF.pth",
        lambda crops: network(tensors(crops, 0, 1))[:, 0].numpy(),
        ("under 'model'", "put under 'meso.'"),
    )


def test_published_detectors_give_their_publishers_scores_served(place, monkeypatch):
    published = [make(place / make.__name__, monkeypatch) for make in (challenge, bench, lightning, hub, ported)]
    for item in published:
        result = export_checkpoint(ExportRequest(item.checkpoint, place / "m", spec=item.spec, max_batch_size=4))
        assert all(any(wanted in note for note in result.notes) for wanted in item.notes), result.notes
    with (
        EmbeddedTriton(place / "m", instances=1, threads=1) as triton,
        tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client,
        torch.inference_mode(),
    ):
        for item in published:
            tensor = tritonclient.grpc.InferInput("faces", [4, SIZE_PX, SIZE_PX, 3], "UINT8")
            tensor.set_data_from_numpy(CROPS[:4])
            served = client.infer(item.spec.name, [tensor]).as_numpy("fake_probability")[:, 0]
            expected = item.score(CROPS[:4])
            assert np.ptp(expected) > 1e-3, item.spec.name  # scores that do not differ would prove nothing
            np.testing.assert_allclose(served, expected, atol=1e-4, err_msg=item.spec.name)
        pictures = [str(place / f"{index}.png") for index in range(len(CROPS))]
        for path, crop in zip(pictures, CROPS, strict=True):
            cv2.imwrite(path, crop[..., ::-1])
        done = subprocess.run(
            [sys.executable, "check.py", triton.grpc_url, *pictures],
            cwd=place / "bench", capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figure = re.fullmatch(r"largest difference (\S+) on 5 pictures\n", done.stdout)
    assert figure is not None, done.stdout
    assert float(figure[1]) < 1e-4


@pytest.mark.parametrize(
    ("make", "architecture", "head", "error", "message"),
    [
        (bench, "detectors:Detector", Head("softmax"), CheckpointError, "does not run on 64x64 px crops"),
        (
            *(hub, "modeling:ForImageClassification", Head("softmax"), CheckpointError),
            r"gives a ImageClassifierOutput, but head 'softmax' needs \[2, 2\].*from a module around the network",
        ),
        (
            *(ported, "meso:Features", Head(), CheckpointError),
            r"gives a tuple with \[2, 1\], \[2, 128\], but head 'sigmoid' needs \[2, 1\]",
        ),
        (
            *(ported, "meso:Meso", Head(), ExportError),
            r"ends in Sigmoid, so it gives probabilities p.*let it return what comes before, or torch\.logit\(p\)",
        ),
        (ported, "meso:needs_options", Head(), SpecError, "missing 1 required positional argument: 'backbone'"),
        (ported, "missing_module:Meso", Head(), SpecError, r"No module named 'missing_module'.*put the module into"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(place, monkeypatch, make, architecture, head, error, message):
    item = make(place / make.__name__, monkeypatch)
    with pytest.raises(error, match=message):
        export_checkpoint(
            ExportRequest(item.checkpoint, place / "m", spec=spec_of("no", f"python:{architecture}", head=head))
        )
