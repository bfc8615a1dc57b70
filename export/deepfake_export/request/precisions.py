"""`PrecisionOptions`: what is made of a network and measured, and which of it is served."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from deepfake_export.proof.gate import BEST, check_precisions
from deepfake_preprocess.contract.forms import FEATURES, cpu_features
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.engines import ENGINES, ONNX_RUNTIME, OPENVINO, is_installed
from deepfake_preprocess.support.extras import install_command

INT8_TARGETS = ("cpu", "tensorrt")
MAX_FINETUNE_MINUTES = 24 * 60
AUTO = "auto"


def promising_precisions() -> tuple[tuple[str, ...], str]:
    """Return the precisions that are worth measuring here without calibration, and why there is FP32 alone.

    On CPUs with instructions for BF16, OpenVINO ran EfficientNet-B0 and CLIP ViT-B/16 in BF16 at twice FP32's speed.
    On others BF16 is slower than FP32; INT8 of matrix products, which needs none of it, ran CLIP at 2.3 times FP32's
    speed (on a CPU with BF16). Where there is BF16, that is 1.2 times its speed, which is not worth measuring it in
    every export. In FP32 neither engine was clearly faster than the other. The reason is a sentence without a full
    stop; empty where there is more than FP32.
    """
    alone = "FP32 in ONNX Runtime is served, and nothing else was measured:"
    best = next((name for name in ("bf16", "int8") if cpu_features().intersection(FEATURES[name])), None)
    if best is None:
        return ("fp32",), f"{alone} OpenVINO is faster in BF16 and INT8 only, for which this CPU has no instructions"
    if not is_installed(OPENVINO):
        reason = f"this CPU has instructions for {best.upper()}, but OpenVINO is not installed"
        return ("fp32",), f"{alone} {reason}; run: {install_command(OPENVINO)}"
    return ("fp32", best), ""


@dataclass(frozen=True, slots=True)
class PrecisionOptions:
    """What is made of a network and measured, and which of it is served.

    Attributes:
        names: what to make and measure; FP32 is always among them. ``auto`` stands for what promises speed at
            unchanged verdicts on this machine, see `promising_precisions`.
        engines: what runs them, of `ENGINES`; None for ONNX Runtime and, where more than FP32 is asked for, every
            other one that is installed. ONNX Runtime is always among them.
        promote: ``best`` serves the fastest precision and engine that pass; a precision's name serves that one if it
            is accurate, and falls back INT8 -> BF16 -> FP16 -> FP32.
        int8_target: ``cpu`` or ``tensorrt``: the form of Q/DQ.
        int8_finetune: minutes in which the weights learn to bear INT8, where rounding alone leaves layers in FP32; 0
            for none.
        left_out: why ``auto`` stands for FP32 alone here, as a sentence without a full stop; empty where it does not.
        int8_of_products_only: whether ``auto`` alone asks for INT8: then it is made of networks of matrix products,
            which need no calibration.

    Raises:
        OptionError: a value is out of range, or they do not fit together.
    """

    names: Collection[str] = ("fp32",)
    engines: Collection[str] | None = None
    promote: str = BEST
    int8_target: str = "cpu"
    int8_finetune: float = 0.0
    left_out: str = field(default="", init=False)
    int8_of_products_only: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if AUTO in self.names:
            promising, why_not_more = promising_precisions()
            more = {item for item in self.names if item != AUTO}
            object.__setattr__(self, "int8_of_products_only", "int8" in promising and "int8" not in more)
            object.__setattr__(self, "names", {*promising, *more})
            object.__setattr__(self, "left_out", "" if more - {"fp32"} else why_not_more)
        object.__setattr__(self, "names", check_precisions(self.names))
        if unknown := [name for name in self.engines or () if name not in ENGINES]:
            raise OptionError(f"engine {unknown[0]!r} is unknown; allowed: {', '.join(ENGINES)}")
        if "bf16" in self.names and not self.engines_of("bf16"):
            raise OptionError(f"BF16 on a CPU needs OpenVINO; run: {install_command(OPENVINO)}")
        if self.promote not in (BEST, *self.names):
            allowed = ", ".join((BEST, *self.names))
            raise OptionError(f"`promote` is {self.promote!r}; allowed with these precisions: {allowed}")
        if self.int8_target not in INT8_TARGETS:
            raise OptionError(f"`int8_target` is {self.int8_target!r}; allowed: {', '.join(INT8_TARGETS)}")
        if not 0 <= self.int8_finetune <= MAX_FINETUNE_MINUTES:
            raise OptionError(
                f"`int8_finetune` is {self.int8_finetune:g}; allowed: minutes from 0 to {MAX_FINETUNE_MINUTES}"
            )
        if self.int8_finetune and "int8" not in self.names:
            raise OptionError("`int8_finetune` is for INT8; add int8 to `precisions`")

    @property
    def need_calibration(self) -> bool:
        """Whether INT8 is among them in a form whose ranges are measured on faces."""
        return "int8" in self.names and not self.int8_of_products_only

    def engines_of(self, precision: str) -> tuple[str, ...]:
        """Return the engines that a precision is measured in.

        OpenVINO computes FP16 files in FP32, as ONNX Runtime does, and ONNX Runtime knows no BF16 on CPUs. The form
        of INT8 for TensorRT is for no engine here, and measured in one.
        """
        engines = [OPENVINO] if OPENVINO in self._more_engines() else []
        if precision == "bf16":
            return tuple(engines)
        if precision == "fp16" or (precision == "int8" and self.int8_target != "cpu"):
            return (ONNX_RUNTIME,)
        return (ONNX_RUNTIME, *engines)

    def _more_engines(self) -> Collection[str]:
        if self.engines is not None:
            return self.engines
        return [name for name in ENGINES if is_installed(name)] if set(self.names) > {"fp32"} else ()

    def identity(self) -> dict[str, Any]:
        """Return what decides about the result, as plain JSON data."""
        pairs = {item: self.engines_of(item) for item in self.names}
        is_alone = sum(map(len, pairs.values())) == 1
        flags = cpu_features() & {flag for each in FEATURES.values() for flag in each}
        return {
            "precisions": list(self.names),
            "engines": sorted({engine for engines in pairs.values() for engine in engines}),
            # Where several are compared, their speed decides.
            "cpu": None if is_alone else sorted(flags),
            "promote": self.promote,
            "int8_target": self.int8_target if "int8" in self.names else None,
            "int8_finetune": self.int8_finetune or None,
        }
