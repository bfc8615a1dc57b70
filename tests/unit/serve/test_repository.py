"""What may be served is decided before any server is started."""

import dataclasses
import json
import os

import pytest

from deepfake_export.repository.configs import refresh_configs
from deepfake_export.repository.listing import inspect_repository
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.repository import empty_models
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError, RepositoryError
from deepfake_serve import _repository as repository
from deepfake_serve._repository import CpuShare, View, check_repository, cpu_share, model_share

SPEC = ModelSpec(name="detector", architecture="timm:efficientnet_b0")


def made_view(folder):
    (folder / "run").mkdir()
    return View(folder / "run")


FP32 = (ServedForm("onnxruntime", "fp32", "model.onnx"),)


def write_model(root, spec=SPEC, file_name="model.onnx"):
    version_dir = root / spec.name / str(spec.version)
    version_dir.mkdir(parents=True)
    (version_dir / file_name).write_bytes(b"weights")
    manifest = Manifest(spec, file_hashes(version_dir), "fp32")
    manifest.write(version_dir)
    refresh_configs(root / spec.name, manifest, max_batch_size=triton_config.PRODUCTION_MAX_BATCH_SIZE)
    return version_dir


def write_configs_only(root, name):
    manifest = Manifest(ModelSpec(name=name, architecture="torchscript"), {}, "fp32")
    refresh_configs(root / name, manifest, max_batch_size=triton_config.PRODUCTION_MAX_BATCH_SIZE)


def edit_config(root, change, name="detector"):
    path = root / name / triton_config.EMBEDDED_CONFIG_NAME
    config = triton_config.read_config(path)
    change(config)
    path.write_text(triton_config.config_to_text(config), encoding="utf-8")


def test_a_good_repository_is_accepted(tmp_path):
    version_dir = write_model(tmp_path)
    (model,) = check_repository(tmp_path)
    assert (model.spec, model.version_dir) == (SPEC, version_dir)
    assert model.config.name == "detector"


def test_batching_may_be_tuned_by_hand(tmp_path):
    write_model(tmp_path)

    def change(config):
        config.max_batch_size = 4
        config.dynamic_batching.max_queue_delay_microseconds = 7

    edit_config(tmp_path, change)
    (model,) = check_repository(tmp_path)
    assert model.config.max_batch_size == 4


def set_threshold(config):
    config.parameters["deepfake.threshold"].string_value = "0.9"


def drop_parameter(config):
    del config.parameters["deepfake.head.kind"]


def add_parameter(config):
    config.parameters["deepfake.extra"].string_value = "1"


def change_dims(config):
    config.input[0].dims[0] = 300


def drop_output(config):
    del config.output[1]


def rename(config):
    config.name = "other"


def other_backend(config):
    config.backend = "python"


def no_batching(config):
    config.max_batch_size = 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_threshold, r"'deepfake.threshold' is '0.9'.* says '0.5'"),
        (drop_parameter, r"'deepfake.head.kind' is None"),
        (add_parameter, r"'deepfake.extra' is '1'"),
        (change_dims, "inputs or outputs"),
        (drop_output, "inputs or outputs"),
        (rename, "'other'"),
        (other_backend, "'python'"),
        (no_batching, "max_batch_size is 0"),
    ],
)
def test_a_configuration_that_contradicts_the_manifest_is_refused(tmp_path, change, named):
    write_model(tmp_path)
    edit_config(tmp_path, change)
    with pytest.raises(RepositoryError, match=rf"detector/configs/embedded\.pbtxt.*{named}"):
        check_repository(tmp_path)


def test_a_missing_configuration_is_named(tmp_path):
    write_model(tmp_path)
    (tmp_path / "detector" / "configs" / "embedded.pbtxt").unlink()
    with pytest.raises(RepositoryError, match=r"embedded\.pbtxt: there is no such configuration"):
        check_repository(tmp_path)


def change_file(version_dir):
    (version_dir / "model.onnx").write_bytes(b"other")


def remove_file(version_dir):
    (version_dir / "model.onnx").unlink()


def add_file(version_dir):
    (version_dir / "extra.bin").write_bytes(b"")


def remove_manifest(version_dir):
    (version_dir / "manifest.json").unlink()


def copy_manifest(version_dir):
    path = version_dir / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))


def cut_manifest(version_dir):
    path = version_dir / "manifest.json"
    data = json.loads(path.read_text())
    del data["spec"]
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_file, "model.onnx has changed"),
        (remove_file, "model.onnx is missing"),
        (add_file, "extra.bin is not in the manifest"),
        (remove_manifest, "has no manifest.json"),
        (copy_manifest, "version 7: the folder was copied"),
        (cut_manifest, "manifest is damaged"),
    ],
)
def test_a_version_that_is_not_its_manifests_is_refused(tmp_path, change, named):
    change(write_model(tmp_path))
    with pytest.raises(RepositoryError, match=rf"detector/\d.*{named}"):
        check_repository(tmp_path)


def test_a_version_without_onnx_says_where_it_can_be_served(tmp_path):
    write_model(tmp_path, file_name="model.plan")
    with pytest.raises(RepositoryError, match=r"no model\.onnx.*docker compose"):
        check_repository(tmp_path)


def serve_version(version):
    def change(config):
        config.version_policy.specific.versions[:] = [version]

    return change


def test_the_version_that_the_configuration_names_is_served(tmp_path):
    for version in (3, 1, 2):
        write_model(tmp_path, ModelSpec(name="detector", architecture="torchscript", version=version))
    (model,) = check_repository(tmp_path)
    assert (model.version_dir.name, model.spec.version) == ("2", 2)


def test_a_version_that_is_moved_in_but_not_named_changes_nothing(tmp_path):
    write_model(tmp_path, ModelSpec(name="detector", architecture="torchscript", version=2))
    write_model(tmp_path)
    (tmp_path / "detector" / "2" / "model.onnx").write_bytes(b"half")
    (model,) = check_repository(tmp_path)
    assert model.spec.version == 1


def test_a_version_that_is_named_but_gone_is_told(tmp_path):
    write_model(tmp_path)
    edit_config(tmp_path, serve_version(5))
    with pytest.raises(
        RepositoryError, match=r"embedded\.pbtxt serves version 5, which is not there, only: 1; .*rollb"
    ):
        check_repository(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.version_policy.specific.versions.append(2),
        lambda config: config.version_policy.all.SetInParent(),
        lambda config: setattr(config.version_policy.latest, "num_versions", 2),
    ],
)
def test_several_versions_under_one_description_are_refused(tmp_path, change):
    for version in (1, 2):
        write_model(tmp_path, ModelSpec(name="detector", architecture="torchscript", version=version))
    edit_config(tmp_path, change)
    with pytest.raises(RepositoryError, match=r"embedded\.pbtxt serves .*one; .*rollback detector VERSION"):
        check_repository(tmp_path)


def latest(config):
    config.version_policy.latest.num_versions = 1


def no_policy(config):
    config.ClearField("version_policy")


@pytest.mark.parametrize("change", [latest, no_policy])
def test_a_policy_of_the_latest_is_read_as_triton_reads_it_and_other_folders_do_not_count(tmp_path, change):
    for version in (2, 10):
        write_model(tmp_path, ModelSpec(name="detector", architecture="torchscript", version=version))
    edit_config(tmp_path, change)
    for name in ("configs", "0", "007", ".hidden", "notes"):
        (tmp_path / "detector" / name).mkdir(exist_ok=True)
    (model,) = check_repository(tmp_path)
    assert model.version_dir.name == "10"


def test_configurations_without_weights_are_passed_over_unless_asked_for(tmp_path):
    write_model(tmp_path)
    write_configs_only(tmp_path, "other")
    assert [model.spec.name for model in check_repository(tmp_path)] == ["detector"]
    with pytest.raises(RepositoryError, match=r"other holds no version.*deepfake export"):
        check_repository(tmp_path, ["other"])


def test_a_repository_with_configurations_only_says_how_to_get_weights(tmp_path):
    write_configs_only(tmp_path, "other")
    with pytest.raises(RepositoryError, match=r"other holds no version.*deepfake export"):
        check_repository(tmp_path)


def test_chosen_models_only(tmp_path):
    write_model(tmp_path)
    write_model(tmp_path, ModelSpec(name="second", architecture="torchscript"))
    assert [model.spec.name for model in check_repository(tmp_path, ["second", "second"])] == ["second"]
    with pytest.raises(RepositoryError, match=r"no model 'third', only: detector, second"):
        check_repository(tmp_path, ["third"])


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_missing_empty_or_no_folder_says_what_to_do(tmp_path, make):
    make(tmp_path / "models")
    with pytest.raises(RepositoryError, match=r"models.*deepfake export"):
        check_repository(tmp_path / "models")


def test_the_view_links_the_version_and_leaves_the_repository_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "available_cores", lambda: 8)
    version_dir = write_model(tmp_path / "repository")
    before = {path: path.read_bytes() for path in (tmp_path / "repository").rglob("*") if path.is_file()}
    view = made_view(tmp_path)
    view.show(check_repository(tmp_path / "repository"), {"detector": CpuShare(3, 2)})
    config = triton_config.read_config(view.folder / "detector" / "config.pbtxt")
    assert config.instance_group[0].count == 3
    assert triton_config.config_parameters(config)["intra_op_thread_count"] == "2"
    assert triton_config.config_parameters(config)["lone_intra_op_thread_count"] == "4", "six, but not more than four"
    assert (view.folder / "detector" / "1").resolve() == version_dir
    after = {path: path.read_bytes() for path in (tmp_path / "repository").rglob("*") if path.is_file()}
    assert after == before


def test_what_is_shown_changes_as_a_whole_and_back(tmp_path):
    write_model(tmp_path / "repository")
    models, shares = check_repository(tmp_path / "repository"), {"detector": CpuShare(2, 1)}
    view = made_view(tmp_path)
    first = view.show(models, shares)
    version_dir = write_model(tmp_path / "repository", dataclasses.replace(SPEC, version=2))
    second = view.show(check_repository(tmp_path / "repository"), shares)
    assert first["detector"] != second["detector"]
    assert [path.resolve() for path in (view.folder / "detector").glob("[0-9]")] == [version_dir]
    mark = triton_config.config_parameters(triton_config.read_config(view.folder / "detector" / "config.pbtxt"))
    assert mark[repository.MARK_PARAMETER] == second["detector"]
    assert view.show(models, shares) == first, "known, so it is not made again"
    assert [path.name for path in (view.folder / "detector").glob("[0-9]")] == ["1"]
    assert view.show([], {}) == {}
    assert list(view.folder.iterdir()) == []


@pytest.mark.parametrize(("share", "largest_mb"), [(CpuShare(1, 2), 128), (CpuShare(3, 4), 128), (CpuShare(2, 1), 0)])
def test_no_second_session_for_large_models_or_where_it_has_no_more_threads(tmp_path, monkeypatch, share, largest_mb):
    monkeypatch.setattr(repository, "MAX_LONE_MODEL_MB", largest_mb)
    monkeypatch.setattr(repository, "available_cores", lambda: 4)
    write_model(tmp_path / "repository")
    view = made_view(tmp_path)
    view.show(check_repository(tmp_path / "repository"), {"detector": share})
    config = triton_config.read_config(view.folder / "detector" / "config.pbtxt")
    assert triton_config.LONE_THREADS_PARAMETER not in triton_config.config_parameters(config)


def test_weights_beside_the_file_count_for_the_size_of_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "MAX_LONE_MODEL_MB", 1)
    monkeypatch.setattr(repository, "available_cores", lambda: 2)
    version_dir = write_model(tmp_path / "repository")
    (model,) = check_repository(tmp_path / "repository")
    found = []
    for run, num_bytes in (("small", 2**19), ("large", 2**20)):
        (version_dir / "model.bin").write_bytes(bytes(num_bytes))
        (tmp_path / run).mkdir()
        view = repository.View(tmp_path / run)
        view.show([model], {"detector": CpuShare(2, 1)})
        config = triton_config.read_config(view.folder / "detector" / "config.pbtxt")
        found.append(triton_config.LONE_THREADS_PARAMETER in triton_config.config_parameters(config))
    assert found == [True, False]


@pytest.mark.parametrize(
    ("cores", "given", "expected"),
    [
        (1, {}, CpuShare(1, 1)),
        (2, {}, CpuShare(2, 1)),
        (16, {}, CpuShare(8, 2)),
        (2, {"instances": 1}, CpuShare(1, 2)),
        (8, {"threads": 4}, CpuShare(2, 4)),
        (2, {"threads": 4}, CpuShare(1, 4)),
        (2, {"instances": 3}, CpuShare(3, 1)),
        (2, {"instances": 3, "threads": 5}, CpuShare(3, 5)),
    ],
)
def test_instances_times_threads_is_the_number_of_cores(cores, given, expected):
    assert cpu_share(cores, **given) == expected


@pytest.mark.parametrize("given", [{"instances": 0}, {"threads": 0}, {"instances": -1}, {"threads": -2}])
def test_shares_below_one_are_refused(given):
    with pytest.raises(OptionError, match="allowed: a whole number from 1"):
        cpu_share(4, **given)


def test_available_cores_is_at_least_one_and_at_most_the_cpu_set(monkeypatch):
    monkeypatch.setattr(repository.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert 1 <= repository.available_cores() <= 4


def test_what_was_tuned_for_so_many_cores_is_used_unless_something_else_is_asked_for(tmp_path):
    write_model(tmp_path)
    options = triton_config.ServingOptions(instances=3, threads=2, tuned_for_cores=4)
    path = tmp_path / "detector" / triton_config.EMBEDDED_CONFIG_NAME
    path.write_text(triton_config.embedded_config(SPEC, forms=FP32, options=options), encoding="utf-8")
    (model,) = check_repository(tmp_path)
    assert model_share(model, 4) == CpuShare(3, 2)
    assert model_share(model, 8) == CpuShare(8, 1)
    assert model_share(model, 4, instances=1) == CpuShare(1, 4)
    edit_config(tmp_path, lambda config: config.parameters.pop(triton_config.CORES_PARAMETER))
    (model,) = check_repository(tmp_path)
    assert model_share(model, 4) == CpuShare(4, 1)


def test_a_stray_folder_is_the_same_to_serving_and_to_verify(tmp_path):
    write_model(tmp_path / "repository")
    (tmp_path / "repository" / "notes").mkdir()
    assert [model.spec.name for model in check_repository(tmp_path / "repository")] == ["detector"]
    assert empty_models(tmp_path / "repository") == ["notes"]
    found = [item for model in inspect_repository(tmp_path / "repository") for item in model.all_problems]
    (problem,) = (item for item in found if item.file == "notes")
    assert "`deepfake serve` passes it over, but NVIDIA's container does not start with it" in problem.what


@pytest.mark.parametrize(
    ("cores", "memory", "expected"),
    [
        (8, 16, CpuShare(8, 1)),
        (8, 15.9, CpuShare(4, 2)),  # seven fit, of which one core would be left over
        (8, 6.1, CpuShare(2, 4)),  # three fit
        (7, 6.1, CpuShare(1, 7)),
        (2, 3.9, CpuShare(1, 2)),
        (2, 0.1, CpuShare(1, 2)),
        (16, 100, CpuShare(8, 2)),
    ],
)
def test_instances_that_do_not_fit_into_half_of_the_memory_become_threads(
    tmp_path, monkeypatch, cores, memory, expected
):
    write_model(tmp_path)
    (model,) = check_repository(tmp_path)
    instance_bytes = repository.HELD_COPIES * repository.weight_bytes(model)
    monkeypatch.setattr(repository, "usable_memory", lambda: int(memory * instance_bytes) + 1)
    assert model_share(model, cores) == expected
    assert model_share(model, cores, instances=3) == cpu_share(cores, instances=3), "asked for is given"


def test_usable_memory_is_the_machines_or_what_a_cgroup_leaves(monkeypatch):
    machine = repository.usable_memory()
    assert 2**28 < machine < 2**50
    for text, expected in (("max\n", None), ("1048576\n", 2**20)):
        monkeypatch.setattr(repository.Path, "read_text", lambda path, text=text: text)
        known = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert repository.usable_memory() == (expected or known)
