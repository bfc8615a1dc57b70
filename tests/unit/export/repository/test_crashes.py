"""Killed at any step, or with a full disk from any step on, a repository is never half."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import repository_crashes

from deepfake_export.repository.configs import refresh_configs
from deepfake_export.repository.listing import inspect_repository
from deepfake_export.repository.staging import leftovers
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.model_dir import versions_of
from deepfake_preprocess.contract.repository import served_in
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import (
    CONFIG_NAME,
    EMBEDDED_CONFIG_NAME,
    config_parameters,
    read_config,
)
from deepfake_preprocess.errors import RepositoryError
from deepfake_serve._repository import check_repository

THRESHOLDS = {1: "0.5", 2: "0.6", 3: "0.7"}
"""Of each version, so that one served with the parameters of another is seen."""


def template(root: Path, versions: int) -> Path:
    root.mkdir()
    for version in range(1, versions + 1):
        repository_crashes.add_version(root, float(THRESHOLDS[version]))
    return root


def run_tries(change: str, how: str, source: Path, target: Path) -> list[tuple[Path, str]]:
    """Return the repository after each try, and how the try ended."""
    target.mkdir()
    command = [sys.executable, repository_crashes.__file__, change, how, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(target / str(step) / "models", outcome) for step, outcome in enumerate(json.loads(done.stdout))]


def served_whole(root: Path) -> set[int]:
    """Assert that what Triton and `deepfake serve` would load is whole; return the versions."""
    served = set()
    for name in (CONFIG_NAME, EMBEDDED_CONFIG_NAME):
        version = served_in(root / "tiny", name)
        parameters = config_parameters(read_config(root / "tiny" / name))
        assert parameters["deepfake.version"] == str(version)
        assert parameters["deepfake.threshold"] == THRESHOLDS[version]
        served.add(version)
    (model,) = check_repository(root)
    assert model.spec.version in served
    # Triton takes every folder for a model; the next start must find no other one.
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["tiny"]
    return served


@pytest.mark.parametrize(
    ("change", "how", "versions", "before", "after"),
    [
        ("export", "kill", 2, 2, 3),
        ("export", "exit", 2, 2, 3),
        ("rollback", "kill", 3, 3, 2),
        ("prune", "kill", 3, 3, 3),
    ],
)
def test_a_killed_change_leaves_the_old_or_the_new_version_served(tmp_path, change, how, versions, before, after):
    source = template(tmp_path / "source", versions)
    tries = run_tries(change, how, source, tmp_path / "tries")
    assert tries[-1][1] == "done"
    assert {outcome for _, outcome in tries[:-1]} == {"killed"}
    assert len(tries) > 5
    seen = []
    for root, _ in tries:
        served = served_whole(root)
        assert served <= {before, after}
        seen.append(served)
        for model in inspect_repository(root):
            # Nothing is damaged. A leftover, or configurations of two whole versions, may be there, and are named.
            assert [version.status for version in model.versions] == ["ok"] * len(model.versions)
            assert all(
                problem.harmless or "a change was interrupted" in problem.what for problem in model.all_problems
            )
            assert bool(model.problems) == (bool(leftovers(root, "tiny")) or len(served) > 1)
        # The next export works, and clears away what was left.
        repository_crashes.add_version(root, 0.7)
        assert leftovers(root, "tiny") == []
    assert seen[0] == {before}
    assert seen[-1] == {after}


@pytest.mark.parametrize("committed", [False, True], ids=["nothing", "configurations without weights"])
def test_a_killed_first_export_leaves_nothing_that_is_served(tmp_path, committed):
    source = tmp_path / "source"
    source.mkdir()
    if committed:
        spec = ModelSpec(name="tiny", architecture="timm:other", threshold=0.9)
        refresh_configs(source / "tiny", Manifest(spec, {}, "fp32"), max_batch_size=4)
    tries = run_tries("export", "kill", source, tmp_path / "tries")
    assert tries[-1][1] == "done"
    for root, outcome in tries:
        whole = bool(versions_of(root / "tiny"))
        if whole:
            assert served_in_each(root) == {("1", "0.7")}
            check_repository(root)
        else:
            assert outcome == "killed"
            with pytest.raises(RepositoryError, match="deepfake export"):
                check_repository(root)
        # Folders that Triton would take for models are models.
        assert [path.name for path in root.iterdir() if path.is_dir()] in ([], ["tiny"])
        for model in inspect_repository(root):
            assert model.name == "tiny"
        repository_crashes.add_version(root, 0.7)
        served = versions_of(root / "tiny")[-1]
        assert served_in_each(root) == {(str(served), "0.7")}
        assert leftovers(root, "tiny") == []


def served_in_each(root: Path) -> set[tuple[str, str]]:
    found = set()
    for name in (CONFIG_NAME, EMBEDDED_CONFIG_NAME):
        served_in(root / "tiny", name)
        parameters = config_parameters(read_config(root / "tiny" / name))
        found.add((parameters["deepfake.version"], parameters["deepfake.threshold"]))
    return found


@pytest.mark.parametrize(("change", "before"), [("export", 2), ("rollback", 2)])
def test_a_full_disk_is_one_sentence_and_changes_nothing(tmp_path, change, before):
    source = template(tmp_path / "source", 2)
    content = {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    tries = run_tries(change, "full", source, tmp_path / "tries")
    assert tries[-1][1] == "done"
    for root, outcome in tries[:-1]:
        assert "no space is left for" in outcome
        assert "\n" not in outcome
        after = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        assert after == content
        assert leftovers(root, "tiny") == []
        assert served_whole(root) == {before}


def test_a_system_that_refuses_a_write_in_the_middle_is_told_and_nothing_is_half(tmp_path):
    """The kernel's own refusal, in a process of its own: files may not grow past 4 kB there."""
    root = template(tmp_path / "models", 1)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from deepfake_export.repository.locks import locked\n"
        "from deepfake_export.repository.staging import staged\n"
        "from deepfake_preprocess.errors import RepositoryError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    with locked(Path(sys.argv[1]), 'tiny'), staged(Path(sys.argv[1]), 'tiny') as version_dir:\n"
        "        (version_dir / 'model.onnx').write_bytes(bytes(10_000))\n"
        "except RepositoryError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert "no space is left" in done.stdout
    assert "File too large" in done.stdout
    assert served_whole(root) == {1}
    assert leftovers(root, "tiny") == []


def test_what_a_killed_first_export_left_is_shown_and_does_no_harm(tmp_path):
    root = template(tmp_path / "models", 1)
    left = tmp_path / ".models.second.partial" / "1"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")
    assert [model.spec.name for model in check_repository(root)] == ["tiny"]
    second = inspect_repository(root, ["second"])[0]
    assert (second.versions, second.served) == ((), None)
    (problem,) = second.problems
    assert problem.harmless
    assert "killed" in problem.what
    # In the repository itself Triton would take it for a model.
    shutil.move(left.parent, root / ".second.partial")
    (problem,) = inspect_repository(root, ["second"])[0].problems
    assert not problem.harmless
    assert (problem.file, "container does not start" in problem.what) == (".second.partial", True)
