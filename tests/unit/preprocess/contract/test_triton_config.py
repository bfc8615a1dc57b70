"""The generated Triton configurations say what the model contract says."""

from functools import partial

import pytest

from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.config_check import contract_problems, production_problems
from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.manifest import EngineInfo, Manifest
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import ServingOptions
from deepfake_preprocess.errors import OptionError, RepositoryError

SPEC = ModelSpec(
    name="detector",
    architecture="timm:efficientnet_b0",
    version=3,
    input_height_px=128,
    input_width_px=96,
    threshold=0.37,
    checkpoint_sha256="ab" * 32,
    training_data='Größe 12, "quoted"\nand a second line',
)


production_config = partial(triton_config.production_config, SPEC, precision="fp32")
FORMS = (ServedForm("onnxruntime", "fp32", "model.onnx"),)
embedded_config = partial(triton_config.embedded_config, SPEC, forms=FORMS)


def parsed(text, tmp_path):
    path = tmp_path / "config.pbtxt"
    path.write_text(text, encoding="utf-8")
    return triton_config.read_config(path)


def name_of(config):
    is_embedded = config.backend == triton_config.EMBEDDED_BACKEND
    return triton_config.EMBEDDED_CONFIG_NAME if is_embedded else triton_config.CONFIG_NAME


@pytest.fixture(
    params=[
        production_config(),
        production_config(backend="tensorrt"),
        embedded_config(),
    ],
    ids=["onnxruntime", "tensorrt", "embedded"],
)
def config(request, tmp_path):
    return parsed(request.param, tmp_path)


def test_every_variant_has_the_same_tensors(config):
    assert config.name == "detector"
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("faces", 2, [128, 96, 3])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [
        ("fake_probability", 11, [1]),
        ("logit", 11, [1]),
    ]


def test_the_spec_reads_back_from_the_parameters(config):
    assert ModelSpec.from_parameters(triton_config.config_parameters(config)) == SPEC


def test_the_queue_is_bounded_and_refuses(config):
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size >= config.max_batch_size
    assert policy.default_timeout_microseconds > 0
    assert policy.timeout_action == type(policy).REJECT
    # A video's crops wait for each other where a network computes one or two per second.
    is_patient = policy.default_timeout_microseconds == triton_config.EMBEDDED_QUEUE_TIMEOUT_US
    assert is_patient is (config.backend == triton_config.EMBEDDED_BACKEND)


def test_bulk_requests_have_a_queue_of_their_own_that_is_served_last(config):
    batching = config.dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (triton_config.BULK_PRIORITY, 1)
    policy, bulk = batching.default_queue_policy, batching.priority_queue_policy[triton_config.BULK_PRIORITY]
    assert bulk.max_queue_size == policy.max_queue_size
    assert bulk.default_timeout_microseconds > policy.default_timeout_microseconds


def test_exactly_the_described_version_is_served_and_nothing_is_cached(config):
    assert list(config.version_policy.specific.versions) == [SPEC.version]
    assert config.HasField("response_cache")
    assert not config.response_cache.enable


def test_single_crops_are_batched_without_waiting_for_a_preferred_size(config):
    on_cpu = config.backend == triton_config.EMBEDDED_BACKEND
    assert (config.dynamic_batching.max_queue_delay_microseconds == 0) is on_cpu
    assert config.HasField("dynamic_batching")
    # Without a delay, a preferred size is a bound and nothing that is waited for.
    assert list(config.dynamic_batching.preferred_batch_size) == ([8] if on_cpu else [])


def test_the_precision_is_that_of_the_file_that_a_backend_serves(tmp_path):
    engine = EngineInfo("tensorrt", "11.4.0", "8.9", "13.0", "fp16", 1, 8, 8, 1, 1, 1.0, plan="model.plan")
    manifest = Manifest(SPEC, {}, precision="int8", engine=engine)
    texts = {
        "int8": triton_config.production_config(SPEC, precision="int8"),
        "fp16": triton_config.production_config(SPEC, backend="tensorrt", precision="fp16"),
    }
    for precision, text in texts.items():
        config = parsed(text, tmp_path)
        assert triton_config.config_parameters(config)[triton_config.PRECISION_PARAMETER] == precision
        assert contract_problems(config, manifest, config_name=triton_config.CONFIG_NAME) == []
    config = parsed(triton_config.production_config(SPEC, precision="fp16"), tmp_path)
    (problem,) = contract_problems(config, manifest, config_name=triton_config.CONFIG_NAME)
    assert problem == "parameter 'served_precision' is 'fp16', but 'int8' is served"


def test_the_embedded_server_runs_a_form_that_was_proved(tmp_path):
    forms = (
        ServedForm("openvino", "bf16", "model.onnx", ("avx512_bf16",)),
        ServedForm("onnxruntime", "fp32", "model.onnx"),
    )
    manifest = Manifest(SPEC, {}, "fp32", forms=forms)
    for options, expected in (
        (ServingOptions(), ("openvino", "bf16")),
        (ServingOptions(engine="onnxruntime", precision="fp32"), ("onnxruntime", "fp32")),
        (ServingOptions(engine="openvino", precision="int8"), ("openvino", "bf16")),
    ):
        config = parsed(embedded_config(forms=forms, options=options), tmp_path)
        parameters = triton_config.config_parameters(config)
        assert (parameters["engine"], parameters["served_precision"]) == expected
        assert contract_problems(config, manifest, config_name=triton_config.EMBEDDED_CONFIG_NAME) == []
    config.parameters["engine"].string_value = "onnxruntime"
    (problem,) = contract_problems(config, manifest, config_name=triton_config.EMBEDDED_CONFIG_NAME)
    assert "with engine 'onnxruntime' and served_precision 'bf16', but version 3 was proved for" in problem


def test_without_a_gpu_nvidias_container_runs_what_its_backends_compute_alike(tmp_path):
    fp32 = ServedForm("onnxruntime", "fp32", "fp32.onnx")
    bf16 = ServedForm("openvino", "bf16", "model.onnx", ("avx512_bf16",))
    int8 = ServedForm("openvino", "int8", "model.onnx")
    in_part = ServedForm("openvino", "bf16", "bf16.xml", ("avx512_bf16",))
    for promoted, run, batch_size in ((bf16, bf16, 8), (in_part, fp32, 32), (int8, fp32, 32), (fp32, fp32, 32)):
        forms = (promoted, fp32)
        config = parsed(triton_config.cpu_config(SPEC, forms=forms), tmp_path)
        parameters = triton_config.config_parameters(config)
        found = config.backend, parameters[triton_config.PRECISION_PARAMETER], config.default_model_filename
        assert found == (run.engine, run.precision, run.file)
        assert (parameters.get("HINT_BF16"), config.max_batch_size) == ("YES" if run is bf16 else None, batch_size)
        # That backend refuses a batch that is not full unless it may fill it up.
        assert parameters.get("ENABLE_BATCH_PADDING") == parameters.get("HINT_BF16")
        assert [group.kind for group in config.instance_group] == [config.instance_group[0].KIND_CPU]
        manifest = Manifest(SPEC, {}, "fp32", forms=forms)
        assert contract_problems(config, manifest, config_name=triton_config.CPU_CONFIG_NAME) == []
        assert production_problems(config) == []
    config.backend = "openvino"
    (problem,) = contract_problems(config, manifest, config_name=triton_config.CPU_CONFIG_NAME)
    assert "with engine 'openvino' and served_precision 'fp32', but version 3 was proved for" in problem


def test_every_variant_has_what_production_needs(config):
    assert production_problems(config) == []
    manifest, names = Manifest(SPEC, {}, "fp32"), {triton_config.CONFIG_NAME, triton_config.EMBEDDED_CONFIG_NAME}
    assert contract_problems(config, manifest, config_name=name_of(config)) == []
    (problem,) = contract_problems(config, manifest, config_name=(names - {name_of(config)}).pop())
    assert "belongs in another configuration" in problem


@pytest.mark.parametrize(
    ("backend", "kind", "count"),
    [("onnxruntime", "KIND_AUTO", 2), ("tensorrt", "KIND_GPU", 2)],
)
def test_production_states_where_instances_run(tmp_path, backend, kind, count):
    (group,) = parsed(production_config(backend=backend), tmp_path).instance_group
    assert (group.Kind.Name(group.kind), group.count) == (kind, count)


def no_batching(config):
    config.ClearField("dynamic_batching")


def no_bound(config):
    config.dynamic_batching.default_queue_policy.max_queue_size = 0


def no_timeout(config):
    config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 0


def delay_on_timeout(config):
    policy = config.dynamic_batching.default_queue_policy
    policy.timeout_action = type(policy).DELAY


def no_instances(config):
    del config.instance_group[:]


def cached(config):
    config.response_cache.enable = True


def foreign_backend(config):
    config.backend = "pytorch"


def no_file(config):
    config.default_model_filename = ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (no_batching, "dynamic_batching is off"),
        (no_bound, "unbounded"),
        (no_timeout, "forever"),
        (delay_on_timeout, "forever"),
        (no_instances, "instance_group"),
        (cached, "cache is on"),
        (foreign_backend, "'pytorch'"),
        (no_file, "default_model_filename"),
    ],
)
def test_a_configuration_that_lacks_something_is_told(config, change, named):
    change(config)
    (problem,) = production_problems(config)
    assert named in problem


def test_a_warm_up_that_does_not_fit_is_told(tmp_path):
    config = parsed(production_config(), tmp_path)
    config.max_batch_size = 4
    config.model_warmup[0].inputs["faces"].dims[0] = 7
    assert production_problems(config) == [
        "warm-up 'batch_1' does not send the input that the model takes",
        "warm-up 'batch_32' is larger than max_batch_size 4",
    ]


def test_production_warms_up_the_smallest_and_the_largest_batch(tmp_path):
    config = parsed(production_config(max_batch_size=16), tmp_path)
    assert [w.batch_size for w in config.model_warmup] == [1, 16]
    assert list(config.model_warmup[0].inputs["faces"].dims) == [128, 96, 3]


@pytest.mark.parametrize(("backend", "filename"), [("onnxruntime", "model.onnx"), ("tensorrt", "model.plan")])
def test_each_backend_loads_its_own_file(tmp_path, backend, filename):
    config = parsed(production_config(backend=backend), tmp_path)
    assert (config.backend, config.default_model_filename) == (backend, filename)


def test_embedded_states_instances_and_threads(tmp_path):
    config = parsed(
        embedded_config(options=ServingOptions(instances=3, threads=4)),
        tmp_path,
    )
    assert (config.instance_group[0].count, config.instance_group[0].Kind.Name(config.instance_group[0].kind)) == (
        3,
        "KIND_CPU",
    )
    assert triton_config.config_parameters(config)[triton_config.THREADS_PARAMETER] == "4"


def test_both_servers_take_the_same_requests_and_the_embedded_one_forms_no_larger_batches(tmp_path):
    for largest, formed in ((32, [8]), (4, [4])):
        texts = [write(max_batch_size=largest) for write in (production_config, embedded_config)]
        configs = [parsed(text, tmp_path) for text in texts]
        assert [config.max_batch_size for config in configs] == [largest, largest]
        assert list(configs[1].dynamic_batching.preferred_batch_size) == formed


def test_tuned_options_read_back_and_defaults_are_not_tuned(tmp_path):
    options = ServingOptions(
        4, 250, 2, instances=3, threads=2, tuned_for_cores=6, engine="onnxruntime", precision="fp32"
    )
    config = parsed(embedded_config(options=options), tmp_path)
    assert triton_config.tuned_options(config) == options
    assert (
        production_problems(config)
        == contract_problems(config, Manifest(SPEC, {}, "fp32"), config_name=triton_config.EMBEDDED_CONFIG_NAME)
        == []
    )
    # A video's requests in flight must fit the queue, however small the batches are.
    default = parsed(embedded_config(), tmp_path)
    queues = [item.dynamic_batching.default_queue_policy.max_queue_size for item in (config, default)]
    assert queues[0] == queues[1]
    assert triton_config.tuned_options(default) is None


def test_damaged_tuned_options_are_named(tmp_path):
    options = ServingOptions(tuned_for_cores=2)
    config = parsed(embedded_config(options=options), tmp_path)
    config.parameters[triton_config.CORES_PARAMETER].string_value = "two"
    with pytest.raises(RepositoryError, match="deepfake tune"):
        triton_config.tuned_options(config)


def test_the_text_is_the_same_each_time():
    assert production_config() == production_config()


@pytest.mark.parametrize(
    "call",
    [
        lambda: production_config(backend="openvino"),
        lambda: production_config(max_batch_size=0),
        lambda: ServingOptions(instances=0),
        lambda: ServingOptions(threads=-1),
        lambda: ServingOptions(max_batch_size=0),
        lambda: ServingOptions(queue_delay_us=-1),
        lambda: ServingOptions(max_batch_size=4, preferred_batch_size=8),
    ],
)
def test_wrong_options_are_refused(call):
    with pytest.raises(OptionError, match="allowed"):
        call()


@pytest.mark.parametrize("content", [b"max_batch_sise: 8", b"\xff\xfe", None])
def test_a_damaged_or_missing_file_is_named(tmp_path, content):
    path = tmp_path / "config.pbtxt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RepositoryError, match=r"config\.pbtxt: .*export"):
        triton_config.read_config(path)
