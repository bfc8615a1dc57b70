"""`ExportRequest`: what an export is asked for, as one value; and in what two of them differ.

What decides about the result is kept with the parity figures: the same request adds no version, and another one does
and says what has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deepfake_export.proof.gate import BEST, check_precisions
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_preprocess.contract.forms import FEATURES, cpu_features
from deepfake_preprocess.contract.manifest import sha256_file
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import PRODUCTION_MAX_BATCH_SIZE
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.engines import ENGINES, ONNX_RUNTIME, OPENVINO, is_installed
from deepfake_preprocess.support.extras import install_command

if TYPE_CHECKING:
    from deepfake_export.graph.served_detector import ServedDetector
    from deepfake_export.proof.crops import CropSet

MAX_BATCH_LIMIT = 1024
INT8_TARGETS = ("cpu", "tensorrt")
MAX_FINETUNE_MINUTES = 24 * 60
PROOF_SHARE = 5
"""Where weights are fine-tuned, one file in this many is kept for the proof alone."""
MAX_PROOF_CROPS = 256
"""Limit of the user's own crops, unless one full batch of the largest size needs more."""
AUTO = "auto"
REQUEST_KEY = "request"
"""Where the parity figures of a version hold `ExportRequest.identity`."""

DECIDES = {
    "precisions": "`precisions`",
    "engines": "the engines that are installed",
    "cpu": "the CPU that it is measured on",
    "promote": "`promote`",
    "int8_target": "`int8_target`",
    "int8_finetune": "`int8_finetune`",
    "calibration_sha256": "the calibration set",
    "labels_sha256": "the labels",
    "crops_sha256": "the crops of the proof",
    "tolerances_sha256": "the table of tolerances",
}
"""What decides about the result, and its name for people."""
_FOLLOWS: Final = {"precisions": ("engines", "cpu"), "engines": ("cpu",)}
"""What may be other because something else is: in FP32 alone no engines are compared, and the CPU does not matter."""


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
        return (
            "fp32",
        ), f"{alone} this CPU has instructions for {best.upper()}, but OpenVINO is not installed; run: " + (
            install_command(OPENVINO)
        )
    return ("fp32", best), ""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What `deepfake_export.export_checkpoint` is asked for.

    Attributes:
        checkpoint: file with the weights, or the YAML file of an ensemble, which names its members'.
        repository: Triton model repository; created where missing.
        spec: contract of the model or its YAML file; None takes the file of the checkpoint's name next to it. Its
            version is replaced by the next free one.
        max_batch_size: largest batch the server will form, 1 to 1024; proved, and written to the configuration.
        precisions: what to make and measure; FP32 is always among them. ``auto`` stands for what promises speed at
            unchanged verdicts on this machine, see `promising_precisions`.
        engines: what runs them, of `ENGINES`; None for ONNX Runtime and, where more than FP32 is asked for, every
            other one that is installed. ONNX Runtime is always among them.
        promote: ``best`` serves the fastest precision and engine that pass; a precision's name serves that one if it
            is accurate, and falls back INT8 -> BF16 -> FP16 -> FP32.
        int8_target: ``cpu`` or ``tensorrt``: the form of Q/DQ.
        int8_finetune: minutes in which the weights learn to bear INT8, where rounding alone leaves layers in FP32; 0
            for none. Without `crops` a fifth of the calibration set's files is left for the proof.
        calibration: directory of the user's videos and face images: ranges of INT8, and, without `crops`, the crops
            of the proof. See `deepfake_export.proof.faces` for what is taken from it.
        labels: CSV of real and fake for the files of `calibration`; None takes its folders ``real`` and ``fake``.
        crops: directory of face crops for the proof; None generates face-like ones.
        artifacts: directory that gets the ONNX files of all precisions that are accurate, for engines to be built
            from.
        tensorrt: also build a TensorRT plan, or check without a GPU that one can be built.
        force: make a new version even where the latest one is the same.
        verbose: let PyTorch's exporter print its messages.
        command: the command line that repeats this, for the report.
        left_out: why ``auto`` stands for FP32 alone here, as a sentence without a full stop; empty where it does not.
        int8_of_products_only: whether ``auto`` alone asks for INT8: then it is made of networks of matrix products,
            which need no calibration.

    Raises:
        OptionError: a value is out of range, or they do not fit together.
    """

    checkpoint: str | Path
    repository: str | Path
    _: KW_ONLY
    spec: ModelSpec | str | Path | None = None
    max_batch_size: int = PRODUCTION_MAX_BATCH_SIZE
    precisions: Collection[str] = ("fp32",)
    engines: Collection[str] | None = None
    promote: str = BEST
    int8_target: str = "cpu"
    int8_finetune: float = 0.0
    calibration: str | Path | None = None
    labels: str | Path | None = None
    crops: str | Path | None = None
    artifacts: str | Path | None = None
    tensorrt: EngineOptions | None = None
    force: bool = False
    verbose: bool = False
    command: str = ""
    left_out: str = field(default="", init=False)
    int8_of_products_only: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch_size <= MAX_BATCH_LIMIT:
            raise OptionError(
                f"`max_batch_size` is {self.max_batch_size}; allowed: a whole number from 1 to {MAX_BATCH_LIMIT}"
            )
        if AUTO in self.precisions:
            promising, why_not_more = promising_precisions()
            more = {item for item in self.precisions if item != AUTO}
            object.__setattr__(self, "int8_of_products_only", "int8" in promising and "int8" not in more)
            object.__setattr__(self, "precisions", {*promising, *more})
            object.__setattr__(self, "left_out", "" if more - {"fp32"} else why_not_more)
        object.__setattr__(self, "precisions", check_precisions(self.precisions))
        if unknown := [name for name in self.engines or () if name not in ENGINES]:
            raise OptionError(f"engine {unknown[0]!r} is unknown; allowed: {', '.join(ENGINES)}")
        if "bf16" in self.precisions and not self.engines_of("bf16"):
            raise OptionError(f"BF16 on a CPU needs OpenVINO; run: {install_command(OPENVINO)}")
        if self.promote not in (BEST, *self.precisions):
            allowed = ", ".join((BEST, *self.precisions))
            raise OptionError(f"`promote` is {self.promote!r}; allowed with these precisions: {allowed}")
        if self.int8_target not in INT8_TARGETS:
            raise OptionError(f"`int8_target` is {self.int8_target!r}; allowed: {', '.join(INT8_TARGETS)}")
        if not 0 <= self.int8_finetune <= MAX_FINETUNE_MINUTES:
            raise OptionError(
                f"`int8_finetune` is {self.int8_finetune:g}; allowed: minutes from 0 to {MAX_FINETUNE_MINUTES}"
            )
        if self.int8_finetune and "int8" not in self.precisions:
            raise OptionError("`int8_finetune` is for INT8; add int8 to `precisions`")
        if "int8" in self.precisions and self.calibration is None and not self.int8_of_products_only:
            raise OptionError(
                "INT8 needs faces to calibrate on; name a directory of your clips or face images as `calibration`"
            )
        if self.labels is not None and self.calibration is None:
            raise OptionError("`labels` belong to the files of a calibration set; name that as `calibration`")

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
        return [name for name in ENGINES if is_installed(name)] if set(self.precisions) > {"fp32"} else ()

    def identity(self) -> dict[str, Any]:
        """Return what decides about the result, as plain JSON data; files by their hash.

        Raises:
            OptionError: a directory or file is missing, or holds nothing.
        """
        calibration = labels = crops = None
        if self.labels is not None:
            if not Path(self.labels).is_file():
                raise OptionError(f"{self.labels}: there is no such file of labels")
            labels = sha256_file(Path(self.labels))
        # Loaded on use: they bring OpenCV and PyAV, which an export without files does not need yet.
        if self.calibration is not None:
            from deepfake_export.proof.faces import hash_media

            calibration = hash_media(self.calibration)
        if self.crops is not None:
            from deepfake_export.proof.crops import hash_files, images_of

            crops = hash_files(images_of(Path(self.crops)), Path(self.crops))
        pairs = {item: self.engines_of(item) for item in self.precisions}
        is_alone = sum(map(len, pairs.values())) == 1
        flags = cpu_features() & {flag for each in FEATURES.values() for flag in each}
        return {
            "precisions": list(self.precisions),
            "engines": sorted({engine for engines in pairs.values() for engine in engines}),
            # Where several are compared, their speed decides.
            "cpu": None if is_alone else sorted(flags),
            "promote": self.promote,
            "int8_target": self.int8_target if "int8" in self.precisions else None,
            "int8_finetune": self.int8_finetune or None,
            "calibration_sha256": calibration,
            "labels_sha256": labels,
            "crops_sha256": crops,
            "tolerances_sha256": _hash_of_tolerances(),
        }

    def read_crops(self, spec: ModelSpec) -> tuple[CropSet, CropSet | None]:
        """Return the crops of the proof, and the calibration set where there is one.

        Raises:
            OptionError: a file cannot be read, or there are too few faces.
        """
        from deepfake_export.proof.crops import generated_set, read_crops
        from deepfake_export.proof.faces import read_faces

        calibration = None
        if self.calibration is not None:
            calibration = read_faces(self.calibration, spec, labels=self.labels)
        # One full batch of the largest size, and some more, which make the last batch a smaller one.
        count = self.max_batch_size + 4
        if self.crops is not None:
            return read_crops(self.crops, spec.input_size_wh, limit=max(count, MAX_PROOF_CROPS)), calibration
        if calibration is None:
            return generated_set(count, spec.input_size_wh), None
        # Weights that were trained on the crops of the proof would prove nothing.
        return calibration.split(PROOF_SHARE) if self.int8_finetune else (calibration, calibration)


@dataclass(frozen=True, slots=True, eq=False)
class ExportJob:
    """A request with all of its files loaded.

    Attributes:
        spec: contract of the new version.
        detector: the checkpoint under the wire contract, in eval mode on the CPU.
        crops: those of the proof; `calibration` holds those of the INT8 ranges.
        on_step: called with a short sentence before each step.
    """

    request: ExportRequest
    spec: ModelSpec
    detector: ServedDetector
    crops: CropSet
    calibration: CropSet | None
    on_step: Callable[[str], None]


def what_changed(parity: Mapping[str, Any], identity: Mapping[str, Any], max_batch_size: int) -> tuple[str, ...]:
    """Return in what a request differs from the one that a version was made for, by its figures, as names for people.

    A smaller largest batch than was proved makes no difference.
    """
    before = parity.get(REQUEST_KEY) or {}
    keys = [key for key in DECIDES if before.get(key) != identity[key]]
    follow = {effect for key in keys for effect in _FOLLOWS.get(key, ())}
    changed = [DECIDES[key] for key in keys if key not in follow]
    if max(parity.get("batch_sizes") or [0]) < max_batch_size:
        changed.append("a larger `max_batch_size`")
    return tuple(changed)


def _hash_of_tolerances() -> str:
    limits = {
        name: {**dataclasses.asdict(item), "generated_logit_mean_abs": item.generated_logit_mean_abs}
        for name, item in TOLERANCES.items()
    }
    for item in limits.values():
        del item["reason"]  # text
    return hashlib.sha256(json.dumps(limits, sort_keys=True).encode()).hexdigest()
