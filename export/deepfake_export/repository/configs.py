"""Writes the configurations of a model, which name the version that is served: each is replaced in one step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from deepfake_export.repository.locks import writing
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.plan_info import served_precision
from deepfake_preprocess.contract.triton_config import (
    CONFIG_NAME,
    CPU_CONFIG_NAME,
    EMBEDDED_CONFIG_NAME,
    PRODUCTION_BACKENDS,
    PRODUCTION_MAX_BATCH_SIZE,
    ServingOptions,
    cpu_config,
    embedded_config,
    production_config,
    read_config,
    tuned_options,
)
from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.support.files import prepared


def refresh_configs(
    model_dir: Path, manifest: Manifest, *, max_batch_size: int, options: ServingOptions | None = None
) -> None:
    """Write the configurations of the version that is to be served; `RepositoryError` where they cannot be.

    `max_batch_size` is that of all; `options` are the embedded one's, and None keeps those that were tuned.
    """
    version_dir = model_dir / str(manifest.spec.version)
    made = prepared_configs(model_dir, version_dir, manifest, max_batch_size=max_batch_size, options=options)
    with writing(model_dir), made as switch:
        switch()


@contextlib.contextmanager
def prepared_configs(
    model_dir: Path,
    version_dir: Path,
    manifest: Manifest,
    *,
    max_batch_size: int,
    options: ServingOptions | None = None,
) -> Iterator[Callable[[], None]]:
    """Write the configurations under other names, where a full disk does no harm; the result moves them in.

    Production runs the plan where `version_dir` has one. The other arguments are those of `refresh_configs`.
    """
    spec, options = manifest.spec, options or _options_in(model_dir)
    backend = "tensorrt" if (version_dir / PRODUCTION_BACKENDS["tensorrt"]).is_file() else "onnxruntime"
    precision = served_precision(manifest, backend)
    production = production_config(spec, max_batch_size=max_batch_size, backend=backend, precision=precision)
    embedded = embedded_config(spec, max_batch_size=max_batch_size, options=options, forms=manifest.served_forms)
    without_gpu = cpu_config(spec, max_batch_size=max_batch_size, forms=manifest.served_forms)
    (model_dir / EMBEDDED_CONFIG_NAME).parent.mkdir(parents=True, exist_ok=True)
    with (
        prepared(model_dir / CONFIG_NAME, production) as switch_production,
        prepared(model_dir / EMBEDDED_CONFIG_NAME, embedded) as switch_embedded,
        prepared(model_dir / CPU_CONFIG_NAME, without_gpu) as switch_without_gpu,
    ):

        def switch() -> None:
            switch_production()
            switch_embedded()
            switch_without_gpu()

        yield switch


def current_batch_size(model_dir: Path, manifest: Manifest) -> int:
    """Return the batch size of the configuration that is there, but no more than was proved for the version."""
    proved = max(map(int, manifest.parity.get("batch_sizes") or ()), default=None)
    current = 0
    with contextlib.suppress(RepositoryError):
        current = int(read_config(model_dir / CONFIG_NAME).max_batch_size)
    if current < 1:
        return proved or PRODUCTION_MAX_BATCH_SIZE
    return min(current, proved or current)


def _options_in(model_dir: Path) -> ServingOptions:
    """Return the options that were tuned for a model, or the defaults, which also replace damaged ones."""
    with contextlib.suppress(RepositoryError):
        return tuned_options(read_config(model_dir / EMBEDDED_CONFIG_NAME)) or ServingOptions()
    return ServingOptions()
