"""The real `deepfake export` in processes of their own: at the same time, killed in the middle, on a full disk."""

from __future__ import annotations

import subprocess
import sys

import pytest
from safetensors.torch import save_file

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.repository.listing import inspect_repository
from deepfake_export.repository.staging import leftovers
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import RepositoryError
from deepfake_serve._repository import check_repository

LAYERS = ("maxpool:8", "flatten", "linear:128", "relu", "linear:1")
SPEC = ModelSpec(
    "tiny", "layers", head=Head(layers=LAYERS), input_height_px=64, input_width_px=64, training_data="none"
)


@pytest.fixture
def checkpoint(tmp_path):
    """Of a network that is exported in no time."""
    path = tmp_path / "weights" / "tiny.safetensors"
    path.parent.mkdir()
    save_file(build_network(SPEC).state_dict(), path)
    path.with_suffix(".yaml").write_text(SPEC.to_yaml())
    return path


def command(checkpoint, root, *, before=""):
    code = f"from deepfake_client.cli.main import main\n{before}\nmain()"
    return [sys.executable, "-c", code, "export", str(checkpoint), "--repository", str(root), "--max-batch-size", "2"]


def run(checkpoint, root, **options):
    return subprocess.run(command(checkpoint, root, **options), capture_output=True, text=True, check=False)


def test_a_second_export_waits_for_nobody_and_a_killed_one_leaves_nothing_half(checkpoint, tmp_path):
    root = tmp_path / "models"
    with subprocess.Popen(command(checkpoint, root), stderr=subprocess.PIPE, text=True) as first:
        for line in first.stderr:
            if line.startswith("Exporting to ONNX"):
                break
        assert leftovers(root, "tiny")
        second = run(checkpoint, root)
        assert second.returncode == 2
        assert f"another export of 'tiny', or a rollback or prune, is running on {root}" in second.stderr
        assert f"process {first.pid}" in second.stderr
        assert "Traceback" not in second.stderr
        assert first.poll() is None
        first.kill()
    with pytest.raises(RepositoryError, match="holds no model"):
        check_repository(root)
    (problem,) = inspect_repository(root)[0].problems
    assert "left behind" in problem.what

    done = run(checkpoint, root)
    assert done.returncode == 0, done.stderr
    assert leftovers(root, "tiny") == []
    assert [model.spec.version for model in check_repository(root)] == [1]
    assert inspect_repository(root)[0].all_problems == ()


def test_a_disk_that_takes_no_more_is_one_sentence(checkpoint, tmp_path):
    assert checkpoint.stat().st_size > 65536
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
    done = run(checkpoint, tmp_path / "models", before=limit)
    assert done.returncode == 2
    assert f"error: no space is left for {tmp_path / 'models'}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny.lock"]
    assert leftovers(tmp_path / "models", "tiny") == []
