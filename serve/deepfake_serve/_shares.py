"""How the cores of this machine are divided among the instances of a model."""

from __future__ import annotations

from dataclasses import dataclass

from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.machine import usable_memory
from deepfake_serve._repository import CheckedModel

MAX_INSTANCES = 8
"""Past this, cores go into threads: each instance is a process with a copy of the model, and eight of them
already answer eight batches at once."""

MEMORY_SHARE = 0.5
"""Share of this machine's memory that the instances of a model may take, where their number is not given."""
HELD_COPIES = 6.5
"""An instance holds a model's weights in networks for several sizes of a batch, as they are and as its engine wants
them: with CLIP ViT-B/16, 345 MB, its process had 2.2 GB (OpenVINO, BF16)."""


@dataclass(frozen=True, slots=True)
class CpuShare:
    """How the cores are divided: `instances` copies of each model with `threads` threads each."""

    instances: int
    threads: int

    def __post_init__(self) -> None:
        for name in ("instances", "threads"):
            if (value := getattr(self, name)) < 1:
                raise OptionError(f"{name} is {value}; allowed: a whole number from 1")


def cpu_share(cores: int, *, instances: int | None = None, threads: int | None = None) -> CpuShare:
    """Divide `cores` so that instances times threads uses them all, and no more than two where there is one.

    Given numbers are kept.
    """
    if instances is None:
        instances = min(max(triton_config.MIN_INSTANCES, cores // (threads or 1)), MAX_INSTANCES)
    if threads is None:
        threads = max(1, cores // instances) if instances > 0 else 1
    return CpuShare(instances, threads)


def model_share(
    model: CheckedModel, cores: int, *, instances: int | None = None, threads: int | None = None
) -> CpuShare:
    """Return how the cores are divided for one model: as given, or as tuned for so many cores, or by `cpu_share`.

    Where memory does not suffice for a copy of the model for each core, fewer instances have more threads.
    """
    tuned = triton_config.tuned_options(model.config)
    if instances is None and threads is None:
        if tuned is not None and tuned.tuned_for_cores == cores:
            return CpuShare(tuned.instances, tuned.threads)
        fitting = max(1, int(MEMORY_SHARE * usable_memory() / (HELD_COPIES * weight_bytes(model))))
        if fitting < cpu_share(cores).instances:
            # As many as leave the fewest cores over: of seven cores, three instances would use six.
            least = min(triton_config.MIN_INSTANCES, fitting)
            instances = max(range(least, fitting + 1), key=lambda count: (count * (cores // count), count))
    return cpu_share(cores, instances=instances, threads=threads)


def weight_bytes(model: CheckedModel) -> int:
    """Return the size of the file that is served; OpenVINO's own format has its weights beside it."""
    path = model.version_dir / model.config.default_model_filename
    return sum(item.stat().st_size for item in {path, path.with_suffix(".bin")} if item.exists())
