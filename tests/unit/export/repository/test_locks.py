"""Changes beside other processes that change the model, serve it, or may not write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from repository_command import deepfake, served_threshold
from repository_crashes import add_version

from deepfake_export.repository.activation import activate
from deepfake_export.repository.listing import inspect_repository
from deepfake_export.repository.pruning import prune
from deepfake_preprocess.contract.model_dir import claimed_versions, hold_version, lock_holders, versions_of
from deepfake_preprocess.errors import RepositoryError
from deepfake_serve._repository import check_repository

HOLD = """
import sys
from pathlib import Path
from deepfake_export.repository.locks import locked
from deepfake_export.repository.staging import staged
from deepfake_preprocess.contract.model_dir import hold_version
root = Path(sys.argv[1])
if sys.argv[2] == "change":
    with locked(root, "tiny"), staged(root, "tiny"):
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
            [sys.executable, "-c", HOLD, str(root), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
    done = activate(root, "tiny", 1)
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
            for change in (lambda: activate(copy, "tiny"), lambda: prune(copy, "tiny", keep=1)):
                with pytest.raises(RepositoryError, match=r"cannot be written \(Permission denied"):
                    change()
        finally:
            if user == 0:
                os.seteuid(0)
            for path in (Path(folder), copy, *copy.rglob("*")):
                path.chmod(0o755)
