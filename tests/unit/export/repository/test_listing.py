"""`deepfake repository list`, and what all commands of the group do alike."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from checkout import ROOT
from repository_command import deepfake
from repository_crashes import add_version

from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY


def imported_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\ntry:\n    {code}\nfinally: print(*sys.modules)"],
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
            add_version(folder / DEFAULT_REPOSITORY, threshold, name="my_detector")
        monkeypatch.chdir(folder)
        ask = ["--yes"] if line[2] == "prune" else []
        assert deepfake(capsys, *line[2:], *ask)[0] == 0


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


def test_names_of_files_move_no_cursor(capsys, root):
    (root / "tiny/2/\x1b[2Jfine\u202e[bold].onnx").touch()
    (root / "tiny/1").rename(root / "tiny/\x9b1")
    for command in (["list"], ["verify"], ["list", "--json"], ["verify", "--json"]):
        _, out, err = deepfake(capsys, *command, "-r", root)
        assert not {"\x1b", "\u202e", "\x9b"} & set(out + err)
    _, out, _ = deepfake(capsys, "verify", "-r", root)
    assert "tiny/2/\\x1b[2Jfine\\u202e[bold].onnx" in out
