"""`ExportRequest`: what an export is asked for, as one value; and in what two of them differ.

What decides about the result is kept with the parity figures: the same request adds no version, and another one does
and says what has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_export.request.faces import FaceOptions
from deepfake_export.request.precisions import PrecisionOptions
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import PRODUCTION_MAX_BATCH_SIZE
from deepfake_preprocess.errors import OptionError

if TYPE_CHECKING:
    from deepfake_export.graph.served_detector import ServedDetector
    from deepfake_export.proof.crops import CropSet

MAX_BATCH_LIMIT = 1024
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


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What `deepfake_export.export_checkpoint` is asked for.

    Attributes:
        checkpoint: file with the weights, or the YAML file of an ensemble, which names its members'.
        repository: Triton model repository; created where missing.
        spec: contract of the model or its YAML file; None takes the file of the checkpoint's name next to it. Its
            version is replaced by the next free one.
        max_batch_size: largest batch the server will form, 1 to 1024; proved, and written to the configuration.
        precisions: what is made and measured, and which of it is served.
        faces: the user's own, for calibration and proof.
        artifacts: directory that gets the ONNX files of all precisions that are accurate, for engines to be built
            from.
        tensorrt: also build a TensorRT plan, or check without a GPU that one can be built.
        force: make a new version even where the latest one is the same.
        verbose: let PyTorch's exporter print its messages.
        command: the command line that repeats this, for the report.

    Raises:
        OptionError: a value is out of range, or they do not fit together.
    """

    checkpoint: str | Path
    repository: str | Path
    _: KW_ONLY
    spec: ModelSpec | str | Path | None = None
    max_batch_size: int = PRODUCTION_MAX_BATCH_SIZE
    precisions: PrecisionOptions = PrecisionOptions()
    faces: FaceOptions = FaceOptions()
    artifacts: str | Path | None = None
    tensorrt: EngineOptions | None = None
    force: bool = False
    verbose: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch_size <= MAX_BATCH_LIMIT:
            raise OptionError(
                f"`max_batch_size` is {self.max_batch_size}; allowed: a whole number from 1 to {MAX_BATCH_LIMIT}"
            )
        if self.precisions.need_calibration and self.faces.calibration is None:
            raise OptionError(
                "INT8 needs faces to calibrate on; name a directory of your clips or face images as `calibration`"
            )

    def identity(self) -> dict[str, Any]:
        """Return what decides about the result, as plain JSON data; files by their hash.

        Raises:
            OptionError: a directory or file is missing, or holds nothing.
        """
        return {
            **self.precisions.identity(),
            **self.faces.identity(),
            "tolerances_sha256": _hash_of_tolerances(),
        }

    def read_crops(self, spec: ModelSpec) -> tuple[CropSet, CropSet | None]:
        """See `FaceOptions.read`."""
        learned_from = self.precisions.int8_finetune > 0
        return self.faces.read(spec, batch_size=self.max_batch_size, learned_from=learned_from)


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
