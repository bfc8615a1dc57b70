"""Models in a repository whose files hold no network: for what is decided before any is loaded."""

from deepfake_export.repository.configs import refresh_configs
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.spec import ModelSpec

SPEC = ModelSpec(name="detector", architecture="timm:efficientnet_b0")
FP32 = (ServedForm("onnxruntime", "fp32", "model.onnx"),)


def write_model(root, spec=SPEC, file_name="model.onnx"):
    version_dir = root / spec.name / str(spec.version)
    version_dir.mkdir(parents=True)
    (version_dir / file_name).write_bytes(b"weights")
    manifest = Manifest(spec, file_hashes(version_dir), "fp32")
    manifest.write(version_dir)
    refresh_configs(root / spec.name, manifest, max_batch_size=triton_config.PRODUCTION_MAX_BATCH_SIZE)
    return version_dir


def write_configs_only(root, name):
    manifest = Manifest(ModelSpec(name=name, architecture="torchscript"), {}, "fp32")
    refresh_configs(root / name, manifest, max_batch_size=triton_config.PRODUCTION_MAX_BATCH_SIZE)


def edit_config(root, change, name="detector"):
    path = root / name / triton_config.EMBEDDED_CONFIG_NAME
    config = triton_config.read_config(path)
    change(config)
    path.write_text(triton_config.config_to_text(config), encoding="utf-8")
