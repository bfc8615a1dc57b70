"""`deepfake repository`: what it shows, what it finds wrong and what it changes, seen through the command."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from checkout import ROOT
from repository_crashes import add_version

from deepfake_client.cli import main as cli
from deepfake_export.repository import layout as repo
from deepfake_export.repository.admin import inspect_repository, prune, rollback, write_serving_options
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest, sha256_file
from deepfake_preprocess.contract.model_dir import claimed_versions, hold_version, lock_holders, versions_of
from deepfake_preprocess.contract.plan_info import PLAN_FILE, EngineInfo
from deepfake_preprocess.errors import OptionError, RepositoryError
from deepfake_serve._repository import check_repository

PYTHON = [sys.executable, "-c"]
ENGINE = EngineInfo(
    builder="tensorrt",
    tensorrt_version="11.4.0.106",
    compute_capability="8.9",
    cuda_version="13.0",
    precision="fp32",
    min_batch_size=1,
    typical_batch_size=4,
    max_batch_size=4,
    num_layers=3,
    size_bytes=6,
    build_seconds=0.1,
    plan=PLAN_FILE,
).to_dict()


@pytest.fixture
def root(tmp_path):
    """A repository with three versions of `tiny`, of which the newest is served."""
    root = tmp_path / "models"
    for threshold in (0.5, 0.6, 0.7):
        add_version(root, threshold)
    return root


def deepfake(capsys, *arguments):
    """Run the command; return exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["repository", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return stopped.value.code or 0, out, err


def edit_config(root, name, change):
    path = root / "tiny" / name
    config = triton_config.read_config(path)
    change(config)
    path.write_text(triton_config.config_to_text(config), encoding="utf-8")


def served_threshold(root):
    (model,) = check_repository(root)
    return model.spec.version, model.spec.threshold


# --- the command group


def imported_after(code):
    done = subprocess.run(
        [*PYTHON, f"import sys\ntry:\n    {code}\nfinally: print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    return done.stdout, set(done.stdout.splitlines()[-1].split())


def test_help_is_quick_and_needs_no_torch():
    out, modules = imported_after("from deepfake_client.cli.main import main; main(['repository', '--help'])")
    for name in ("list", "verify", "rollback", "prune", "Exit codes"):
        assert name in out
    assert not modules & {"torch", "onnx", "onnxruntime"}
    # What it mounts adds nothing heavy to the command line itself.
    _, modules = imported_after("import deepfake_export.cli.repository")
    assert not modules & {"torch", "grpc", "numpy", "google.protobuf"}


def test_without_a_sub_command_the_help_is_shown(capsys):
    _, out, err = deepfake(capsys)
    assert "rollback" in out + err


@pytest.mark.parametrize("command", [["list"], ["verify"], ["rollback", "tiny"], ["prune", "tiny", "--keep", "1"]])
@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.touch()], ids=["missing", "a file"])
def test_no_repository_is_one_sentence(capsys, tmp_path, command, make):
    make(tmp_path / "models")
    code, out, err = deepfake(capsys, *command, "--repository", tmp_path / "models")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "deepfake export" in err
    assert not (tmp_path / "models").is_dir()


@pytest.mark.parametrize("command", [["verify", "other"], ["rollback", "../tiny"], ["prune", "other", "--keep", "1"]])
def test_an_unknown_model_is_told_with_those_that_are_there(capsys, root, command):
    code, _, err = deepfake(capsys, *command, "-r", root)
    assert code == 2
    assert f"no model {command[1]!r}, only: tiny" in err


def test_the_commands_of_the_documentation_run(capsys, tmp_path, monkeypatch):
    page = (ROOT / "docs/repository.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].split() for line in page.splitlines() if line.startswith("deepfake repository ")]
    assert {line[2] for line in lines} == {"list", "verify", "rollback", "prune"}
    for number, line in enumerate(lines):
        # Each on a repository of its own, so that none depends on the others.
        folder = tmp_path / str(number)
        for threshold in (0.5, 0.6, 0.7, 0.8):
            add_version(folder / "model_repository", threshold, name="my_detector")
        monkeypatch.chdir(folder)
        ask = ["--yes"] if line[2] == "prune" else []
        assert deepfake(capsys, *line[2:], *ask)[0] == 0


# --- list


def test_list_shows_every_version_and_the_served_one(capsys, root):
    code, out, _ = deepfake(capsys, "list", "-r", root)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:3] == ["model", "version", "served"]
    assert [(row[0], row[1], "yes" in row, row[-2:]) for row in rows[1:]] == [
        ("tiny", "1", False, ["0.5", "ok"]),
        ("tiny", "2", False, ["0.6", "ok"]),
        ("tiny", "3", True, ["0.7", "ok"]),
    ]
    assert all("aaaaaaaa" in row for row in rows[1:])


def test_list_as_data(capsys, root):
    _, out, _ = deepfake(capsys, "list", "-r", root, "--json")
    (model,) = json.loads(out)
    assert (model["name"], model["served"], model["problems"]) == ("tiny", 3, [])
    version = model["versions"][0]
    assert version["size_bytes"] == sum(path.stat().st_size for path in (root / "tiny/1").iterdir())
    assert (version["status"], version["threshold"], version["checkpoint_sha256"]) == ("ok", 0.5, "a" * 64)
    assert version["created"].endswith("+00:00")


def test_the_environment_names_the_repository(capsys, root, monkeypatch):
    monkeypatch.setenv("DEEPFAKE_REPOSITORY", str(root))
    assert "tiny" in deepfake(capsys, "list")[1]


def test_an_empty_repository_says_how_to_fill_it(capsys, tmp_path):
    code, out, _ = deepfake(capsys, "list", "-r", tmp_path)
    assert (code, "deepfake export" in out) == (0, True)


def test_what_is_damaged_is_shown_and_not_hidden(capsys, root):
    (root / "tiny/1/model.onnx").write_bytes(b"other")
    (root / "tiny/2/manifest.json").unlink()
    (root / "half").mkdir()
    code, out, _ = deepfake(capsys, "list", "-r", root)
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[2:5]] == ["damaged", "damaged", "ok"]
    for told in ("half", "no version", "tiny/1/model.onnx: has changed", "tiny/2/manifest.json: is missing"):
        assert told in out


# --- verify


def test_a_whole_repository_verifies(capsys, root):
    code, out, _ = deepfake(capsys, "verify", "-r", root)
    assert code == 0
    assert "1 model(s), 3 version(s) checked: all is whole" in out


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
    (root / "other").mkdir()
    shutil.copytree(root / "tiny/configs", root / "other/configs")
    rollback(root, "tiny")
    shutil.copytree(root / "other/configs", root / "tiny/configs", dirs_exist_ok=True)
    shutil.rmtree(root / "other")


@pytest.mark.parametrize(
    ("change", "file", "what"),
    [
        (change_file, "tiny/1/model.onnx", "has changed"),
        (remove_file, "tiny/3/model.onnx", "is missing"),
        (add_file, "tiny/2/extra.bin", "is not in the manifest"),
        (remove_manifest, "tiny/3/manifest.json", "is missing"),
        (copy_version, "tiny/9/manifest.json", "copied or renamed"),
        (change_threshold, "tiny/config.pbtxt", "'deepfake.threshold' is '0.9'"),
        (unbounded_queue, "tiny/configs/embedded.pbtxt", "no bound"),
        (other_file, "tiny/config.pbtxt", "loads model.plan, which version 3 does not hold"),
        (swapped, "tiny/configs/embedded.pbtxt", "belongs into the other configuration"),
        (half_tuned, "tiny/configs/embedded.pbtxt", "the tuned options of model 'tiny' are damaged"),
        (missing_config, "tiny/config.pbtxt", "is missing"),
        (garbage, "tiny/config.pbtxt", "no Triton model configuration"),
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


def add_plan(root, version, **changes):
    """Put a plan beside the ONNX file, as `deepfake build-engines` leaves it."""
    version_dir = root / "tiny" / str(version)
    (version_dir / PLAN_FILE).write_bytes(b"a plan")
    manifest = Manifest.read(version_dir)
    files = {**manifest.files, PLAN_FILE: sha256_file(version_dir / PLAN_FILE)}
    engine = ENGINE | changes
    dataclasses.replace(manifest, files=files, engine=engine if changes.get("plan") != "" else {}).write(version_dir)
    repo.refresh_configs(root / "tiny", Manifest.read(root / "tiny/3"), max_batch_size=4)


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
    code, out, _ = deepfake(capsys, "verify", "-r", root, "--tensorrt", target)
    assert code == (2 if what else 0), out
    if what:
        assert f"wrong  tiny/{version}/model.plan: model.plan of 'tiny' version {version} {what}" in out
        assert "deepfake build-engines" in out
    report = json.loads(deepfake(capsys, "verify", "-r", root, "--tensorrt", target, "--json")[1])
    assert (report["ok"], report["plans_checked_for"]) == (not what, target)


def test_verify_on_a_machine_without_a_gpu_says_that_plans_were_not_compared(capsys, root, monkeypatch):
    monkeypatch.setattr("deepfake_export.tensorrt.gpu.find_gpu", lambda: None)
    assert "--tensorrt" not in deepfake(capsys, "verify", "-r", root)[1]
    add_plan(root, 3)
    code, out, _ = deepfake(capsys, "verify", "-r", root)
    assert code == 0
    assert "plans were not compared" in out
    assert "--tensorrt 11.4.0/8.9" in out
    code, _, err = deepfake(capsys, "verify", "-r", root, "--tensorrt", "11.4")
    assert code == 2
    assert "--tensorrt is '11.4'" in err


def test_verify_sees_a_batch_that_the_plan_does_not_take(capsys, root):
    add_plan(root, 3)
    edit_config(root, "config.pbtxt", lambda config: setattr(config, "max_batch_size", 16))
    code, out, _ = deepfake(capsys, "verify", "-r", root, "--tensorrt", "11.4.0/8.9")
    assert code == 2
    assert "tiny/config.pbtxt: forms batches of 16, but the plan takes 4" in out


@pytest.mark.parametrize("change", [change_threshold, unbounded_queue, other_file, swapped, missing_config, garbage])
def test_what_verify_says_repairs_a_configuration(capsys, root, change):
    change(root)
    assert deepfake(capsys, "rollback", "tiny", "--to", 3, "-r", root)[0] == 0
    assert deepfake(capsys, "verify", "-r", root)[0] == 0
    assert served_threshold(root) == (3, 0.7)


# --- rollback


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
    assert rollback(root, "tiny").served == 1
    with pytest.raises(RepositoryError, match="no version before the served 1, only: 1, 2, 3"):
        rollback(root, "tiny")


def test_rollback_to_a_named_version_and_forward_again(root):
    assert rollback(root, "tiny", to=1).before == 3
    assert served_threshold(root) == (1, 0.5)
    assert rollback(root, "tiny", to=3).before == 1
    assert served_threshold(root) == (3, 0.7)
    with pytest.raises(RepositoryError, match="no version 8, only: 1, 2, 3"):
        rollback(root, "tiny", to=8)


def test_the_next_export_after_a_rollback_is_served(root):
    rollback(root, "tiny", to=1)
    add_version(root, 0.8)
    assert served_threshold(root) == (4, 0.8)


def test_rollback_to_a_damaged_version_is_refused_and_changes_nothing(root):
    change = root / "tiny/2/model.onnx"
    change.write_bytes(b"half")
    with pytest.raises(RepositoryError, match=r"version 2 .*tiny/2/model.onnx has changed; .*--to \(1, 2, 3\)"):
        rollback(root, "tiny")
    assert served_threshold(root) == (3, 0.7)


def test_rollback_does_not_configure_larger_batches_than_were_proved(root):
    manifest = Manifest.read(root / "tiny/2")
    dataclasses.replace(manifest, parity={"batch_sizes": [1, 2]}).write(root / "tiny/2")
    rollback(root, "tiny")
    assert triton_config.read_config(root / "tiny/config.pbtxt").max_batch_size == 2


def test_rollback_to_a_version_with_a_plan_configures_tensorrt(root):
    add_plan(root, 2)
    rollback(root, "tiny")
    config = triton_config.read_config(root / "tiny/config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert inspect_repository(root)[0].all_problems == ()
    rollback(root, "tiny", to=3)
    assert triton_config.read_config(root / "tiny/config.pbtxt").backend == "onnxruntime"


# --- prune


def test_prune_keeps_the_newest_and_the_served_one(capsys, root):
    add_version(root, 0.8)
    rollback(root, "tiny", to=1)
    code, out, _ = deepfake(capsys, "prune", "tiny", "--keep", 1, "--dry-run", "-r", root)
    assert (code, versions_of(root / "tiny")) == (0, [1, 2, 3, 4])
    assert "Would remove version(s) 2, 3 of tiny" in out
    code, out, _ = deepfake(capsys, "prune", "tiny", "--keep", 1, "--yes", "-r", root, "--json")
    done = json.loads(out)
    assert (code, done["removed"], done["kept"], done["served"], done["done"]) == (0, [2, 3], [1, 4], [1], True)
    assert versions_of(root / "tiny") == [1, 4]
    assert repo.leftovers(root, "tiny") == []
    assert deepfake(capsys, "verify", "-r", root)[0] == 0
    assert "Nothing to remove" in deepfake(capsys, "prune", "tiny", "--keep", 1, "--yes", "-r", root)[1]


def test_without_a_terminal_prune_wants_a_yes(capsys, root, monkeypatch):
    with Path(os.devnull).open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = deepfake(capsys, "prune", "tiny", "--keep", 1, "-r", root)
    assert (code, "--yes" in err) == (2, True)
    assert versions_of(root / "tiny") == [1, 2, 3]


def test_prune_asks_on_a_terminal(capsys, root, monkeypatch):
    for answer, left in (("n", [1, 2, 3]), ("y", [3])):
        controller, terminal = os.openpty()
        os.write(controller, f"{answer}\n".encode())
        with os.fdopen(terminal) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            code, _, _ = deepfake(capsys, "prune", "tiny", "--keep", 1, "-r", root)
        os.close(controller)
        assert (code, versions_of(root / "tiny")) == (0, left)


def test_prune_does_not_guess_what_is_served(root):
    (root / "tiny/config.pbtxt").write_text("garbage: {")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt"):
        prune(root, "tiny", keep=1)
    assert versions_of(root / "tiny") == [1, 2, 3]
    with pytest.raises(OptionError, match="keep is 0"):
        prune(root, "tiny", keep=0)


# --- beside other processes


HOLD = """
import sys
from pathlib import Path
from deepfake_export.repository import layout as repo
from deepfake_preprocess.contract.model_dir import hold_version
root = Path(sys.argv[1])
if sys.argv[2] == "change":
    with repo.locked(root, "tiny"), repo.staged(root, "tiny"):
        print("ready", flush=True); sys.stdin.readline()
else:
    hold_version(root / "tiny" / sys.argv[2])
    print("ready", flush=True); sys.stdin.readline()
"""


@pytest.fixture
def other_process(root):
    """Start a process that changes the model, or uses one of its versions, until it is killed."""
    started = []

    def start(what):
        process = subprocess.Popen(
            [*PYTHON, HOLD, str(root), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_version_in_use_is_not_pruned_and_everything_else_goes_on(capsys, root, other_process):
    user = other_process("2")
    code, _, err = deepfake(capsys, "prune", "tiny", "--keep", 1, "--yes", "-r", root)
    assert code == 2
    assert f"tiny/2 is in use by process {user.pid}, nothing was removed" in err
    assert versions_of(root / "tiny") == [1, 2, 3]
    assert f"by {user.pid}" in deepfake(capsys, "list", "-r", root)[1]
    add_version(root, 0.8)
    done = rollback(root, "tiny", to=1)
    assert done.still_used_by == (user.pid,)
    user.kill()
    user.wait()
    assert prune(root, "tiny", keep=1).removed == (2, 3)


def test_two_servers_of_one_version_do_not_disturb_each_other(root, other_process):
    users = {other_process("2").pid, other_process("2").pid}
    assert set(lock_holders(root / "tiny/2")) == users


def test_a_version_that_is_being_removed_is_not_served(root):
    version_dir = root / "tiny/1"
    with claimed_versions([version_dir]), pytest.raises(RepositoryError, match="being removed"):
        hold_version(version_dir)
    os.close(hold_version(version_dir))
    shutil.rmtree(version_dir)
    with pytest.raises(RepositoryError, match=r"cannot be read"):
        hold_version(version_dir)


@pytest.mark.parametrize("command", [["rollback", "tiny"], ["prune", "tiny", "--keep", "1", "--yes"]])
def test_a_change_beside_another_one_is_refused(capsys, root, other_process, command):
    other = other_process("change")
    code, _, err = deepfake(capsys, *command, "-r", root)
    assert code == 2
    assert f"another export of 'tiny', or a rollback or prune, is running on {root} (process {other.pid})" in err
    with pytest.raises(RepositoryError, match=f"process {other.pid}"):
        add_version(root, 0.8)
    # Looking is possible all the time, and says what is going on.
    code, out, _ = deepfake(capsys, "verify", "-r", root)
    assert (code, f"a change that process {other.pid} is making now" in out) == (0, True)
    assert served_threshold(root) == (3, 0.7)
    other.kill()
    other.wait()
    assert "left behind by a process that was killed" in deepfake(capsys, "verify", "-r", root)[1]
    add_version(root, 0.8)
    assert inspect_repository(root)[0].all_problems == ()


def test_a_read_only_repository_can_be_looked_at_and_served_but_not_changed(root):
    """As a user without the right to write; the superuser, who may always, gives that up for the while."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "models"
        shutil.copytree(root, copy)
        for path in (Path(folder), *copy.rglob("*"), copy):
            path.chmod(0o555 if path.is_dir() else 0o444)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            assert inspect_repository(copy)[0].all_problems == ()
            os.close(hold_version(check_repository(copy)[0].version_dir))
            for change in (lambda: rollback(copy, "tiny"), lambda: prune(copy, "tiny", keep=1)):
                with pytest.raises(RepositoryError, match=r"cannot be written \(Permission denied"):
                    change()
        finally:
            if user == 0:
                os.seteuid(0)
            for path in (Path(folder), copy, *copy.rglob("*")):
                path.chmod(0o755)


def tuned(root):
    return triton_config.tuned_options(triton_config.read_config(root / "tiny/configs/embedded.pbtxt"))


def test_tuned_options_outlive_exports_and_rollbacks_and_verify(capsys, root):
    options = triton_config.ServingOptions(2, 300, 2, instances=3, threads=1, tuned_for_cores=2)
    assert write_serving_options(root, "tiny", options) == root / "tiny/configs/embedded.pbtxt"
    assert tuned(root) == options
    assert triton_config.read_config(root / "tiny/config.pbtxt").max_batch_size == 4  # production is as it was
    add_version(root, 0.8)
    assert tuned(root) == options
    rollback(root, "tiny")
    assert (served_threshold(root), tuned(root)) == ((3, 0.7), options)
    assert deepfake(capsys, "verify", "-r", root)[0] == 0
    # What was not proved is not configured, whatever was tuned for another version.
    manifest = Manifest.read(root / "tiny/2")
    dataclasses.replace(manifest, parity={"batch_sizes": [1]}).write(root / "tiny/2")
    rollback(root, "tiny")
    assert tuned(root) == dataclasses.replace(options, max_batch_size=1, preferred_batch_size=1)


def test_options_edited_by_hand_are_healed_as_before(root):
    edit_config(root, "configs/embedded.pbtxt", lambda config: setattr(config, "max_batch_size", 1))
    add_version(root, 0.8)
    assert triton_config.read_config(root / "tiny/configs/embedded.pbtxt").max_batch_size == 4
