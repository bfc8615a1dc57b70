"""`deepfake repository verify` names the file, what is wrong and what to do."""

from __future__ import annotations

import json
import shutil

import pytest
from repository_command import add_plan, deepfake, edit_config, served_threshold

from deepfake_export.repository.activation import activate
from deepfake_preprocess.contract import triton_config


def test_a_whole_repository_verifies(capsys, root):
    code, out, _ = deepfake(capsys, "verify", "-r", root)
    assert code == 0
    assert "1 model(s), 3 version(s) checked: everything is intact" in out


def change_file(root):
    (root / "tiny/1/model.onnx").write_bytes(b"other")


def remove_file(root):
    (root / "tiny/3/model.onnx").unlink()


def add_file(root):
    (root / "tiny/2/extra.bin").touch()


def remove_manifest(root):
    (root / "tiny/3/manifest.json").unlink()


def copy_version(root):
    shutil.copytree(root / "tiny/2", root / "tiny/9")


def change_threshold(root):
    edit_config(root, "config.pbtxt", lambda config: set_parameter(config, "deepfake.threshold", "0.9"))


def set_parameter(config, key, value):
    config.parameters[key].string_value = value


def unbounded_queue(root):
    def change(config):
        config.dynamic_batching.default_queue_policy.max_queue_size = 0

    edit_config(root, "configs/embedded.pbtxt", change)


def other_file(root):
    edit_config(root, "config.pbtxt", lambda config: setattr(config, "default_model_filename", "model.plan"))


def swapped(root):
    shutil.copy(root / "tiny/config.pbtxt", root / "tiny/configs/embedded.pbtxt")


def half_tuned(root):
    def change(config):
        set_parameter(config, triton_config.CORES_PARAMETER, "many")

    edit_config(root, "configs/embedded.pbtxt", change)


def missing_config(root):
    (root / "tiny/config.pbtxt").unlink()


def garbage(root):
    (root / "tiny/config.pbtxt").write_text("max_batch_sise: 8")


def interrupted(root):
    before = (root / "tiny/configs/embedded.pbtxt").read_bytes()
    activate(root, "tiny")
    (root / "tiny/configs/embedded.pbtxt").write_bytes(before)


@pytest.mark.parametrize(
    ("change", "file", "what"),
    [
        (change_file, "tiny/1/model.onnx", "has changed"),
        (remove_file, "tiny/3/model.onnx", "is missing"),
        (add_file, "tiny/2/extra.bin", "is not in the manifest"),
        (remove_manifest, "tiny/3/manifest.json", "is missing"),
        (copy_version, "tiny/9/manifest.json", "copied or renamed"),
        (change_threshold, "tiny/config.pbtxt", "'deepfake.threshold' is '0.9'"),
        (unbounded_queue, "tiny/configs/embedded.pbtxt", "unbounded"),
        (other_file, "tiny/config.pbtxt", "loads model.plan, which version 3 does not hold"),
        (swapped, "tiny/configs/embedded.pbtxt", "belongs in another configuration"),
        (half_tuned, "tiny/configs/embedded.pbtxt", "the tuned options of model 'tiny' are damaged"),
        (missing_config, "tiny/config.pbtxt", "is missing"),
        (garbage, "tiny/config.pbtxt", "not a Triton model configuration"),
        (interrupted, "tiny/configs/embedded.pbtxt", "serves version 3, but config.pbtxt version 2"),
    ],
)
def test_verify_names_the_file_what_is_wrong_and_what_to_do(capsys, root, change, file, what):
    change(root)
    code, out, _ = deepfake(capsys, "verify", "tiny", "-r", root, "--json")
    report = json.loads(out)
    assert (code, report["ok"]) == (2, False)
    (problem,) = report["problems"]
    assert problem["file"] == file
    assert what in problem["what"]
    assert "deepfake" in problem["fix"] or "export the model again" in problem["fix"]
    code, out, _ = deepfake(capsys, "verify", "tiny", "-r", root)
    assert code == 2
    assert f"{file}: {problem['what']}" in out


@pytest.mark.parametrize(
    ("version", "changes", "target", "what"),
    [
        (3, {}, "11.4.0/8.9", ""),
        (3, {}, "11.4.1/8.9", "was built by TensorRT 11.4.0.106, but 11.4.1 runs here"),
        (3, {}, "11.4.0/9.0", "was built for GPUs of compute capability 8.9, but this one has 9.0"),
        (3, {"plan": ""}, "11.4.0/8.9", "has no entry in its manifest that says what it was built for"),
        # Of what is not served, no plan is loaded.
        (1, {}, "11.4.0/9.0", ""),
    ],
)
def test_verify_checks_plans_for_the_tensorrt_and_gpu_that_load_them(capsys, root, version, changes, target, what):
    add_plan(root, version, **changes)
    code, out, _ = deepfake(capsys, "verify", "-r", root, "--plans-for", target)
    assert code == (2 if what else 0), out
    if what:
        assert f"wrong  tiny/{version}/model.plan: model.plan of 'tiny' version {version} {what}" in out
        assert "deepfake build-engines" in out
    report = json.loads(deepfake(capsys, "verify", "-r", root, "--plans-for", target, "--json")[1])
    assert (report["ok"], report["plans_checked_for"]) == (not what, target)


def test_verify_on_a_machine_without_a_gpu_says_that_plans_were_not_compared(capsys, root, monkeypatch):
    monkeypatch.setattr("deepfake_export.tensorrt.gpu.find_gpu", lambda: None)
    assert "--plans-for" not in deepfake(capsys, "verify", "-r", root)[1]
    add_plan(root, 3)
    code, out, _ = deepfake(capsys, "verify", "-r", root)
    assert code == 0
    assert "plans were not compared" in out
    assert "--plans-for 11.4.0/8.9" in out
    code, _, err = deepfake(capsys, "verify", "-r", root, "--plans-for", "11.4")
    assert code == 2
    assert "--plans-for is '11.4'" in err


def test_verify_sees_a_batch_that_the_plan_does_not_take(capsys, root):
    add_plan(root, 3)
    edit_config(root, "config.pbtxt", lambda config: setattr(config, "max_batch_size", 16))
    code, out, _ = deepfake(capsys, "verify", "-r", root, "--plans-for", "11.4.0/8.9")
    assert code == 2
    assert "tiny/config.pbtxt: forms batches of 16, but the plan takes 4" in out


@pytest.mark.parametrize("change", [change_threshold, unbounded_queue, other_file, swapped, missing_config, garbage])
def test_what_verify_says_repairs_a_configuration(capsys, root, change):
    change(root)
    assert deepfake(capsys, "rollback", "tiny", 3, "-r", root)[0] == 0
    assert deepfake(capsys, "verify", "-r", root)[0] == 0
    assert served_threshold(root) == (3, 0.7)
