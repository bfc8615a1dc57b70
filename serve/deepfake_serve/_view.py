"""The private repository that a server reads: what was checked, with each model's share of the cores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.support.machine import usable_cores
from deepfake_serve._repository import CheckedModel
from deepfake_serve._shares import CpuShare, weight_bytes

MAX_LONE_THREADS = 4
MAX_LONE_MODEL_MB = 512
"""Above this size, an instance gets no second network that uses the cores of all: it holds the model once more. With
CLIP ViT-B/16 (345 MB), a lone request without it, on one of two cores, took 1.58 times as long as in-process."""

MARK_PARAMETER = "deepfake_serve_state"
"""In a configuration that is served: which state of a model it is, so that a change is known to be served."""


class View:
    """The private repository that a server reads: links to checked versions, configurations with each model's share.

    A model's folder is a link that changes in one step, so Triton never sees half of a change.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "repository"
        self._states = run_dir / "states"
        self._known: list[tuple[CheckedModel, CpuShare]] = []
        for folder in (self.folder, self._states):
            folder.mkdir()

    def show(self, models: Sequence[CheckedModel], shares: Mapping[str, CpuShare]) -> dict[str, str]:
        """Have exactly these models served, and return for each name the mark that its configuration then has."""
        marks = {model.spec.name: self._state(model, shares[model.spec.name]) for model in models}
        for name, mark in marks.items():
            link, state, partial = self.folder / name, self._states / mark, self._states / "link"
            if link.is_symlink() and link.readlink() == state:
                continue
            # Triton takes a change for one only where it is newer than what it has loaded.
            for path in (state / triton_config.CONFIG_NAME, state):
                os.utime(path)
            partial.symlink_to(state, target_is_directory=True)
            partial.replace(link)
        for link in self.folder.iterdir():
            if link.name not in marks:
                link.unlink()
        return marks

    def _state(self, model: CheckedModel, share: CpuShare) -> str:
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
        lone_threads = min(share.instances * share.threads, usable_cores(), MAX_LONE_THREADS)
        is_small = weight_bytes(model) <= MAX_LONE_MODEL_MB * 2**20
        triton_config.set_cpu_share(
            config,
            instances=share.instances,
            threads=share.threads,
            lone_threads=lone_threads if is_small and lone_threads > share.threads else None,
        )
        if share.instances == 1:
            # Asked for, or of a model of which memory holds no second one.
            triton_config.remove_queue_bounds(config)
        config.parameters[MARK_PARAMETER].string_value = mark
        text = triton_config.config_to_text(config)
        (state / triton_config.CONFIG_NAME).write_text(text, encoding="utf-8")
        return mark


def _mark(number: int) -> str:
    return f"state-{number}"
