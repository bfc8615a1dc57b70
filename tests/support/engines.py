"""What a manifest says of a TensorRT plan. Import it as ``import engines`` (see conftest.py)."""

from __future__ import annotations

from deepfake_preprocess.contract.manifest import EngineInfo
from deepfake_preprocess.contract.version_files import PLAN_FILE

ENGINE = EngineInfo(
    builder="tensorrt",
    tensorrt_version="11.4.0.106",
    compute_capability="8.9",
    cuda_version="13.0",
    precision="fp32",
    min_batch_size=1,
    typical_batch_size=4,
    max_batch_size=4,
    num_layers=3,
    size_bytes=6,
    build_seconds=0.1,
    plan=PLAN_FILE,
)
