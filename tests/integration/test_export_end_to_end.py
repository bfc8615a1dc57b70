"""Checkpoint in, served model out: with real networks, PyTorch's exporter and ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from deepfake_export import ExportRequest, FaceOptions, export_checkpoint, load_network
from deepfake_export.cli.demo_checkpoint import demo_checkpoint
from deepfake_export.cli.export import export
from deepfake_export.demo.untrained import UNTRAINED_SPEC, build_untrained_network
from deepfake_export.graph.onnx_export import MAX_IR_VERSION, OPSET
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.parity import reference_outputs
from deepfake_export.proof.running import LocalEngine, engine_for
from deepfake_preprocess.contract.manifest import Manifest, sha256_file
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.contract.triton_config import config_parameters, read_config
from deepfake_preprocess.errors import (
    CheckpointError,
    ExportError,
    OptionError,
    ParityError,
    RepositoryError,
    SpecError,
)

pytestmark = pytest.mark.usefixtures("exported_once")

SIZE_PX = 64
SPEC = ModelSpec(
    name="tiny",
    architecture="timm:test_efficientnet",
    input_height_px=SIZE_PX,
    input_width_px=SIZE_PX,
    training_data="untrained, for tests",
)

NETS = """
import torch
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )

class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, crops):
        means = crops.mean(dim=(2, 3))
        return self.net(means - means.mean(dim=0))

class FixedBatch(Mixing):
    def forward(self, crops):
        return torch.stack([self.net(crop.mean(dim=(1, 2))) for crop in crops])

class Squeezed(Mixing):
    def forward(self, crops):
        return self.net(crops.mean(dim=(2, 3))).squeeze()

class Deciding(Mixing):
    def forward(self, crops):
        logits = self.net(crops.mean(dim=(2, 3)))
        if logits.mean() > 0:
            logits = logits * 2
        return logits
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_file(build_untrained_network(SPEC).state_dict(), path)
    path.with_suffix(".yaml").write_text(SPEC.to_yaml())
    return path


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """One export, which the tests below read and do not change."""
    return export_checkpoint(
        ExportRequest(checkpoint, tmp_path_factory.mktemp("models"), spec=SPEC, max_batch_size=8)
    )


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "export_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "export_nets", raising=False)
    namespace: dict = {}
    exec(NETS, namespace)
    return namespace


def listing(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_version_is_complete_and_proved(exported, checkpoint):
    assert exported.created
    assert exported.version == 1
    assert listing(exported.repository) == {
        "tiny.lock",
        "tiny/config.pbtxt",
        "tiny/configs/cpu.pbtxt",
        "tiny/configs/embedded.pbtxt",
        *(f"tiny/1/{name}" for name in ("model.onnx", "manifest.json", "report.json", "report.md", "report.html")),
    }
    manifest = Manifest.read(exported.version_dir)
    manifest.verify(exported.version_dir)
    assert manifest.spec == dataclasses.replace(SPEC, checkpoint_sha256=sha256_file(checkpoint))
    assert manifest.parity["passed"]
    assert manifest.parity["batch_sizes"] == [1, 3, 8]
    (artifact,) = json.loads((exported.version_dir / "report.json").read_text())["artifacts"]
    assert artifact["parity"].items() <= manifest.parity.items()
    page = (exported.version_dir / "report.md").read_text()
    assert "**FP32 is served.** FP32 is the only precision that was asked for." in page
    assert "| FP32 | served |" in page
    assert manifest.tools["torch"] == torch.__version__.split("+")[0]
    # The crops are told apart, or the figures would prove nothing.
    low, high = manifest.parity["reference_logit_range"]
    assert high - low > 0.1  # a hundred times what a logit may differ by


def test_the_file_carries_its_contract(exported):
    model = onnx.load(exported.version_dir / "model.onnx")
    metadata = {item.key: item.value for item in model.metadata_props}
    assert ModelSpec.from_parameters(metadata) == exported.manifest.spec
    for name in ("config.pbtxt", "configs/embedded.pbtxt"):
        parameters = config_parameters(read_config(exported.model_dir / name))
        assert ModelSpec.from_parameters(parameters) == exported.manifest.spec
    session = onnxruntime.InferenceSession(exported.version_dir / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(item.name, item.type, item.shape) for item in session.get_inputs()] == [
        ("faces", "tensor(uint8)", ["batch", SIZE_PX, SIZE_PX, 3])
    ]
    assert [(item.name, item.type, item.shape) for item in session.get_outputs()] == [
        ("fake_probability", "tensor(float)", ["batch", 1]),
        ("logit", "tensor(float)", ["batch", 1]),
    ]


def test_the_graph_is_what_runtimes_like(exported):
    path = exported.version_dir / "model.onnx"
    model = onnx.load(path)
    assert model.opset_import[0].version == OPSET
    assert model.ir_version <= MAX_IR_VERSION
    operators = [node.op_type for node in model.graph.node]
    # NVIDIA's parser takes no other operator on UINT8; batch norm is folded; and nothing computes with shapes.
    assert operators[0] == "Cast"
    assert not {"BatchNormalization", "Shape", "Range", "Gather", "Identity"} & set(operators)
    # Notes of the exporter would give away paths of the machine that exported.
    assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 11])
def test_every_batch_size_gives_the_checkpoints_results(exported, checkpoint, batch_size):
    crops = generate_crops(batch_size, SPEC.input_size_wh, seed=99)
    detector = ServedDetector(load_network(checkpoint, SPEC).network, SPEC).eval()
    probability, logit = LocalEngine(exported.version_dir / "model.onnx").run(crops)
    expected_probability, expected_logit = reference_outputs(detector, crops)
    np.testing.assert_allclose(probability, expected_probability, atol=1e-4)
    np.testing.assert_allclose(logit, expected_logit, atol=1e-3)


def test_versions_are_kept_and_identical_ones_not_repeated(nets, tmp_path):
    torch.save(nets["small"]().state_dict(), "c.pt")
    spec = dataclasses.replace(SPEC, architecture="python:export_nets:small", head=Head("softmax"))
    root = tmp_path / "m"
    first = export_checkpoint(ExportRequest("c.pt", root, spec=spec, max_batch_size=2))
    again = export_checkpoint(ExportRequest("c.pt", root, spec=spec, max_batch_size=2))
    assert (again.version, again.created) == (1, False)
    assert again.manifest == first.manifest
    assert "`force` makes a new one" in again.notes[0]
    before = (root / "tiny/1/model.onnx").read_bytes()
    forced = export_checkpoint(ExportRequest("c.pt", root, spec=spec, max_batch_size=2, force=True))
    assert (forced.version, forced.created) == (2, True)
    assert (root / "tiny/1/model.onnx").read_bytes() == before
    assert config_parameters(read_config(root / "tiny/config.pbtxt"))["deepfake.version"] == "2"
    # A larger batch than was proved is another request; a smaller one only changes the configuration.
    assert export_checkpoint(ExportRequest("c.pt", root, spec=spec, max_batch_size=4)).version == 3
    smaller = export_checkpoint(ExportRequest("c.pt", root, spec=spec, max_batch_size=2))
    assert (smaller.version, smaller.created) == (3, False)
    assert read_config(root / "tiny/config.pbtxt").max_batch_size == 2


@pytest.mark.parametrize(("color_order", "fake_index"), [("RGB", 0), ("BGR", 1)])
def test_softmax_heads_and_color_orders(nets, tmp_path, color_order, fake_index):
    network = nets["small"]().eval()
    torch.save({"state_dict": network.state_dict()}, "c.pt")
    spec = dataclasses.replace(
        SPEC, architecture="python:export_nets:small", head=Head("softmax", fake_index), color_order=color_order
    )
    result = export_checkpoint(ExportRequest("c.pt", tmp_path / "m", spec=spec, max_batch_size=2))
    assert "under 'state_dict'" in result.notes[0]
    crops = generate_crops(3, spec.input_size_wh)
    ordered = crops if color_order == "RGB" else crops[..., ::-1]
    pixels = ((ordered / 255 - np.array(spec.mean)) / np.array(spec.std)).astype(np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).softmax(1)[:, fake_index]
    probability, _ = LocalEngine(result.version_dir / "model.onnx").run(crops)
    np.testing.assert_allclose(probability[:, 0], expected, atol=1e-5)


def test_torchscript_checkpoints_and_crops_of_the_user(nets, tmp_path):
    network = nets["small"]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, SIZE_PX, SIZE_PX)), "ts.pt")
    spec = dataclasses.replace(SPEC, architecture="torchscript", head=Head("softmax"))
    (tmp_path / "faces").mkdir()
    for index, crop in enumerate(generate_crops(3, (80, 80))):
        cv2.imwrite(str(tmp_path / f"faces/{index}.png"), crop)
    result = export_checkpoint(
        ExportRequest("ts.pt", tmp_path / "m", spec=spec, max_batch_size=2, faces=FaceOptions(crops="faces"))
    )
    assert result.manifest.parity["passed"]
    assert result.manifest.parity["num_crops"] == 3
    assert "'faces'" in result.manifest.parity["crops"]


def test_a_tampered_model_fails_and_nothing_is_added(nets, tmp_path, monkeypatch):
    """A real fault in a real file: one weight of the exported graph is changed before the proof."""
    torch.save(nets["small"]().state_dict(), "c.pt")
    spec = dataclasses.replace(SPEC, architecture="python:export_nets:small", head=Head("softmax"))

    def tampering(path, **options):
        model = onnx.load(path)
        bias = next(item for item in model.graph.initializer if item.dims == [2])
        values = onnx.numpy_helper.to_array(bias) + np.array([0.05, 0], np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(model, path)
        return engine_for(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr("deepfake_export.precision.selection.engine_for", tampering)
        with pytest.raises(ParityError, match=r"fake_probability differs by up to 0\.01\d* \(limit 0\.0001\)"):
            export_checkpoint(ExportRequest("c.pt", tmp_path / "m", spec=spec, max_batch_size=2))
    assert listing(tmp_path / "m") == {"tiny.lock"}
    assert export_checkpoint(ExportRequest("c.pt", tmp_path / "m", spec=spec, max_batch_size=2)).version == 1


def test_a_network_whose_rows_influence_each_other_is_refused(nets, tmp_path):
    torch.save(nets["Mixing"]().state_dict(), "c.pt")
    spec = dataclasses.replace(SPEC, architecture="python:export_nets:Mixing")
    with pytest.raises(CheckpointError, match="score of a crop depends on the other crops of its batch"):
        export_checkpoint(ExportRequest("c.pt", tmp_path / "m", spec=spec, max_batch_size=4))


def test_a_network_that_squeezes_all_of_its_output_is_served_at_every_batch_size(nets, tmp_path):
    torch.save(nets["Squeezed"]().state_dict(), "c.pt")
    spec = dataclasses.replace(SPEC, architecture="python:export_nets:Squeezed")
    result = export_checkpoint(ExportRequest("c.pt", tmp_path / "m", spec=spec, max_batch_size=4))
    assert result.manifest.parity["batch_sizes"] == [1, 3, 4]


def test_a_network_that_decides_by_its_values_is_refused_with_the_line(nets, tmp_path, capfd):
    network = nets["Deciding"]()
    torch.nn.init.ones_(network.net.bias)  # or its first crop may be below 0, and the second above
    torch.save(network.state_dict(), "c.pt")
    spec = dataclasses.replace(SPEC, architecture="python:export_nets:Deciding")
    with pytest.raises(ExportError, match=r"in export_nets\.py, line \d+: if logits\.mean\(\) > 0:\)"):
        export_checkpoint(ExportRequest("c.pt", tmp_path / "m", spec=spec, max_batch_size=4))
    assert capfd.readouterr() == ("", "")


def test_a_network_that_bakes_its_batch_size_in_is_refused(nets, tmp_path):
    torch.save(nets["FixedBatch"]().state_dict(), "c.pt")
    spec = dataclasses.replace(SPEC, architecture="python:export_nets:FixedBatch")
    with pytest.raises(ExportError, match="bakes a batch size of 2 into its graph"):
        export_checkpoint(ExportRequest("c.pt", tmp_path / "m", spec=spec, max_batch_size=4))
    assert listing(tmp_path / "m") == {"tiny.lock"}


def test_options_out_of_range(checkpoint, tmp_path):
    with pytest.raises(OptionError, match="`max_batch_size` is 0"):
        export_checkpoint(ExportRequest(checkpoint, tmp_path, spec=SPEC, max_batch_size=0))
    with pytest.raises(OptionError, match="no such directory of crops"):
        export_checkpoint(
            ExportRequest(checkpoint, tmp_path, spec=SPEC, faces=FaceOptions(crops=tmp_path / "absent"))
        )


def test_an_export_beside_a_running_one_is_refused(checkpoint, tmp_path):
    def second(step: str) -> None:
        if step.startswith("Loading PyTorch"):
            export_checkpoint(ExportRequest(checkpoint, tmp_path, spec=SPEC))

    with pytest.raises(RepositoryError, match="another export of 'tiny'"):
        export_checkpoint(ExportRequest(checkpoint, tmp_path, spec=SPEC), on_step=second)


def app_of(command) -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def test_the_command_finds_the_spec_and_prints_what_is_next(exported, checkpoint):
    arguments = [str(checkpoint), "--repository", str(exported.repository), "--max-batch-size", "8"]
    shown = CliRunner().invoke(app_of(export), arguments, catch_exceptions=False)
    assert "Nothing to do for tiny version 1" in shown.stdout
    assert "; --force makes a new one" in shown.stdout
    assert f"Next: deepfake serve --repository {exported.repository}" in shown.stdout
    printed = CliRunner().invoke(app_of(export), [*arguments, "--json"], catch_exceptions=False)
    data = json.loads(printed.stdout)
    assert (data["model"], data["version"], data["created"]) == ("tiny", 1, False)
    assert data["parity"]["passed"]


def test_what_a_networks_code_prints_is_no_part_of_the_result(nets, tmp_path):
    Path("printing.py").write_text("print('loading')\nfrom export_nets import Squeezed as Net\n")
    torch.save(nets["Squeezed"]().state_dict(), "c.pt")
    Path("c.yaml").write_text(dataclasses.replace(SPEC, architecture="python:printing:Net").to_yaml())
    printed = CliRunner().invoke(
        app_of(export), ["c.pt", "-r", str(tmp_path / "m"), "--json"], catch_exceptions=False
    )
    assert json.loads(printed.stdout)["model"] == "tiny"
    assert "loading" in printed.stderr


def test_the_command_says_where_it_looked_for_a_spec(tmp_path):
    checkpoint = tmp_path / "c.pt"
    with pytest.raises(CheckpointError, match=r"c\.pt: there is no such checkpoint"):
        CliRunner().invoke(app_of(export), [str(checkpoint)], catch_exceptions=False)
    torch.save({"fc.weight": torch.zeros(1, 2)}, checkpoint)
    with pytest.raises(SpecError, match=r"c\.yaml: there is no such spec file.*as `spec`"):
        CliRunner().invoke(app_of(export), [str(checkpoint)], catch_exceptions=False)


def test_the_untrained_checkpoint_is_reproducible_and_says_what_it_is(tmp_path):
    checkpoint = tmp_path / "untrained_efficientnet_b0.safetensors"
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = CliRunner().invoke(app_of(demo_checkpoint), [str(tmp_path), "--untrained"], catch_exceptions=False)
        assert "its scores mean nothing" in result.stdout
        torch.set_num_threads(1)  # sums in another order must not show in the file
        save_file(build_untrained_network(UNTRAINED_SPEC).state_dict(), tmp_path / "again.safetensors")
    finally:
        torch.set_num_threads(threads)
    assert sha256_file(checkpoint) == sha256_file(tmp_path / "again.safetensors")
    assert ModelSpec.from_yaml(checkpoint.with_suffix(".yaml")) == UNTRAINED_SPEC


def test_the_tiny_demo_checkpoint_comes_with_its_card_and_exports(tmp_path):
    command = [str(tmp_path), "--model", "tiny"]
    result = CliRunner().invoke(app_of(demo_checkpoint), command, catch_exceptions=False)
    assert result.exit_code == 0
    checkpoint = tmp_path / "deepfake_efficientnet_lite0.safetensors"
    assert checkpoint.stat().st_size <= 10 * 2**20
    spec = ModelSpec.from_yaml(checkpoint.with_suffix(".yaml"))
    assert spec.trained
    assert "not for decisions about people" in (tmp_path / "MODEL_CARD_TINY.md").read_text(encoding="utf-8").lower()
    parity = export_checkpoint(ExportRequest(checkpoint, tmp_path / "m", spec=spec, max_batch_size=4)).manifest.parity
    assert parity["passed"]
    assert parity["verdict_flips"] == 0
