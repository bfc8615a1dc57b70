"""Writes the fingerprints of all networks of timm and torchvision: `python scripts/index_architectures.py`.

Networks are built without memory, on PyTorch's meta device; that takes some minutes. Run it after a new timm.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path

import timm
from torchvision import models

from deepfake_export.checkpoint.architectures import build_light
from deepfake_export.checkpoint.fingerprints import INDEX_NAME, fingerprint
from deepfake_export.checkpoint.layers import head_path

TARGET = Path(__file__).parent.parent / "export" / "deepfake_export" / "checkpoint" / INDEX_NAME


def main() -> None:
    """Build every network and write the index."""
    warnings.simplefilter("ignore")
    makers = {f"timm:{name}": lambda name=name: timm.create_model(name, num_classes=2) for name in timm.list_models()}
    makers |= {
        f"torchvision:{name}": lambda name=name: models.get_model_builder(name)(weights=None, num_classes=2)
        for name in models.list_models(module=models)
    }
    found: dict[str, list[str]] = defaultdict(list)
    for name, make in makers.items():
        try:
            network = build_light(make)
        # What takes other arguments, or other libraries, is not recognized.
        except Exception as exc:
            print(f"{name}: {type(exc).__name__}: {exc}")
            continue
        head = head_path(network) + "."
        body = [(key, value.shape) for key, value in network.state_dict().items() if not key.startswith(head)]
        found[f"{fingerprint(body):016x}"].append(name)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(names)}" for key, names in sorted(found.items()))
    TARGET.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    print(f"{len(makers)} networks, {len(found)} fingerprints")


if __name__ == "__main__":
    main()
