"""Checks a Triton configuration: that it describes one version's spec, and that it is fit for production.

Batching, instances and warm-up may be tuned by hand; what the contract fixes may not. Problems are returned as a list
of short phrases: the server refuses with the first, and `deepfake repository verify` shows all.
"""

from __future__ import annotations

from typing import Any

from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.plan_info import served_precision
from deepfake_preprocess.contract.spec import INPUT_NAME, PARAMETER_PREFIX
from deepfake_preprocess.contract.triton_config import (
    CONFIG_NAME,
    EMBEDDED_BACKEND,
    EMBEDDED_CONFIG_NAME,
    ENGINE_PARAMETER,
    PRECISION_PARAMETER,
    PRODUCTION_BACKENDS,
    config_parameters,
    contract_config,
)


def contract_problems(config: Any, manifest: Manifest, *, config_name: str) -> list[str]:
    """Return where a ``ModelConfig`` message, of one of `CONFIG_NAMES`, differs from its version's manifest."""
    spec, embedded = manifest.spec, config_name == EMBEDDED_CONFIG_NAME
    problems = []
    if config.name != spec.name:
        problems.append(f"it configures {config.name!r}, expected {spec.name!r}")
    if (config.backend == EMBEDDED_BACKEND) != embedded:
        problems.append(f"it has the backend {config.backend!r}, which belongs in another configuration")
    reference = contract_config(spec)
    stated, expected = _contract_parameters(config), _contract_parameters(reference)
    problems += [
        f"parameter {key!r} is {stated.get(key)!r}, "
        f"but the manifest of version {spec.version} says {expected.get(key)!r}"
        for key in sorted({*stated, *expected})
        if stated.get(key) != expected.get(key)
    ]
    if _tensors(config) != _tensors(reference):
        problems.append("inputs or outputs are not those of the wire contract")
    if (config.backend == EMBEDDED_BACKEND) == embedded:
        by_plan = config_name == CONFIG_NAME
        problems += _precision_problems(config, manifest) if by_plan else _form_problems(config, manifest)
    if config.max_batch_size < 1:
        problems.append(f"max_batch_size is {config.max_batch_size}; allowed: from 1")
    return problems


def _precision_problems(config: Any, manifest: Manifest) -> list[str]:
    precision = served_precision(manifest, config.backend)
    if (named := config_parameters(config).get(PRECISION_PARAMETER)) == precision:
        return []
    return [f"parameter {PRECISION_PARAMETER!r} is {named!r}, but {precision!r} is served"]


def _form_problems(config: Any, manifest: Manifest) -> list[str]:
    """Return whether a configuration for CPUs names none of the version's forms."""
    parameters = config_parameters(config)
    parameters.setdefault(ENGINE_PARAMETER, config.backend)
    named = tuple(parameters.get(key) for key in (ENGINE_PARAMETER, PRECISION_PARAMETER))
    allowed = [(item.engine, item.precision, item.file) for item in manifest.served_forms]
    if (*named, config.default_model_filename or None) in allowed:
        return []
    return [
        f"it runs {config.default_model_filename!r} with {ENGINE_PARAMETER} {named[0]!r} and {PRECISION_PARAMETER} "
        f"{named[1]!r}, but version {manifest.spec.version} was proved for "
        + ", ".join(f"{file!r} with {engine!r} and {precision!r}" for engine, precision, file in allowed)
    ]


def production_problems(config: Any) -> list[str]:
    """Return what a ``ModelConfig`` message lacks that every generated one has, whatever the backend."""
    problems = []
    known = (EMBEDDED_BACKEND, "openvino", *PRODUCTION_BACKENDS)
    if config.backend and config.backend not in known:
        problems.append(f"backend is {config.backend!r}; known: {', '.join(known)}")
    if not config.default_model_filename and config.backend:
        problems.append("default_model_filename is not set, so the backend guesses")
    if not config.HasField("dynamic_batching"):
        problems.append("dynamic_batching is off, so single crops run one by one")
    else:
        policy = config.dynamic_batching.default_queue_policy
        if policy.max_queue_size < 1:
            problems.append("the queue is unbounded (max_queue_size is 0), so it grows until the server is killed")
        if policy.default_timeout_microseconds < 1 or policy.timeout_action != type(policy).REJECT:
            problems.append("requests wait in the queue forever (no timeout with the action REJECT)")
    if not config.instance_group:
        problems.append("instance_group is empty, so Triton guesses where the model runs")
    if config.response_cache.enable:
        problems.append("the response cache is on; no two crops are equal, so it only costs memory")
    for warmup in config.model_warmup:
        faces = warmup.inputs.get(INPUT_NAME)
        if faces is None or list(faces.dims) != list(config.input[0].dims if config.input else ()):
            problems.append(f"warm-up {warmup.name!r} does not send the input that the model takes")
        if warmup.batch_size > config.max_batch_size:
            problems.append(f"warm-up {warmup.name!r} is larger than max_batch_size {config.max_batch_size}")
    return problems


def _tensors(config: Any) -> list[tuple[str, int, list[int]]]:
    return [(item.name, item.data_type, list(item.dims)) for item in (*config.input, *config.output)]


def _contract_parameters(config: Any) -> dict[str, str]:
    return {key: value for key, value in config_parameters(config).items() if key.startswith(PARAMETER_PREFIX)}
