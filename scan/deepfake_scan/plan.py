"""How large a cluster is needed for so many clips a day: a formula, and figures of our own benchmarks.

    cores of the scan = clips a day * CORE_S_PER_CLIP / 86,400 s / USE
    crops a second    = clips a day * CROPS_PER_CLIP / 86,400 s / USE
    servers           = crops a second / crops a second of one server

The figures are of one machine (AMD EPYC, 2 cores, no GPU) and one kind of clip: 1080p, 10 s, 32 frames, one face.
Measure one's own: `deepfake scan` prints clips a second, `deepfake bench server` crops a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from deepfake_preprocess.errors import OptionError

CORE_S_PER_CLIP: Final = 1.96
"""Decode, detect, crop: CPU time of a clip in a run of 100, less what the server took for its crops
(benchmarks/results, pipeline)."""
CORE_S_PER_CROP: Final = 0.0205
"""CPU time of the embedded server for one crop of EfficientNet-B0 at 224 px, FP32 (benchmarks/results, served)."""
CROPS_PER_CLIP: Final = 32
USE: Final = 0.7
"""Share of the time that machines work: the rest is for their starts, losses and the unevenness of a day."""
DAY_S: Final = 86_400
EXAMPLES: Final = (1_000_000, 10_000_000, 100_000_000)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What so many clips a day need.

    Attributes:
        clips_per_day: the clips.
        scan_cores: cores that decode, detect and crop.
        crops_per_s: crops that servers must score in a second, with room to spare.
        servers: servers of the given rate; None where scoring is meant on CPU cores.
        server_cores: cores that score, where it is.
        results_gb: what a day leaves: Parquet, and the JSON beside.
    """

    clips_per_day: int
    scan_cores: int
    crops_per_s: int
    servers: int | None
    server_cores: int | None
    results_gb: float


RESULT_BYTES: Final = 4_000
"""Compressed result of a clip with 32 frames and one face."""


def plan(clips_per_day: int, server_crops_per_s: float | None = None) -> Cluster:
    """Return the cluster for so many clips a day; `server_crops_per_s` is what one server scores, on a GPU say.

    Raises:
        OptionError: a number is not positive.
    """
    if clips_per_day < 1 or (server_crops_per_s is not None and not server_crops_per_s > 0):
        raise OptionError("`plan` takes clips a day, and crops a second of one server, both above 0")
    per_s = clips_per_day / DAY_S / USE
    crops_per_s = per_s * CROPS_PER_CLIP
    on_cores = server_crops_per_s is None
    return Cluster(
        clips_per_day,
        scan_cores=math.ceil(per_s * CORE_S_PER_CLIP),
        crops_per_s=math.ceil(crops_per_s),
        servers=None if server_crops_per_s is None else math.ceil(crops_per_s / server_crops_per_s),
        server_cores=math.ceil(crops_per_s * CORE_S_PER_CROP) if on_cores else None,
        results_gb=clips_per_day * RESULT_BYTES / 1e9,
    )


def parse_plan(text: str) -> list[Cluster]:
    """Return the clusters for ``CLIPS``, ``CLIPS,CROPS_PER_S``, or `EXAMPLES` for ``examples``; OptionError else."""
    clips, _, rate = text.replace("_", "").partition(",")
    try:
        wanted = EXAMPLES if clips == "examples" else (int(float(clips)),)
        return [plan(one, float(rate) if rate else None) for one in wanted]
    except (ValueError, OverflowError) as exc:
        raise OptionError(
            f"`plan` is {text!r}; allowed: clips a day, and after a comma crops a second of one server, as 10e6,900; "
            "or examples"
        ) from exc
