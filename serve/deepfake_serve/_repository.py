"""Checks a model repository before it is served, and lays out the private view that the server reads.

A version is served only when its files match its manifest and its configuration says what the manifest says.
The repository itself is never written to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.config_check import contract_problems
from deepfake_preprocess.contract.forms import cpu_features
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.model_dir import served_version, versions_of
from deepfake_preprocess.contract.plan_info import PLAN_FILE
from deepfake_preprocess.contract.repository import MODEL_FILE, model_dirs
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError, RepositoryError
from deepfake_serve._forms import choose_form

MAX_INSTANCES = 8
"""Past this, cores go into threads: each instance is a process with a copy of the model, and eight of them
already answer eight batches at once."""

MEMORY_SHARE = 0.5
"""Of this machine's memory that the instances of a model may take, where their number is not given."""
HELD_COPIES = 6.5
"""An instance holds a model's weights in networks for several sizes of a batch, as they are and as its engine wants
them: with CLIP ViT-B/16, 345 MB, its process had 2.2 GB (OpenVINO, BF16)."""

MAX_LONE_THREADS = 4
MAX_LONE_MODEL_MB = 512
"""An instance that may use the cores of the others as well holds the model once more. Of CLIP ViT-B/16, 345 MB, a
lone request on one of two cores took 1.58 times as long as in-process."""

MARK_PARAMETER = "deepfake_serve_state"
"""In a configuration that is served: which state of a model it is, so that a change is known to be served."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One checked model version.

    Attributes:
        spec: its contract.
        version_dir: its folder.
        config: its embedded configuration, a ``ModelConfig``, with the form that is served here.
        note: why that form is not the one that the repository names, as a sentence; empty where it is.
    """

    spec: ModelSpec
    version_dir: Path
    config: Any
    note: str = ""


@dataclass(frozen=True, slots=True)
class CpuShare:
    """How the cores are divided: `instances` copies of each model with `threads` threads each."""

    instances: int
    threads: int

    def __post_init__(self) -> None:
        for name in ("instances", "threads"):
            if (value := getattr(self, name)) < 1:
                raise OptionError(f"{name} is {value}; allowed: a whole number from 1")


def available_cores() -> int:
    """Return the number of cores this process may use: its CPU set, and less where a cgroup limits its time."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # another cgroup version, or the quota is "max"
        return cores


def usable_memory() -> int:
    """Return how much memory this process may use, in bytes: the machine's, and less where a cgroup limits it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # another cgroup version, or the limit is "max"
        return machine


def cpu_share(cores: int, *, instances: int | None = None, threads: int | None = None) -> CpuShare:
    """Divide `cores` so that instances times threads uses them all and no more; given numbers are kept."""
    if instances is None:
        instances = min(max(1, cores // threads), MAX_INSTANCES) if threads else min(cores, MAX_INSTANCES)
    if threads is None:
        threads = max(1, cores // instances) if instances > 0 else 1
    return CpuShare(instances, threads)


def model_share(
    model: ServedModel, cores: int, *, instances: int | None = None, threads: int | None = None
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
            instances = max(range(1, fitting + 1), key=lambda count: (count * (cores // count), count))
    return cpu_share(cores, instances=instances, threads=threads)


def weight_bytes(model: ServedModel) -> int:
    """Return the size of the file that is served; OpenVINO's own format has its weights beside it."""
    path = model.version_dir / model.config.default_model_filename
    return sum(item.stat().st_size for item in {path, path.with_suffix(".bin")} if item.exists())


def check_repository(repository: Path, models: Sequence[str] = ()) -> list[ServedModel]:
    """Return of each model named, or of all that have a version, the one that its configuration serves, checked.

    Raises:
        RepositoryError: nothing to serve, a version does not match its manifest, or a configuration is missing or
            differs from the manifest; names the model and the file.
    """
    return [_check_model(model_dir) for model_dir in model_dirs(repository, models)]


class View:
    """The private repository that a server reads: links to checked versions, configurations with each model's share.

    A model's folder is a link that changes in one step, so Triton never sees half of a change.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "repository"
        self._states = run_dir / "states"
        self._known: list[tuple[ServedModel, CpuShare]] = []
        for folder in (self.folder, self._states):
            folder.mkdir()

    def show(self, models: Sequence[ServedModel], shares: Mapping[str, CpuShare]) -> dict[str, str]:
        """Have exactly these models served, and return for each name the mark that its configuration then has."""
        marks = {model.spec.name: self._state(model, shares[model.spec.name]) for model in models}
        for name, mark in marks.items():
            partial = self._states / "link"
            partial.symlink_to(self._states / mark, target_is_directory=True)
            partial.replace(self.folder / name)
        for link in self.folder.iterdir():
            if link.name not in marks:
                link.unlink()
        return marks

    def _state(self, model: ServedModel, share: CpuShare) -> str:
        """Lay out one state of a model, where it has not been shown before, and return its mark."""
        if (model, share) in self._known:
            return _mark(self._known.index((model, share)))
        mark = _mark(len(self._known))
        self._known.append((model, share))
        state = self._states / mark
        state.mkdir()
        (state / model.version_dir.name).symlink_to(model.version_dir.resolve(), target_is_directory=True)
        config = type(model.config)()
        config.CopyFrom(model.config)
        lone_threads = min(share.instances * share.threads, available_cores(), MAX_LONE_THREADS)
        is_small = weight_bytes(model) <= MAX_LONE_MODEL_MB * 2**20
        triton_config.set_cpu_share(
            config,
            instances=share.instances,
            threads=share.threads,
            lone_threads=lone_threads if is_small and lone_threads > share.threads else None,
        )
        config.parameters[MARK_PARAMETER].string_value = mark
        text = triton_config.config_to_text(config)
        (state / triton_config.CONFIG_NAME).write_text(text, encoding="utf-8")
        return mark


def _mark(number: int) -> str:
    return f"state-{number}"


def _check_model(model_dir: Path) -> ServedModel:
    path = model_dir / triton_config.EMBEDDED_CONFIG_NAME
    config = triton_config.read_config(path)
    version_dir = model_dir / str(served_version(config, versions_of(model_dir), where=path))
    manifest = Manifest.read(version_dir)
    if MODEL_FILE not in manifest.files:
        lacks = "only a TensorRT plan, which the embedded server cannot run" if PLAN_FILE in manifest.files else ""
        raise RepositoryError(
            f"{version_dir} has no {MODEL_FILE}, {lacks or 'which the embedded server runs'}; export the model to "
            "ONNX, or serve it with NVIDIA's container (`docker compose up`)"
        )
    manifest.verify(version_dir)
    # Batching and instances may be tuned by hand; what the contract fixes may not.
    for problem in contract_problems(config, manifest, config_name=triton_config.EMBEDDED_CONFIG_NAME):
        raise RepositoryError(f"{path}: {problem}; export the model again, or restore the file")
    form, note = choose_form(manifest, config, cpu_features())
    triton_config.set_form(config, form)
    return ServedModel(manifest.spec, version_dir, config, note)
