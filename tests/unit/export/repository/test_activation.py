"""`deepfake repository rollback`, and options that were tuned, seen through the command and the library."""

from __future__ import annotations

import dataclasses

import pytest
from repository_command import add_plan, deepfake, edit_config, served_threshold
from repository_crashes import add_version

from deepfake_export.repository.activation import activate
from deepfake_export.repository.listing import inspect_repository
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.model_dir import versions_of
from deepfake_preprocess.errors import RepositoryError


def test_rollback_serves_the_version_before_and_deletes_nothing(capsys, root):
    code, out, _ = deepfake(capsys, "rollback", "tiny", "-r", root)
    assert code == 0
    assert "tiny serves version 2 now, before: 3." in out
    assert "start it again" in out
    assert versions_of(root / "tiny") == [1, 2, 3]
    for name in ("config.pbtxt", "configs/embedded.pbtxt"):
        config = triton_config.read_config(root / "tiny" / name)
        assert list(config.version_policy.specific.versions) == [2]
        assert triton_config.config_parameters(config)["deepfake.threshold"] == "0.6"
        assert config.max_batch_size == 4
    assert served_threshold(root) == (2, 0.6)
    assert deepfake(capsys, "verify", "-r", root)[0] == 0
    assert activate(root, "tiny").served == 1
    with pytest.raises(RepositoryError, match="no version before the served 1, only: 1, 2, 3"):
        activate(root, "tiny")


def test_rollback_to_a_named_version_and_forward_again(root):
    assert activate(root, "tiny", 1).before == 3
    assert served_threshold(root) == (1, 0.5)
    assert activate(root, "tiny", 3).before == 1
    assert served_threshold(root) == (3, 0.7)
    with pytest.raises(RepositoryError, match="no version 8, only: 1, 2, 3"):
        activate(root, "tiny", 8)


def test_the_next_export_after_a_rollback_is_served(root):
    activate(root, "tiny", 1)
    add_version(root, 0.8)
    assert served_threshold(root) == (4, 0.8)


def test_rollback_to_a_damaged_version_is_refused_and_changes_nothing(root):
    change = root / "tiny/2/model.onnx"
    change.write_bytes(b"half")
    with pytest.raises(
        RepositoryError, match=r"version 2 .*tiny/2/model.onnx has changed; serve another one \(1, 3\), or export"
    ):
        activate(root, "tiny")
    assert served_threshold(root) == (3, 0.7)


def test_rollback_does_not_configure_larger_batches_than_were_proved(root):
    manifest = Manifest.read(root / "tiny/2")
    dataclasses.replace(manifest, parity={"batch_sizes": [1, 2]}).write(root / "tiny/2")
    activate(root, "tiny")
    assert triton_config.read_config(root / "tiny/config.pbtxt").max_batch_size == 2


def test_rollback_to_a_version_with_a_plan_configures_tensorrt(root):
    add_plan(root, 2)
    activate(root, "tiny")
    config = triton_config.read_config(root / "tiny/config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert inspect_repository(root)[0].all_problems == ()
    activate(root, "tiny", 3)
    assert triton_config.read_config(root / "tiny/config.pbtxt").backend == "onnxruntime"


def tuned(root):
    return triton_config.tuned_options(triton_config.read_config(root / "tiny/configs/embedded.pbtxt"))


def test_tuned_options_outlive_exports_and_rollbacks_and_verify(capsys, root):
    options = triton_config.ServingOptions(4, 300, 2, instances=3, threads=1, tuned_for_cores=2)
    activate(root, "tiny", 3, options=options)
    options = dataclasses.replace(options, engine="onnxruntime", precision="fp32")  # the first form of the version
    assert tuned(root) == options
    assert triton_config.read_config(root / "tiny/config.pbtxt").max_batch_size == 4  # production is as it was
    add_version(root, 0.8)
    assert tuned(root) == options
    activate(root, "tiny")
    assert (served_threshold(root), tuned(root)) == ((3, 0.7), options)
    assert deepfake(capsys, "verify", "-r", root)[0] == 0
    # What was not proved is not configured, whatever was tuned for another version.
    manifest = Manifest.read(root / "tiny/2")
    dataclasses.replace(manifest, parity={"batch_sizes": [1]}).write(root / "tiny/2")
    activate(root, "tiny")
    assert tuned(root) == dataclasses.replace(options, max_batch_size=1, preferred_batch_size=None)


def test_options_edited_by_hand_are_healed_as_before(root):
    edit_config(root, "configs/embedded.pbtxt", lambda config: setattr(config, "max_batch_size", 1))
    add_version(root, 0.8)
    assert triton_config.read_config(root / "tiny/configs/embedded.pbtxt").max_batch_size == 4
