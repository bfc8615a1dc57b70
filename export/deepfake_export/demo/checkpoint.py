"""The demo checkpoint: a trained EfficientNet-B0 that comes with the package.

What it is worth is measured: ``MODEL_CARD.md`` next to the weights. Needs no PyTorch; it is only copied.
"""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from deepfake_preprocess.errors import OptionError

DEMO_NAME = "deepfake_efficientnet_b0"
CARD_NAME = "MODEL_CARD.md"
_DATA = files("deepfake_export.demo")


def write_demo_checkpoint(directory: str | Path) -> tuple[Path, Path]:
    """Copy the demo checkpoint, its spec and its model card into `directory`, which is created where missing.

    Returns the paths of the ``.safetensors`` and the ``.yaml``; `OptionError` where the directory cannot be written.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in (f"{DEMO_NAME}.safetensors", f"{DEMO_NAME}.yaml", CARD_NAME):
            with as_file(_DATA / name) as path:
                shutil.copyfile(path, directory / name)
    except OSError as exc:
        raise OptionError(f"{directory} cannot be written ({exc.strerror}); name another directory") from exc
    return directory / f"{DEMO_NAME}.safetensors", directory / f"{DEMO_NAME}.yaml"
