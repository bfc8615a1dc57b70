"""What may be served is decided before any server is started."""

import json

import pytest
from placeholder_models import SPEC, edit_config, write_configs_only, write_model

from deepfake_export.repository.listing import inspect_repository
from deepfake_preprocess.contract.repository import empty_models
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import RepositoryError
from deepfake_serve._repository import check_repository


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


def test_a_stray_folder_is_the_same_to_serving_and_to_verify(tmp_path):
    write_model(tmp_path / "repository")
    (tmp_path / "repository" / "notes").mkdir()
    assert [model.spec.name for model in check_repository(tmp_path / "repository")] == ["detector"]
    assert empty_models(tmp_path / "repository") == ["notes"]
    found = [item for model in inspect_repository(tmp_path / "repository") for item in model.all_problems]
    (problem,) = (item for item in found if item.file == "notes")
    assert "`deepfake serve` passes it over, but NVIDIA's container does not start with it" in problem.what
