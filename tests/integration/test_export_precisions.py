"""FP16 and INT8 with real networks and ONNX Runtime: made, measured, promoted or rejected with a reason."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from contextlib import closing

import cv2
import numpy as np
import onnx
import pytest
import torch
import tritonclient.grpc
import typer
from torch import nn
from typer.testing import CliRunner

from deepfake_export import ExportRequest, FaceOptions, PrecisionOptions, export_checkpoint
from deepfake_export.cli.export import export as export_command
from deepfake_export.graph.onnx_export import MAX_IR_VERSION, OPSET, export_onnx
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.precision import selection
from deepfake_export.precision.fp16 import FLOAT16_MAX, activation_ranges, export_fp16, half_detector
from deepfake_export.precision.int8 import TARGETS, quantize_int8
from deepfake_export.proof import speed
from deepfake_export.proof.comparison import Videos
from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.parity import reference_outputs
from deepfake_export.proof.running import EngineProcess, LocalEngine, engine_for
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_export.repository.activation import activate
from deepfake_export.repository.configs import refresh_configs
from deepfake_export.request.request import what_changed
from deepfake_export.tensorrt import plans as engines
from deepfake_export.tensorrt.engine import build_engine
from deepfake_export.tensorrt.gpu import Gpu
from deepfake_export.tensorrt.library import load_tensorrt_rtx
from deepfake_preprocess.contract.config_check import contract_problems
from deepfake_preprocess.contract.forms import FEATURES, ServedForm, cpu_features
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import (
    EMBEDDED_CONFIG_NAME,
    ServingOptions,
    read_config,
)
from deepfake_preprocess.errors import EngineError, OptionError
from deepfake_serve import EmbeddedTriton

pytestmark = pytest.mark.usefixtures("exported_once")

SIZE_PX = 32
SPEC = ModelSpec(
    name="tiny",
    architecture="python:precision_nets:net",
    input_height_px=SIZE_PX,
    input_width_px=SIZE_PX,
)
NETS = """
import torch
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.SiLU(),
        nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1),
    )

class Products(nn.Module):
    # Rows of 384 channels, as a transformer has.

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.norm = nn.LayerNorm(384)
        self.layers = nn.Sequential(nn.Linear(384, 768), nn.ReLU(), nn.Linear(768, 384))
        self.head = nn.Linear(384, 1)

    def forward(self, crops):
        rows = crops.flatten(1).unflatten(1, (8, 384))
        return self.head((rows + self.layers(self.norm(rows))).mean(1))

class Fp32Only(nn.Module):
    # Multiplies by a tensor made in FP32, which PyTorch refuses for another dtype.

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 1)

    def forward(self, crops):
        return self.fc(crops.mean(dim=(2, 3)) @ torch.eye(3))
"""
CROPS = generate_crops(48, SPEC.input_size_wh, seed=5)


def network() -> nn.Sequential:
    namespace: dict = {}
    exec(NETS, namespace)
    torch.manual_seed(3)
    return namespace["net"]().eval()


def detector_of(net: nn.Module) -> ServedDetector:
    """Center and spread the logits, so that verdicts differ between crops."""
    detector = ServedDetector(net, SPEC).eval()
    _, logit = reference_outputs(detector, CROPS)
    with torch.no_grad():
        net[-1].weight.mul_(2 / float(logit.std()))
        _, logit = reference_outputs(detector, CROPS)
        # Between two crops, so that none lies on the threshold.
        middle = np.sort(logit.ravel())
        gap = int(np.diff(middle[12:36]).argmax()) + 12
        net[-1].bias.sub_(float(middle[gap] + middle[gap + 1]) / 2)
    return detector


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No test looks at how fast a network is."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(speed, "MIN_ROUND_S", 0.001)
        yield


@pytest.fixture(scope="module")
def detector():
    return detector_of(network())


@pytest.fixture(scope="module")
def fp32_path(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    export_onnx(detector, path, SPEC)
    return path


@pytest.fixture
def workplace(tmp_path, monkeypatch, detector):
    """A checkpoint, its factory, and face crops, half of them called real and half fake."""
    (tmp_path / "precision_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "precision_nets", raising=False)
    torch.save(detector.network.state_dict(), "c.pt")
    (tmp_path / "c.yaml").write_text(SPEC.to_yaml())
    scores, _ = reference_outputs(detector, CROPS)
    write_crops(tmp_path / "faces/real", CROPS[scores[:, 0] < 0.5])
    write_crops(tmp_path / "faces/fake", CROPS[scores[:, 0] >= 0.5])
    return tmp_path


def write_crops(directory, crops):
    directory.mkdir(parents=True, exist_ok=True)
    for index, crop in enumerate(crops):
        cv2.imwrite(str(directory / f"{index:03}.png"), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))


def test_a_precision_asked_for_is_served_with_a_full_report(workplace, detector):
    result = export_checkpoint(
        ExportRequest(
            "c.pt",
            "m",
            spec=SPEC,
            max_batch_size=4,
            artifacts="all",
            precisions=PrecisionOptions(("int8", "fp16"), engines=("onnxruntime",), promote="int8"),
            faces=FaceOptions("faces"),
        )
    )
    manifest = Manifest.read(result.version_dir)
    manifest.verify(result.version_dir)
    expected = {"model.onnx", "engine.onnx", "report.json", "report.md", "report.html"}
    # With VNNI, INT8 is faster than elsewhere, so that FP32 is there for a CPU without.
    assert set(manifest.files) == expected | {form.file for form in manifest.forms}
    assert manifest.forms[0] == ServedForm("onnxruntime", "int8", "model.onnx", manifest.forms[0].needs)
    assert manifest.precision == "int8"
    assert manifest.promotion["promoted"] == manifest.promotion["requested"] == "int8"
    assert "INT8 keeps the verdicts" in manifest.promotion["reason"]
    assert manifest.promotion["calibration"]["count"] == len(CROPS)
    assert len(manifest.promotion["calibration"]["sha256"]) == 64
    assert manifest.parity["precision"] == "int8"
    # What is served is the INT8 file, and it carries the contract.
    served = result.version_dir / "model.onnx"
    assert served.read_bytes() == (workplace / "all/tiny.int8.onnx").read_bytes()
    model = onnx.load(served)
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert (model.opset_import[0].version, model.ir_version <= MAX_IR_VERSION) == (OPSET, True)
    assert ModelSpec.from_parameters({item.key: item.value for item in model.metadata_props}) == manifest.spec

    report = json.loads((result.version_dir / "report.json").read_text())
    assert [item["precision"] for item in report["artifacts"]] == ["fp32", "fp16", "int8"]
    for item in report["artifacts"]:
        assert item["passed"]
        assert list(item["speed"]["latency_ms"]) == ["1", "4"]
        # The folders' names say exactly what the checkpoint says.
        assert item["auc"]["checkpoint"] == 1.0
    page = (result.version_dir / "report.md").read_text()
    assert "**INT8 is served.**" in page
    assert page.count("| `fake_probability`, largest difference |") == 3

    # The same request again adds nothing; another one does.
    again = export_checkpoint(
        ExportRequest(
            "c.pt",
            "m",
            spec=SPEC,
            max_batch_size=4,
            precisions=PrecisionOptions(("fp16", "int8"), engines=("onnxruntime",), promote="int8"),
            faces=FaceOptions("faces"),
        )
    )
    assert (again.version, again.created) == (1, False)
    assert "by the same request" in again.notes[0]
    plain = export_checkpoint(ExportRequest("c.pt", "m", spec=SPEC, max_batch_size=4))
    assert (plain.version, plain.manifest.precision) == (2, "fp32")
    assert plain.manifest.promotion["reason"] == "FP32 is the only precision that was asked for"


def test_another_request_makes_a_new_version_and_says_what_has_changed(workplace):
    write_crops(workplace / "crops", CROPS[:4])

    def export(**options):
        return export_checkpoint(ExportRequest("c.pt", "m", spec=SPEC, max_batch_size=4, **options))

    own = FaceOptions(crops="crops")
    assert export().version == 1
    proved = export(faces=own)
    assert (proved.version, proved.created) == (2, True)
    assert "this export differs in the crops of the proof, so this is a new version" in proved.notes[-1]
    assert not export(faces=own).created
    write_crops(workplace / "crops", CROPS[4:8])
    assert (export(faces=own).version, export(faces=own).created) == (3, False)
    larger = export_checkpoint(ExportRequest("c.pt", "m", spec=SPEC, max_batch_size=5, faces=own))
    assert "differs in a larger `max_batch_size`," in larger.notes[-1]


def test_everything_that_decides_is_in_a_requests_identity(workplace, monkeypatch):
    write_crops(workplace / "crops", CROPS[:4])
    (workplace / "labels.csv").write_text("")
    int8, faces = PrecisionOptions(("fp32", "int8")), FaceOptions("faces")
    base = ExportRequest("c.pt", "m", precisions=int8, faces=faces)
    done = {"request": base.identity(), "batch_sizes": [1, 3, 8]}

    def changed(max_batch_size=8, **options):
        return what_changed(done, dataclasses.replace(base, **options).identity(), max_batch_size)

    assert changed() == changed(max_batch_size=4) == ()
    # Where files are kept or read from decides nothing.
    assert changed(spec="other.yaml", artifacts="all", command="deepfake export") == ()
    assert changed(precisions=PrecisionOptions(("fp32", "fp16", "int8"))) == ("`precisions`",)
    served = PrecisionOptions(("int8",), promote="int8", int8_target="tensorrt")
    assert changed(precisions=served) == ("`promote`", "`int8_target`")
    assert changed(precisions=PrecisionOptions(("int8",), int8_finetune=5)) == ("`int8_finetune`",)
    labeled = FaceOptions("faces", "labels.csv", "crops")
    assert changed(faces=labeled) == ("the labels", "the crops of the proof")
    assert changed(max_batch_size=9) == ("a larger `max_batch_size`",)
    # Without INT8 its form decides nothing.
    fp16 = PrecisionOptions(("fp32", "fp16"))
    assert fp16.identity() == dataclasses.replace(fp16, int8_target="tensorrt").identity()
    with monkeypatch.context() as patched:
        patched.setitem(TOLERANCES, "int8", dataclasses.replace(TOLERANCES["int8"], flip_share=0.01))
        assert changed() == ("the table of tolerances",)
    write_crops(workplace / "faces", CROPS[::-1])
    assert changed() == ("the calibration set",)
    with pytest.raises(OptionError, match=r"no\.csv: there is no such file of labels"):
        changed(faces=FaceOptions("faces", "no.csv"))


def test_auto_is_what_promises_speed_on_this_cpu_with_the_reason(monkeypatch):
    monkeypatch.setattr("deepfake_export.request.precisions.is_installed", lambda engine: True)
    monkeypatch.setattr("deepfake_export.request.precisions.cpu_features", lambda: frozenset({"avx2"}))
    plain = PrecisionOptions(("auto",))
    assert plain.names == ("fp32",)
    assert "this CPU has no instructions" in plain.left_out
    assert PrecisionOptions(("auto", "fp16")).names == ("fp32", "fp16")
    monkeypatch.setattr("deepfake_export.request.precisions.cpu_features", lambda: frozenset({"avx2", "avx512_bf16"}))
    fast = PrecisionOptions(("auto",))
    assert (fast.names, fast.left_out) == (("fp32", "bf16"), "")
    monkeypatch.setattr("deepfake_export.request.precisions.cpu_features", lambda: frozenset({"avx512_vnni"}))
    bytes_only = PrecisionOptions(("auto",))
    assert (bytes_only.names, bytes_only.int8_of_products_only) == (("fp32", "int8"), True)
    named = PrecisionOptions(("auto", "int8"))
    assert (named.names, named.int8_of_products_only) == (("fp32", "int8"), False)
    with pytest.raises(OptionError, match="INT8 needs faces to calibrate on"):
        ExportRequest("c.pt", "m", precisions=PrecisionOptions(("auto", "int8")))
    monkeypatch.setattr("deepfake_export.request.precisions.is_installed", lambda engine: engine == "onnxruntime")
    missing = PrecisionOptions(("auto",))
    assert missing.names == ("fp32",)
    assert "OpenVINO is not installed; run: pip install" in missing.left_out


def test_auto_makes_int8_without_calibration_of_matrix_products_alone(workplace, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr("deepfake_export.request.precisions.cpu_features", lambda: frozenset({"avx512_vnni"}))

    def made(spec):
        request = ExportRequest("c.pt", "m", spec=spec, max_batch_size=2, precisions=PrecisionOptions(("auto",)))
        result = export_checkpoint(request)
        report = json.loads((result.version_dir / "report.json").read_text())
        return report["artifacts"], (result.version_dir / "report.md").read_text()

    artifacts, _ = made(SPEC)
    assert [(item["precision"], item["engine"]) for item in artifacts] == [
        ("fp32", "onnxruntime"),
        ("fp32", "openvino"),
    ]
    spec = dataclasses.replace(SPEC, name="products", architecture="python:precision_nets:Products")
    import precision_nets

    torch.save(precision_nets.Products().state_dict(), "c.pt")
    artifacts, page = made(spec)
    int8 = [item for item in artifacts if item["precision"] == "int8"]
    assert [item["engine"] for item in int8] == ["onnxruntime", "openvino"]
    # Weights alone are rounded to 8 bits by 1/255 of their range, and activations likewise.
    assert all(0 < item["parity"]["logit"]["mean_abs"] < 0.05 for item in int8)
    assert "The weights of 2 matrix products are in 8 bits" in page


def served_scores(repository, crops):
    """Serve a repository; return its scores of some crops, and what was said meanwhile."""
    said: list[str] = []
    with (
        EmbeddedTriton(repository, announce=said.append) as triton,
        tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client,
    ):
        tensor = tritonclient.grpc.InferInput("faces", list(crops.shape), "UINT8")
        tensor.set_data_from_numpy(crops)
        return client.infer("tiny", [tensor]).as_numpy("fake_probability"), said


@pytest.mark.parametrize("use", ["run", "seconds"])
def test_an_engine_that_crashes_is_one_artifact_that_fails(workplace, monkeypatch, use):
    pytest.importorskip("openvino")
    real = getattr(EngineProcess, use)

    def crashing(engine, *values):
        os.kill(engine.pid, signal.SIGSEGV)
        return real(engine, *values)

    monkeypatch.setattr(EngineProcess, use, crashing)
    request = ExportRequest(
        "c.pt", "m", spec=SPEC, max_batch_size=4, precisions=PrecisionOptions(engines=("onnxruntime", "openvino"))
    )
    promotion = export_checkpoint(request).manifest.promotion
    assert promotion["promoted"] == "fp32"
    why = "OpenVINO ended its process while it ran the network (signal SIGSEGV)"
    assert promotion["rejected"] == {"fp32 openvino": why}
    assert why in promotion["reason"]


def test_the_server_answers_with_the_promoted_files_results(workplace):
    """Every engine that is installed is measured, and the one that is promoted computes in the server."""
    pytest.importorskip("openvino")
    request = ExportRequest(
        "c.pt",
        "m",
        spec=SPEC,
        max_batch_size=4,
        precisions=PrecisionOptions(("int8", "bf16"), promote="int8"),
        faces=FaceOptions("faces"),
    )
    result = export_checkpoint(request)
    manifest = result.manifest
    report = json.loads((result.version_dir / "report.json").read_text())
    names = ["fp32", "fp32 openvino", "bf16 openvino", "int8", "int8 openvino"]
    assert [item["name"] for item in report["artifacts"]] == names
    assert [form.precision for form in manifest.forms[:1]] == ["int8"]
    assert "BF16 in OpenVINO" in manifest.promotion["reason"]
    assert (
        contract_problems(
            read_config(result.model_dir / EMBEDDED_CONFIG_NAME), manifest, config_name=EMBEDDED_CONFIG_NAME
        )
        == []
    )
    # Each of its forms, as `deepfake tune` may choose them.
    for form in {form.engine: form for form in manifest.forms}.values():
        options = ServingOptions(engine=form.engine, precision=form.precision)
        activate(result.repository, "tiny", options=options, version=1)
        file = result.version_dir / form.file
        with closing(engine_for(file, engine=form.engine, precision=form.precision)) as engine:
            expected, _ = engine.run(CROPS[:4])
        answer, said = served_scores(result.repository, CROPS[:4])
        np.testing.assert_allclose(answer, expected, atol=1e-6)
        assert not [line for line in said if "instead" in line]


@pytest.mark.skipif(not cpu_features().intersection(FEATURES["bf16"]), reason="the CPU has no BF16")
def test_bf16_that_does_not_pass_is_tried_with_its_first_layers_in_fp32(workplace, monkeypatch):
    pytest.importorskip("openvino")
    prove = selection._prove

    def one_video_changes(job, reference, precision, engine, path, details):
        proved, running = prove(job, reference, precision, engine, path, details)
        all_bf16 = precision == "bf16" and path.suffix == ".onnx"
        return (dataclasses.replace(proved, videos=Videos(1, 1)) if all_bf16 else proved), running

    monkeypatch.setattr(selection, "_prove", one_video_changes)
    monkeypatch.setattr(selection, "FP32_SHARES", (0.25,))
    # Of so small a network the other layers' error is beyond what generated faces allow.
    monkeypatch.setattr("deepfake_export.proof.tolerances.SCORE_DENSITY", 0.01)
    request = ExportRequest(
        "c.pt", "m", spec=SPEC, max_batch_size=4, precisions=PrecisionOptions(("bf16",), promote="bf16")
    )
    result = export_checkpoint(request)
    assert result.manifest.forms[0] == ServedForm("openvino", "bf16", "bf16.xml", result.manifest.forms[0].needs)
    assert {form.file for form in result.manifest.forms[1:]} == {"model.onnx"}
    result.manifest.verify(result.version_dir)
    report = (result.version_dir / "report.md").read_text()
    assert "The first 1 of 4 layers are computed in FP32, because with all in BF16 it did not pass." in report
    answer, said = served_scores(result.repository, CROPS[:4])
    with closing(engine_for(result.version_dir / "bf16.xml", engine="openvino", precision="bf16")) as engine:
        expected, _ = engine.run(CROPS[:4])
    np.testing.assert_allclose(answer, expected, atol=TOLERANCES["bf16"].batch_abs)
    assert not [line for line in said if "instead" in line]


def test_a_cpu_that_lacks_what_was_measured_serves_fp32_and_says_so_once(workplace):
    result = export_checkpoint(ExportRequest("c.pt", "m", spec=SPEC, max_batch_size=4))
    forms = (
        ServedForm("openvino", "bf16", "model.onnx", ("of_another_cpu",)),
        ServedForm("onnxruntime", "fp32", "model.onnx"),
    )
    moved = dataclasses.replace(result.manifest, forms=forms)
    moved.write(result.version_dir)
    refresh_configs(result.model_dir, moved, max_batch_size=4)
    answer, said = served_scores(result.repository, CROPS[:4])
    expected, _ = LocalEngine(result.version_dir / "model.onnx").run(CROPS[:4])
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    (line,) = [line for line in said if "instead" in line]
    assert "tiny version 1 is served by ONNX Runtime in FP32 instead of OpenVINO in BF16" in line


def test_a_plan_of_int8_for_the_cpu_is_built_from_the_next_best_precision(workplace, monkeypatch):
    """NVIDIA's parser refuses the CPU's form, so the version brings what a plan is built from."""
    result = export_checkpoint(
        ExportRequest(
            "c.pt",
            "m",
            spec=SPEC,
            max_batch_size=4,
            precisions=PrecisionOptions(("fp16", "int8"), promote="int8"),
            faces=FaceOptions("faces"),
        )
    )
    library = load_tensorrt_rtx()
    with pytest.raises(EngineError, match="quantize with signed symmetric activations"):
        build_engine(result.version_dir / "model.onnx", None, max_batch_size=4, library=library)
    maker = engines.EngineMaker(library, Gpu("none", "8.9"))
    monkeypatch.setattr(engines, "find_maker", lambda **_: maker)
    monkeypatch.setattr(engines, "compare_plan", lambda *_: 1e-6)  # runs on a GPU only
    (built,) = engines.build_engines(result.repository)
    assert (built.created, built.engine.precision, built.engine.plan) == (True, "fp16", "model.plan")
    assert read_config(result.model_dir / "config.pbtxt").backend == "tensorrt"
    manifest = Manifest.read(result.version_dir)
    manifest.verify(result.version_dir)
    assert manifest.precision == "int8"  # what the CPU serves


def test_int8_with_a_wrong_calibration_is_rejected_and_fp32_served(workplace):
    """Black pictures show none of the ranges that faces have."""
    write_crops(workplace / "black", np.zeros((16, SIZE_PX, SIZE_PX, 3), np.uint8))
    write_crops(workplace / "crops", CROPS)
    arguments = [
        "c.pt",
        "--repository",
        "m",
        "--max-batch-size",
        "2",
        "--precisions",
        "int8",
        "--calibration",
        "black",
    ]
    arguments += ["--crops", "crops", "--promote", "int8", "--artifacts", "all", "--json"]
    app = typer.Typer()
    app.command()(export_command)
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    data = json.loads(shown.stdout)
    assert data["precision"] == "fp32"
    assert "INT8" in data["promotion"]["reason"]
    assert "verdicts change" in data["promotion"]["rejected"]["int8"]
    model = onnx.load(workplace / "m/tiny/1/model.onnx")
    assert "QuantizeLinear" not in {node.op_type for node in model.graph.node}
    assert [path.name for path in (workplace / "all").iterdir()] == ["tiny.fp32.onnx"]
    page = (workplace / "m/tiny/1/report.md").read_text()
    assert "rejected" in page
    command = (
        "deepfake export c.pt --repository m --max-batch-size 2 --artifacts all --precisions int8 --promote int8"
    )
    assert f"{command} --calibration black --crops crops --force" in page


def test_a_network_that_cannot_be_halved_is_served_in_fp32_with_the_reason(workplace):
    namespace: dict = {}
    exec(NETS, namespace)
    torch.save(namespace["Fp32Only"]().state_dict(), "f.pt")
    spec = dataclasses.replace(SPEC, architecture="python:precision_nets:Fp32Only")
    result = export_checkpoint(
        ExportRequest(
            "f.pt", "m", spec=spec, max_batch_size=2, precisions=PrecisionOptions(("fp16",), engines=("onnxruntime",))
        )
    )
    assert result.manifest.precision == "fp32"
    assert "the exported graph is not valid ONNX" in result.manifest.promotion["rejected"]["fp16"]
    report = json.loads((result.version_dir / "report.json").read_text())
    assert [item["passed"] for item in report["artifacts"]] == [True, False]
    assert "| FP16 | failed |" in (result.version_dir / "report.md").read_text()


def test_options_that_do_not_fit(workplace):
    def export(**options):
        export_checkpoint(ExportRequest("c.pt", "m", spec=SPEC, max_batch_size=2, **options))

    with pytest.raises(OptionError, match="INT8 needs faces to calibrate on"):
        export(precisions=PrecisionOptions(("int8",)))
    with pytest.raises(OptionError, match="'int4' is unknown"):
        PrecisionOptions(("int4",))
    with pytest.raises(OptionError, match="`promote` is 'int8'; allowed with these precisions: best, fp32, fp16"):
        PrecisionOptions(("fp16",), promote="int8")
    with pytest.raises(OptionError, match="`int8_target` is 'npu'; allowed: cpu, tensorrt"):
        PrecisionOptions(int8_target="npu")
    with pytest.raises(OptionError, match="`labels` belong to the files of a calibration set"):
        FaceOptions(labels="labels.csv")
    write_crops(workplace / "few", CROPS[:15])
    with pytest.raises(OptionError, match="only 15 face crops"):
        export(precisions=PrecisionOptions(("int8",)), faces=FaceOptions("few"))
    assert not (workplace / "m/tiny").exists()


def test_fp16_keeps_in_fp32_what_would_overflow(tmp_path):
    net = network()
    with torch.no_grad():
        net[0].weight.mul_(1e5)
        net[2].weight.mul_(1e-5)
    detector = detector_of(net)
    over = [item.module for item in activation_ranges(detector, CROPS) if item.overflows]
    assert over == ["0", "1", "2"]  # the convolution that grows, its ReLU, and the convolution that takes it
    with torch.inference_mode():
        naive, _ = half_detector(detector, SPEC, ())(torch.from_numpy(CROPS))
    assert (
        not naive.isfinite().all()
        or (naive - torch.from_numpy(reference_outputs(detector, CROPS)[0])).abs().max() > 0.1
    )

    made = export_fp16(detector, tmp_path / "half.onnx", SPEC, CROPS)
    assert [item.module for item in made.kept_fp32] == over
    assert made.largest is not None
    assert made.largest.max_abs > FLOAT16_MAX
    probability, _ = LocalEngine(tmp_path / "half.onnx").run(CROPS)
    np.testing.assert_allclose(probability, reference_outputs(detector, CROPS)[0], atol=0.01)


def test_fp16_halves_the_weights_under_the_same_contract(detector, fp32_path, tmp_path):
    made = export_fp16(detector, tmp_path / "half.onnx", SPEC, CROPS)
    assert made.kept_fp32 == ()
    model = onnx.load(tmp_path / "half.onnx")
    kinds = {item.name: item.data_type for item in model.graph.initializer if item.name.startswith("network.")}
    assert kinds
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    fp32 = onnx.load(fp32_path)
    assert model.graph.input == fp32.graph.input
    assert [item.type for item in model.graph.output] == [item.type for item in fp32.graph.output]


@pytest.mark.parametrize("target", TARGETS)
def test_int8_is_explicit_per_channel_qdq_in_the_targets_form(detector, fp32_path, tmp_path, target):
    made = quantize_int8(fp32_path, tmp_path / "int8.onnx", SPEC, CROPS, target=target)
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    values = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    zero_points = [values[node.input[2]] for node in quantizers]
    weights = [
        values[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values and values[node.input[0]].ndim == 4
    ]
    scales = [
        values[node.input[1]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values and values[node.input[0]].ndim == 4
    ]
    assert weights
    assert all(item.dtype == np.int8 for item in weights)
    assert [len(item) for item in scales] == [len(item) for item in weights]  # a scale for each output channel
    if target == "tensorrt":
        assert all(item.dtype == np.int8 and not item.any() for item in zero_points)
        assert not any(item.dtype == np.int32 and item.ndim == 1 for item in values.values())
    else:
        assert all(item.dtype == np.uint8 for item in zero_points)
        assert max(np.abs(item).max() for item in weights) <= 64  # 7 bits
    # The last layer, which gives the logit, is never quantized.
    assert made.num_layers == 3
    assert set(made.layer_errors) == {"0", "2", "4"}
    assert list(made.layer_errors.values()) == sorted(made.layer_errors.values(), reverse=True)
    assert set(made.layers_kept_fp32) < set(made.layer_errors)
