"""Triton's `config.pbtxt`, generated from a `ModelSpec`: for production, for production without a GPU, and embedded.

They are built as NVIDIA's own protobuf and differ only in backend, batch size and instances; a client cannot
distinguish the servers. This module never reads a model file or inspects the machine: what depends on the
machine is set by whoever starts the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME, ModelSpec
from deepfake_preprocess.contract.version_files import MODEL_FILE, PLAN_FILE
from deepfake_preprocess.errors import OptionError, RepositoryError

CONFIG_NAME = "config.pbtxt"
"""The production configuration, in the model's directory."""
EMBEDDED_CONFIG_NAME = "configs/embedded.pbtxt"
"""The embedded variant; Triton selects it by its option ``model-config-name``."""

CPU_CONFIG_NAME = "configs/cpu.pbtxt"
"""For NVIDIA's container on a host without a GPU, selected by the same option."""

PRODUCTION_BACKENDS = {"onnxruntime": MODEL_FILE, "tensorrt": PLAN_FILE}
"""Backends of NVIDIA's container that we write configurations for, and the file each one loads."""
EMBEDDED_BACKEND = "deepfake_cpu"
"""Our Python-based backend, which runs an engine inside the embedded server (see `deepfake_serve._backend`)."""

PRODUCTION_MAX_BATCH_SIZE = 32
"""A GPU's throughput on 224 px classifiers hardly grows beyond it, and 32 crops are 4.8 MB on the wire."""
EMBEDDED_MAX_BATCH_SIZE = 8
"""So many crops of several requests are run together on CPU cores: 8 was the fastest, and halves the wait. Larger
batches gain nothing and exceed the cache. A single request may hold as many as in production."""

PRODUCTION_QUEUE_DELAY_US = 2_000
"""How long a crop may wait for others. Crops of a video arrive together, so batches fill well before this; a lone
crop waits at most 2 ms, about one GPU execution."""

QUEUE_FULL_BATCHES = 32
"""The queue holds this many full batches of single-crop requests; one more is refused with UNAVAILABLE at once.
Without a bound, a server that falls behind grows until it is killed, and every answer comes too late."""
QUEUE_TIMEOUT_US = 10_000_000
"""A request that waited this long in the queue is refused instead of run: its caller has most likely given up."""
EMBEDDED_QUEUE_TIMEOUT_US = 60_000_000
"""The same on a CPU: a transformer computes a crop per second and core, and those of a video wait for each other."""

BULK_PRIORITY = 2
"""Level of requests that nobody waits for (bulk scans). Others are of level 1, which is served first."""
BULK_QUEUE_TIMEOUT_US = 120_000_000
"""Requests of bulk scans wait longer, since others go first."""

MIN_INSTANCES = 2
"""The copies of one batch overlap with the computation of the other. Besides, where a queue has priorities or bounds,
Triton (2.51) overlooks requests that come while the only instance computes, for half a second."""
EMBEDDED_THREADS = 1
"""Threads of each instance; `deepfake serve` replaces this, and the instances, with what fits."""

THREADS_PARAMETER = "intra_op_thread_count"
"""Threads of one instance; the same key as in Triton's own onnxruntime backend."""

CORES_PARAMETER = "tuned_for_cores"
"""In an embedded configuration that was tuned (`deepfake tune`): the number of cores of that machine. Tuned
options are kept when the configuration is rewritten."""

LONE_THREADS_PARAMETER = "lone_intra_op_thread_count"
"""Threads of a batch that is not full while no other instance runs; by default as for any other."""

PRECISION_PARAMETER = "served_precision"
"""What the backend computes in: ``fp32``, ``fp16``, ``bf16`` or ``int8``; it decides how far scores may
differ. It is not part of the contract and its prefix, because one version may be served in two precisions."""


ENGINE_PARAMETER = "engine"
"""In an embedded configuration: which of the version's forms is run, together with the precision."""


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """How the embedded server batches and runs a model."""

    max_batch_size: int = EMBEDDED_MAX_BATCH_SIZE  # largest that the server forms of several requests
    # How long a crop may wait for others: not at all on a CPU, where it costs as much in a batch as alone.
    queue_delay_us: int = 0
    preferred_batch_size: int | None = None  # size at which a batch is run at once; None runs whatever waits
    # Two of one thread use two cores better than one of two threads (160 against 136 crops/s, EfficientNet-B0).
    instances: int = MIN_INSTANCES
    threads: int = EMBEDDED_THREADS
    tuned_for_cores: int | None = None  # number of cores that these were tuned for; None for defaults
    # Which of the version's forms is run; empty for the first one.
    engine: str = ""
    precision: str = ""

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "instances", "threads"):
            if (value := getattr(self, name)) < 1:
                raise OptionError(f"{name} is {value}; allowed: a whole number from 1")
        if self.queue_delay_us < 0:
            raise OptionError(f"queue_delay_us is {self.queue_delay_us}; allowed: from 0")
        if self.preferred_batch_size is not None and not 1 <= self.preferred_batch_size <= self.max_batch_size:
            raise OptionError(
                f"preferred_batch_size is {self.preferred_batch_size}; allowed: 1 to max_batch_size, here "
                f"{self.max_batch_size}"
            )

    def form_of(self, forms: Sequence[ServedForm]) -> ServedForm:
        """Return the form that is run of those that a version has."""
        named = [item for item in forms if (item.engine, item.precision) == (self.engine, self.precision)]
        return (*named, *forms)[0]


_HEADER = (
    "# Written by deepfake_preprocess (contract.triton_config) from the model's spec; change that, not this file.\n"
)


def production_config(
    spec: ModelSpec,
    *,
    precision: str,
    max_batch_size: int = PRODUCTION_MAX_BATCH_SIZE,
    backend: str = "onnxruntime",
) -> str:
    """Return the text of ``config.pbtxt`` for NVIDIA's Triton container, with one of `PRODUCTION_BACKENDS`."""
    if backend not in PRODUCTION_BACKENDS:
        raise OptionError(f"backend is {backend!r}; allowed: {', '.join(PRODUCTION_BACKENDS)}")
    config = _base_config(spec, max_batch_size, precision, queue_delay_us=PRODUCTION_QUEUE_DELAY_US)
    config.backend = backend
    config.default_model_filename = PRODUCTION_BACKENDS[backend]
    group = config.instance_group.add(count=MIN_INSTANCES)
    # With AUTO the same file works on hosts with and without a GPU.
    group.kind = type(group).KIND_GPU if backend == "tensorrt" else type(group).KIND_AUTO
    _add_warm_up(config)
    return config_to_text(config)


def cpu_form(forms: Sequence[ServedForm]) -> ServedForm:
    """Return the form that NVIDIA's container runs without a GPU: the promoted one, where a backend computes alike.

    Its OpenVINO backend can be told to compute in BF16, and not to keep FP32 on a CPU that has BF16. Whether it keeps
    what is to stay in FP32 of a file that is BF16 in part was not measured.
    """

    def is_alike(form: ServedForm) -> bool:
        return form.engine == "onnxruntime" or (form.precision == "bf16" and Path(form.file).suffix == ".onnx")

    return next(filter(is_alike, forms), forms[-1])


def cpu_config(
    spec: ModelSpec, *, forms: Sequence[ServedForm], max_batch_size: int = PRODUCTION_MAX_BATCH_SIZE
) -> str:
    """Return the text of ``configs/cpu.pbtxt`` for NVIDIA's container on a host without a GPU.

    Parameters of its OpenVINO backend are described in https://github.com/triton-inference-server/openvino_backend.
    """
    form = cpu_form(forms)
    on_openvino = form.engine == "openvino"
    if on_openvino:
        # That backend computes batches of the largest size only, and fills up smaller ones.
        max_batch_size = min(max_batch_size, EMBEDDED_MAX_BATCH_SIZE)
    delay_us = PRODUCTION_QUEUE_DELAY_US if on_openvino else 0
    config = _base_config(spec, max_batch_size, form.precision, queue_delay_us=delay_us)
    config.backend, config.default_model_filename = form.engine, form.file
    group = config.instance_group.add(count=MIN_INSTANCES)
    group.kind = type(group).KIND_CPU
    if on_openvino:
        parameters = {"HINT_BF16": "YES", "ENABLE_BATCH_PADDING": "YES", "NUM_STREAMS": str(group.count)}
        for key, value in parameters.items():
            config.parameters[key].string_value = value
    _add_warm_up(config)
    return config_to_text(config)


def embedded_config(
    spec: ModelSpec,
    *,
    forms: Sequence[ServedForm],
    max_batch_size: int = PRODUCTION_MAX_BATCH_SIZE,
    options: ServingOptions | None = None,
) -> str:
    """Return the text of ``configs/embedded.pbtxt`` for the Triton that `deepfake serve` starts.

    `max_batch_size` bounds a request, as in production; `options` what is made of several requests, and which of
    the version's `forms` is run.
    """
    options = options or ServingOptions()
    form = options.form_of(forms)
    config = _base_config(spec, max_batch_size, form.precision, queue_delay_us=options.queue_delay_us)
    config.backend = EMBEDDED_BACKEND
    set_form(config, form)
    batching = config.dynamic_batching
    # Triton joins requests up to the largest preferred size, and at once where it need not wait for more.
    sizes = {options.preferred_batch_size or options.max_batch_size, options.max_batch_size}
    batching.preferred_batch_size.extend(sorted({min(size, max_batch_size) for size in sizes}))
    largest = max(batching.preferred_batch_size)
    if options.tuned_for_cores is not None:
        config.parameters[CORES_PARAMETER].string_value = str(options.tuned_for_cores)
        # Small batches must not shorten the queue: clients keep the same number of requests in flight.
        largest = max(largest, EMBEDDED_MAX_BATCH_SIZE)
    for policy in (batching.default_queue_policy, batching.priority_queue_policy[BULK_PRIORITY]):
        policy.max_queue_size = QUEUE_FULL_BATCHES * largest
    batching.default_queue_policy.default_timeout_microseconds = EMBEDDED_QUEUE_TIMEOUT_US
    set_cpu_share(config, instances=options.instances, threads=options.threads)
    return config_to_text(config)


def tuned_options(config: Any) -> ServingOptions | None:
    """Return the tuned options in an embedded ``ModelConfig``; None where it holds defaults."""
    parameters = config_parameters(config)
    if CORES_PARAMETER not in parameters:
        return None
    try:
        (group,) = config.instance_group
        return ServingOptions(
            *batching_options(config),
            instances=group.count,
            threads=int(parameters[THREADS_PARAMETER]),
            tuned_for_cores=int(parameters[CORES_PARAMETER]),
            engine=parameters[ENGINE_PARAMETER],
            precision=parameters[PRECISION_PARAMETER],
        )
    except (ValueError, KeyError) as exc:
        raise RepositoryError(
            f"the tuned options of model {config.name!r} are damaged ({exc}); run `deepfake tune` again, or "
            f"remove the parameter {CORES_PARAMETER}"
        ) from exc


def batching_options(config: Any) -> tuple[int, int, int | None]:
    """Return from an embedded ``ModelConfig`` the first three of `ServingOptions`."""
    sizes = sorted(config.dynamic_batching.preferred_batch_size)
    largest = sizes[-1] if sizes else int(config.max_batch_size)
    delay_us = int(config.dynamic_batching.max_queue_delay_microseconds)
    return largest, delay_us, sizes[0] if len(sizes) > 1 else None


def config_to_text(config: Any) -> str:
    """Return a ``ModelConfig`` message as the text of a ``config.pbtxt``, the same for the same message."""
    from google.protobuf import text_format

    return _HEADER + str(text_format.MessageToString(config, as_utf8=True))


def read_config(path: Path) -> Any:
    """Read a ``config.pbtxt`` and return it as a ``ModelConfig`` message; `RepositoryError` where that fails."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), _protobuf().ModelConfig())
    except FileNotFoundError:
        raise RepositoryError(f"{path}: there is no such configuration; `deepfake export` writes it") from None
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise RepositoryError(
            f"{path}: this is not a Triton model configuration ({' '.join(str(exc).split())}); export the model again"
        ) from exc


def contract_config(spec: ModelSpec) -> Any:
    """Return a ``ModelConfig`` message with only what the contract fixes: name, tensors and `deepfake.*`."""
    pb = _protobuf()
    config = pb.ModelConfig(name=spec.name)
    config.input.add(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=[spec.input_height_px, spec.input_width_px, 3])
    for name in (PROBABILITY_NAME, LOGIT_NAME):
        config.output.add(name=name, data_type=pb.TYPE_FP32, dims=[1])
    for key, value in spec.to_parameters().items():
        config.parameters[key].string_value = value
    return config


def config_parameters(config: Any) -> dict[str, str]:
    """Return the `parameters` of a ``ModelConfig`` message as text by key."""
    return {key: value.string_value for key, value in config.parameters.items()}


def set_cpu_share(config: Any, *, instances: int, threads: int, lone_threads: int | None = None) -> None:
    """Set in an embedded ``ModelConfig`` how many instances run and how many threads each one gets.

    `lone_threads` are those of an instance that runs while the others are idle; as many as `threads` when None.
    """
    del config.instance_group[:]
    group = config.instance_group.add()
    group.kind, group.count = type(group).KIND_CPU, instances
    config.parameters[THREADS_PARAMETER].string_value = str(threads)
    if lone_threads is not None:
        config.parameters[LONE_THREADS_PARAMETER].string_value = str(lone_threads)


def remove_queue_bounds(config: Any) -> None:
    """Let a model's queue hold any number of requests for any time, with one priority; see `MIN_INSTANCES`."""
    batching = config.dynamic_batching
    for field in ("priority_levels", "default_priority_level", "default_queue_policy", "priority_queue_policy"):
        batching.ClearField(field)


def set_form(config: Any, form: ServedForm) -> None:
    """Set in an embedded ``ModelConfig`` which form of the version is run."""
    config.default_model_filename = form.file
    config.parameters[ENGINE_PARAMETER].string_value = form.engine
    config.parameters[PRECISION_PARAMETER].string_value = form.precision


def _base_config(spec: ModelSpec, max_batch_size: int, precision: str, *, queue_delay_us: int) -> Any:
    if max_batch_size < 1:
        raise OptionError(f"max_batch_size is {max_batch_size}; allowed: a whole number from 1")
    config = contract_config(spec)
    config.parameters[PRECISION_PARAMETER].string_value = precision
    config.max_batch_size = max_batch_size
    # The parameters describe one version, so exactly that one is served. By number, not `latest`: a version that
    # has just been moved in must not be loaded with the parameters of another, and a rollback changes the same file.
    config.version_policy.specific.versions.append(spec.version)

    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = queue_delay_us
    policy = batching.default_queue_policy
    policy.max_queue_size = QUEUE_FULL_BATCHES * max_batch_size
    policy.default_timeout_microseconds = QUEUE_TIMEOUT_US
    policy.timeout_action = type(policy).REJECT
    # A client can set a shorter deadline per request; a longer one is not granted.
    policy.allow_timeout_override = True
    # Two levels, each with a queue of its own: a bulk scan neither delays other callers nor fills their queue.
    batching.priority_levels, batching.default_priority_level = BULK_PRIORITY, 1
    bulk = batching.priority_queue_policy[BULK_PRIORITY]
    bulk.CopyFrom(policy)
    bulk.default_timeout_microseconds = BULK_QUEUE_TIMEOUT_US
    # Explicit rather than by default: no two crops of a video are equal, so a cache would only cost memory.
    config.response_cache.enable = False
    return config


def _add_warm_up(config: Any) -> None:
    # The first execution of each batch size allocates memory and selects kernels (seconds on a GPU). Warm-up runs
    # before the server is ready.
    for batch_size in sorted({1, int(config.max_batch_size)}):
        faces = config.model_warmup.add(name=f"batch_{batch_size}", batch_size=batch_size).inputs[INPUT_NAME]
        faces.data_type, faces.zero_data = config.input[0].data_type, True
        faces.dims.extend(config.input[0].dims)


def _protobuf() -> Any:
    # Imported here: the package imports gRPC (0.6 s), which users of the other modules never need.
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2
