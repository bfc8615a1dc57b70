"""NVIDIA's real parser and builder (TensorRT-RTX, which needs no GPU) on what the export writes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from deepfake_export import ExportRequest, export_checkpoint, load_network
from deepfake_export.cli.repository import app as repository_app
from deepfake_export.demo.untrained import UNTRAINED_SPEC, build_untrained_network, write_untrained_checkpoint
from deepfake_export.graph.onnx_export import export_onnx
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.precision import int8
from deepfake_export.precision.fp16 import export_fp16
from deepfake_export.proof.crops import generate_crops
from deepfake_export.tensorrt import plans as engines
from deepfake_export.tensorrt.engine import build_engine
from deepfake_export.tensorrt.gpu import Gpu
from deepfake_export.tensorrt.library import load_tensorrt_rtx
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_export.tensorrt.plans import build_engines
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.plan_info import check_plan
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import read_config
from deepfake_preprocess.errors import EngineError, OptionError, ParityError, RepositoryError

pytestmark = pytest.mark.usefixtures("exported_once")

TINY_SPEC = dataclasses.replace(
    UNTRAINED_SPEC, name="tiny", architecture="timm:test_efficientnet", input_height_px=64, input_width_px=64
)


class Crops(CalibrationDataReader):
    def __init__(self, spec: ModelSpec) -> None:
        self._batches = iter([{"faces": crop[None]} for crop in generate_crops(4, spec.input_size_wh)])

    def get_next(self):
        return next(self._batches, None)


def quantize(source: Path, target: Path, spec: ModelSpec, *, activations=QuantType.QInt8, biases=False) -> None:
    quantize_static(
        source,
        target,
        Crops(spec),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": biases},
    )


@pytest.fixture(
    scope="module",
    params=[TINY_SPEC, pytest.param(UNTRAINED_SPEC, marks=pytest.mark.slow)],
    ids=["tiny", "efficientnet_b0"],
)
def exported(request, tmp_path_factory):
    """A tiny network, exported; among the slow tests what `deepfake demo-checkpoint --untrained` writes as well."""
    folder, spec = tmp_path_factory.mktemp("exported"), request.param
    checkpoint = folder / f"{spec.name}.safetensors"
    save_file(build_untrained_network(spec).state_dict(), checkpoint)
    return export_checkpoint(ExportRequest(checkpoint, folder / "m", spec=spec, max_batch_size=4))


@pytest.fixture(scope="module")
def graphs(exported):
    """It in every precision; INT8 in all layers, without the search for those that bear it."""
    folder, spec = exported.repository.parent, exported.manifest.spec
    crops = generate_crops(2, spec.input_size_wh)
    network = load_network(folder / f"{spec.name}.safetensors", spec).network
    detector = ServedDetector(network, spec).eval()
    paths = {name: folder / f"{name}.onnx" for name in ("fp16", "int8")}
    paths["fp32"] = exported.version_dir / "model.onnx"
    export_fp16(detector, paths["fp16"], spec, crops)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(int8, "MAX_LAYERS", 1)
        patched.setattr(int8, "_fewest_excluded", lambda *_: 0)
        int8.quantize_int8(paths["fp32"], paths["int8"], spec, crops, target="tensorrt")
    return paths


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_file(build_untrained_network(TINY_SPEC).state_dict(), path)
    return path


@pytest.mark.slow
def test_the_untrained_checkpoint_exports_and_tells_crops_apart(tmp_path):
    checkpoint, _ = write_untrained_checkpoint(tmp_path)
    request = ExportRequest(checkpoint, tmp_path / "m", spec=UNTRAINED_SPEC, max_batch_size=4)
    parity = export_checkpoint(request).manifest.parity
    assert parity["passed"]
    low, high = parity["reference_logit_range"]
    assert high - low > 0.1  # a hundred times what a logit may differ by


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_network_parses_and_builds_in_every_precision(exported, graphs, tmp_path, precision):
    plan = tmp_path / "model.plan"
    engine = build_engine(graphs[precision], plan, max_batch_size=32, library=load_tensorrt_rtx())
    assert engine.precision == precision
    assert (engine.min_batch_size, engine.typical_batch_size, engine.max_batch_size) == (1, 8, 32)
    assert (engine.builder, engine.compute_capability, engine.plan) == ("tensorrt_rtx", "8.9", "model.plan")
    assert engine.size_bytes == plan.stat().st_size
    convolutions = [node for node in onnx.load(graphs["fp32"]).graph.node if node.op_type == "Conv"]
    assert engine.num_layers > len(convolutions) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["model.plan"]
    # The graph that was built is one that runs, and not merely one that parses.
    session = onnxruntime.InferenceSession(graphs[precision], providers=["CPUExecutionProvider"])
    probability, _ = session.run(None, {"faces": generate_crops(2, exported.manifest.spec.input_size_wh)})
    assert np.isfinite(probability).all()


class Middle(nn.Module):
    """Something in the middle of a network that TensorRT has no operator for."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(pixels[:, :, :4, :4])


class Refused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.middle = Middle()
        self.head = nn.Linear(3, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.stem(pixels)))


def test_an_operator_that_tensorrt_lacks_is_told_with_its_node_and_layer(tmp_path):
    path = tmp_path / "refused.onnx"
    export_onnx(ServedDetector(Refused(), TINY_SPEC).eval(), path, TINY_SPEC)
    node = next(item.name for item in onnx.load(path).graph.node if item.op_type == "Det")
    where = rf"refused\.onnx: node '{node}' \(ONNX operator Det\)"
    with pytest.raises(EngineError, match=rf"{where} from layer 'middle' is refused .*forward\(\)"):
        build_engine(path, None, max_batch_size=4, library=load_tensorrt_rtx())
    # Where another tool has rewritten the graph, names of weights lead to the place.
    model = onnx.load(path)
    for item in model.graph.node:
        del item.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(EngineError, match=rf"{where} after layer 'stem' is refused"):
        build_engine(path, tmp_path / "model.plan", max_batch_size=4, library=load_tensorrt_rtx())
    assert not (tmp_path / "model.plan").exists()


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"activations": QuantType.QUInt8}, r"'add_QuantizeLinear' .*zero point"),
        ({"biases": True}, r"bias_DequantizeLinear' .* from layer 'classifier' .*Int32"),
    ],
)
def test_a_quantization_that_tensorrt_refuses_is_told_with_the_one_that_it_takes(tmp_path, options, refused):
    """ONNX Runtime takes more kinds than TensorRT, and its defaults are among those that TensorRT does not."""
    source, target = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(ServedDetector(build_untrained_network(TINY_SPEC), TINY_SPEC).eval(), source, TINY_SPEC)
    quantize(source, target, TINY_SPEC, **options)
    with pytest.raises(EngineError, match=rf"{refused}.*; quantize with signed symmetric activations"):
        build_engine(target, None, max_batch_size=4, library=load_tensorrt_rtx())


def test_a_file_that_is_no_graph_of_ours_is_refused(tmp_path):
    library = load_tensorrt_rtx()
    with pytest.raises(OptionError, match="cannot be read"):
        build_engine(tmp_path / "absent.onnx", None, max_batch_size=4, library=library)
    (tmp_path / "no.onnx").write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match=r"no\.onnx is not an ONNX file"):
        build_engine(tmp_path / "no.onnx", None, max_batch_size=4, library=library)


def test_batches_and_gpus_out_of_range(graphs):
    library = load_tensorrt_rtx()
    for typical, largest in ((9, 8), (0, 8), (None, 0)):
        options = EngineOptions(typical_batch_size=typical)
        with pytest.raises(OptionError, match="allowed: 1 <= typical <= largest"):
            build_engine(graphs["fp32"], None, max_batch_size=largest, options=options, library=library)
    with pytest.raises(EngineError, match=r"compute capability 3\.5; it knows SM75"):
        build_engine(graphs["fp32"], None, max_batch_size=1, library=library, compute_capability="3.5")


def without_gpu(monkeypatch):
    monkeypatch.setattr("deepfake_export.tensorrt.gpu.find_gpu", lambda: None)


def test_an_export_without_a_gpu_says_what_is_missing_and_what_was_checked(tiny_checkpoint, tmp_path, monkeypatch):
    without_gpu(monkeypatch)
    root = tmp_path / "m"
    result = export_checkpoint(
        ExportRequest(tiny_checkpoint, root, spec=TINY_SPEC, max_batch_size=4, tensorrt=EngineOptions())
    )
    (note,) = [item for item in result.notes if "TensorRT" in item]
    assert "no TensorRT plan was written, because no NVIDIA GPU was found" in note
    assert "took the FP32 graph for compute capability 8.9" in note
    assert "build-engines" in note
    # What is published is the ONNX model, whole, and its manifest tells of the check.
    manifest = Manifest.read(result.version_dir)
    manifest.verify(result.version_dir)
    assert "model.plan" not in manifest.files
    assert (manifest.engine.builder, manifest.engine.plan) == ("tensorrt_rtx", "")
    assert read_config(result.model_dir / "config.pbtxt").backend == "onnxruntime"
    assert json.loads(json.dumps(result.to_dict()))["engine"]["max_batch_size"] == 4
    again = export_checkpoint(
        ExportRequest(tiny_checkpoint, root, spec=TINY_SPEC, max_batch_size=4, tensorrt=EngineOptions())
    )
    assert not again.created
    assert "no TensorRT plan was written" in again.notes[-1]
    # Building plans is all that the other command is for, so there it is an error.
    with pytest.raises(EngineError, match="no TensorRT plan can be built: no NVIDIA GPU"):
        build_engines(root)


@pytest.fixture(scope="module")
def tiny_repository_of_export(tiny_checkpoint, tmp_path_factory) -> Path:
    """One export, which the tests below copy."""
    root = tmp_path_factory.mktemp("exported") / "m"
    return export_checkpoint(ExportRequest(tiny_checkpoint, root, spec=TINY_SPEC, max_batch_size=4)).repository


@pytest.fixture
def repository_with_gpu(tiny_repository_of_export, tmp_path, monkeypatch):
    """A repository on a machine whose "GPU" is TensorRT-RTX's builder: plans are real, only running is left out.

    Running and comparing is tested in tests/gpu; this is about what happens to the files.
    """
    maker = engines.EngineMaker(load_tensorrt_rtx(), Gpu("none", "8.9"))
    monkeypatch.setattr(engines, "find_maker", lambda **_: maker)
    monkeypatch.setattr(engines, "compare_plan", lambda *_: 1e-6)
    return Path(shutil.copytree(tiny_repository_of_export, tmp_path / "m"))


def test_plans_are_put_beside_the_onnx_file_and_kept_while_they_fit(repository_with_gpu):
    model_dir = repository_with_gpu / "tiny"
    assert read_config(model_dir / "config.pbtxt").backend == "onnxruntime"
    (first,) = build_engines(repository_with_gpu)
    assert first.created
    config = read_config(model_dir / "config.pbtxt")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 4)
    manifest = Manifest.read(model_dir / "1")
    manifest.verify(model_dir / "1")
    assert manifest.engine == first.engine
    check_plan(manifest, tensorrt_version=first.engine.tensorrt_version, compute_capability="8.9")
    assert {path.name for path in model_dir.iterdir()} == {"1", "config.pbtxt", "configs"}
    before = (model_dir / "1/model.plan").stat().st_mtime_ns
    assert not build_engines(repository_with_gpu, ["tiny"])[0].created
    assert (model_dir / "1/model.plan").stat().st_mtime_ns == before
    assert build_engines(repository_with_gpu, force=True)[0].created


def test_verify_says_before_a_start_whether_plans_fit(repository_with_gpu):
    def verify(target: str) -> Result:
        arguments = ["verify", "--repository", str(repository_with_gpu), "--plans-for", target]
        return CliRunner().invoke(repository_app, arguments)

    assert verify("11.4.0/9.0").exit_code == 0  # without a plan there is nothing to refuse
    (built,) = build_engines(repository_with_gpu)
    assert verify(f"{built.engine.tensorrt_version}/8.9").exit_code == 0
    for target, what in (("11.4.0/8.9", "but 11.4.0 runs here"), ("{}/9.0", "but this one has 9.0")):
        told = verify(target.format(built.engine.tensorrt_version))
        assert told.exit_code == 2
        assert what in told.stdout
        assert "build it again" in told.stdout


def damage_plan(version_dir: Path) -> None:
    (version_dir / "model.plan").write_bytes(b"half a plan")


def remove_plan(version_dir: Path) -> None:
    (version_dir / "model.plan").unlink()


def of_another_gpu(version_dir: Path) -> None:
    manifest = Manifest.read(version_dir)
    engine = dataclasses.replace(manifest.engine, compute_capability="7.5")
    dataclasses.replace(manifest, engine=engine).write(version_dir)


def of_another_tensorrt(version_dir: Path) -> None:
    manifest = Manifest.read(version_dir)
    engine = dataclasses.replace(manifest.engine, tensorrt_version="1.0.0")
    dataclasses.replace(manifest, engine=engine).write(version_dir)


@pytest.mark.parametrize("change", [damage_plan, remove_plan, of_another_gpu, of_another_tensorrt])
def test_a_plan_that_does_not_fit_or_is_damaged_is_built_again(repository_with_gpu, change):
    version_dir = repository_with_gpu / "tiny/1"
    build_engines(repository_with_gpu)
    change(version_dir)
    (healed,) = build_engines(repository_with_gpu)
    assert healed.created
    Manifest.read(version_dir).verify(version_dir)


def test_what_is_no_plan_is_not_healed_and_a_plan_that_differs_is_not_published(repository_with_gpu, monkeypatch):
    version_dir = repository_with_gpu / "tiny/1"

    def differs(*_):
        raise ParityError("the TensorRT plan differs")

    with monkeypatch.context() as patch:
        patch.setattr(engines, "compare_plan", differs)
        with pytest.raises(ParityError):
            build_engines(repository_with_gpu)
    Manifest.read(version_dir).verify(version_dir)
    assert not (version_dir / "model.plan").exists()
    assert read_config(repository_with_gpu / "tiny/config.pbtxt").backend == "onnxruntime"
    (version_dir / "model.onnx").write_bytes(b"another file")
    with pytest.raises(RepositoryError, match=r"model\.onnx has changed"):
        build_engines(repository_with_gpu)
    with pytest.raises(RepositoryError, match="holds no model 'absent', only: tiny"):
        build_engines(repository_with_gpu, ["absent"])


def test_a_graph_that_tensorrt_refuses_adds_nothing(tmp_path, monkeypatch):
    without_gpu(monkeypatch)
    monkeypatch.chdir(tmp_path)
    source = "import torch\nfrom torch import nn\n\n" + "\n".join(
        [
            "class Refused(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            "        self.head = nn.Linear(3, 1)",
            "    def forward(self, pixels):",
            "        return self.head(torch.linalg.det(pixels[:, :, :4, :4]))",
        ]
    )
    (tmp_path / "refused_nets.py").write_text(source)
    namespace: dict = {}
    exec(source, namespace)
    torch.save(namespace["Refused"]().state_dict(), "c.pt")
    spec = dataclasses.replace(TINY_SPEC, architecture="python:refused_nets:Refused")
    with pytest.raises(EngineError, match=r"ONNX operator Det"):
        export_checkpoint(ExportRequest("c.pt", "m", spec=spec, max_batch_size=2, tensorrt=EngineOptions()))
    assert [path.name for path in Path("m").iterdir()] == ["tiny.lock"]
