"""How the embedded server may run a version: engine, precision and file, and what the CPU must have for it.

An export measures these forms and keeps those that reproduce the checkpoint. Its figures hold for CPUs with the
instructions that were measured; on another one, a form that needs them would be slower than FP32.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.json_data import JsonData

CPU_INFO = Path("/proc/cpuinfo")

FEATURES = {
    "fp32": ("avx512f",),
    "fp16": (),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"),
}
"""By precision the CPU's flags, as Linux names them, that decide how fast it is: on x86-64 and on aarch64."""
ENGINE_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True, slots=True)
class ServedForm(JsonData):
    """One way to run a version.

    Attributes:
        engine: that runs the file in the embedded server.
        precision: that it computes in: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        file: name of the ONNX file in the version's directory.
        needs: flags of the CPU that it was measured with; without one of them another form is served.
    """

    json_error = RepositoryError

    engine: Literal["onnxruntime", "openvino"]
    precision: str
    file: str
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{ENGINE_NAMES[self.engine]} in {self.precision.upper()}"


def needs_of(engine: str, precision: str, features: Collection[str]) -> tuple[str, ...]:
    """Return what `ServedForm.needs` is for a form that was measured on a CPU with `features`.

    FP32 in ONNX Runtime, against which all are measured, and FP16, which it computes in FP32, need nothing.
    """
    if engine == "onnxruntime" and precision in ("fp32", "fp16"):
        return ()
    return tuple(name for name in FEATURES[precision] if name in features)


def cpu_features() -> frozenset[str]:
    """Return the flags of this machine's CPU; none where the system does not show them."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    # x86-64 calls the line "flags", aarch64 "Features".
    key = "Features" if platform.machine() == "aarch64" else "flags"
    found = next((line.partition(":")[2] for line in lines if line.split(":")[0].strip() == key), "")
    return frozenset(found.split())
