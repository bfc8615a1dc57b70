#!/bin/sh
# What a machine with an NVIDIA GPU can say from a checkout alone: the GPU tests that can run there, then
# `deepfake bench gpu`, in at most eight minutes. Nothing is installed or downloaded; what is missing is left out and said.
# Results are written after each engine, so what was measured stays, whatever ends the rest.
#
#   sh scripts/gpu_check.sh --output results.json        options are those of `deepfake bench gpu`
#   sh scripts/gpu_check.sh --device cpu --network timm:test_efficientnet@64 --batches 1,8      tries it without a GPU
#
# Python 3.11 to 3.13 (PYTHON=python3.12) with torch, onnx, onnxruntime, timm, numpy, typer, rich and OpenCV.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
for part in preprocess client export serve explain benchmarks; do
    PYTHONPATH="$PWD/$part${PYTHONPATH:+:$PYTHONPATH}"
done
export PYTHONPATH HF_HUB_OFFLINE=1
"$python" -c 'import torch, onnx, onnxruntime, timm, numpy, typer, rich, cv2' ||
    { echo "error: $python lacks a package of those that this script's first lines name" >&2; exit 2; }

# Says which engines' tests cannot run here, as pytest's -k wants it.
left_out() {
    "$python" - <<'END'
from importlib.util import find_spec

import onnxruntime

absent = ["command"]  # the whole command runs below
if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
    absent.append("onnxruntime")
if find_spec("tensorrt") is None or find_spec("tensorrt_rtx_bindings") is None:
    absent.append("tensorrt")
print(" and ".join(f"not {name}" for name in absent))
END
}

failed=0
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "==> PyTorch sees no GPU here: the GPU tests are left out"
elif ! "$python" -c 'import pytest' 2>/dev/null; then
    echo "==> pytest is not installed: the GPU tests are left out"
else
    echo "==> GPU tests"
    timeout 120 "$python" -m pytest -q -c /dev/null --rootdir="$PWD" --confcutdir=tests/gpu --import-mode=importlib \
        -p no:cacheprovider -k "$(left_out)" tests/gpu/test_gpu_engines.py || failed=$?
fi

echo "==> deepfake bench gpu"
timeout 350 "$python" -c '
import sys

import typer

from deepfake_bench.cli.gpu import gpu
from deepfake_preprocess.errors import DeepfakeError

try:
    typer.run(gpu)
except DeepfakeError as exc:
    print(f"error: {exc}", file=sys.stderr)
    sys.exit(exc.exit_code)
' --minutes 4.5 --seconds 0.5 --batches 1,8,32,128,256 "$@" || failed=$?
exit "$failed"
