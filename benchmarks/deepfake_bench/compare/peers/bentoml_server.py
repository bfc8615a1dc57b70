"""BentoML with adaptive batching: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html.

Crops come as a file of a multipart form, the binary format BentoML takes from clients.
"""

from pathlib import Path

import bentoml
import numpy as np
from network import OPTIONS, load


@bentoml.service(workers=OPTIONS["workers"], traffic={"timeout": 60})
class Detector:
    """Raw uint8 crops in, probabilities out."""

    def __init__(self) -> None:
        self.network = load(OPTIONS["threads"])

    @bentoml.api(batchable=True, max_batch_size=OPTIONS["batch"])
    def predict(self, crops: list[Path]) -> list[float]:
        """Run the network once for the crops of several requests."""
        batch = np.stack([np.fromfile(crop, np.uint8).reshape(OPTIONS["crop_shape"]) for crop in crops])
        return self.network(batch)[:, 0].tolist()
