"""Names of the files in a version's folder of a model repository."""

from __future__ import annotations

from typing import Final

MODEL_FILE: Final = "model.onnx"
"""What ONNX Runtime runs; every version that is not a TensorRT plan alone has it."""
PLAN_FILE: Final = "model.plan"
"""What Triton's `tensorrt` backend loads."""
ENGINE_SOURCE: Final = "engine.onnx"
"""What TensorRT plans are built from, where a version has it; they are built from `MODEL_FILE` otherwise. TensorRT
refuses INT8 in the form for CPUs, so such a version holds the next best precision as well."""
FP32_FILE: Final = "fp32.onnx"
"""For CPUs on which INT8 would be slower than FP32, where a version has it."""
BF16_FILE: Final = "bf16.xml"
"""What OpenVINO computes in BF16 where the first layers stay in FP32; the weights are in `BF16_WEIGHTS`."""
BF16_WEIGHTS: Final = "bf16.bin"
