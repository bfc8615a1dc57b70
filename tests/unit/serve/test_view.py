"""What Triton reads is laid out beside the repository, and changes as a whole."""

import dataclasses
import os

import pytest
from placeholder_models import SPEC, write_model

from deepfake_preprocess.contract import triton_config
from deepfake_serve import _view
from deepfake_serve._repository import check_repository
from deepfake_serve._shares import CpuShare
from deepfake_serve._view import MARK_PARAMETER, View


def made_view(folder):
    (folder / "run").mkdir()
    return View(folder / "run")


def test_the_view_links_the_version_and_leaves_the_repository_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(_view, "usable_cores", lambda: 8)
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
    assert mark[MARK_PARAMETER] == second["detector"]
    config, known = view.folder / "detector" / "config.pbtxt", tmp_path / "run/states" / first["detector"]
    for path in (known / "config.pbtxt", known):
        os.utime(path, (0, 0))
    assert view.show(models, shares) == first, "known, so it is not made again"
    assert config.stat().st_mtime > 0, "Triton passes over what is older than it has loaded"
    assert config.parent.stat().st_mtime > 0
    os.utime(config, (0, 0))
    assert view.show(models, shares) == first
    assert config.stat().st_mtime == 0, "nor does what is shown already change"
    assert [path.name for path in (view.folder / "detector").glob("[0-9]")] == ["1"]
    assert view.show([], {}) == {}
    assert list(view.folder.iterdir()) == []


@pytest.mark.parametrize(("share", "largest_mb"), [(CpuShare(1, 2), 128), (CpuShare(3, 4), 128), (CpuShare(2, 1), 0)])
def test_no_second_session_for_large_models_or_where_it_has_no_more_threads(tmp_path, monkeypatch, share, largest_mb):
    monkeypatch.setattr(_view, "MAX_LONE_MODEL_MB", largest_mb)
    monkeypatch.setattr(_view, "usable_cores", lambda: 4)
    write_model(tmp_path / "repository")
    view = made_view(tmp_path)
    view.show(check_repository(tmp_path / "repository"), {"detector": share})
    config = triton_config.read_config(view.folder / "detector" / "config.pbtxt")
    assert triton_config.LONE_THREADS_PARAMETER not in triton_config.config_parameters(config)


@pytest.mark.parametrize(("instances", "bounded"), [(1, False), (2, True)])
def test_the_queue_of_a_single_instance_has_no_priorities_and_no_bounds(tmp_path, instances, bounded):
    """Otherwise requests that come while it computes are overlooked for half a second."""
    write_model(tmp_path / "repository")
    view = made_view(tmp_path)
    view.show(check_repository(tmp_path / "repository"), {"detector": CpuShare(instances, 1)})
    batching = triton_config.read_config(view.folder / "detector" / "config.pbtxt").dynamic_batching
    assert list(batching.preferred_batch_size), "requests are joined as ever"
    queue = batching.default_queue_policy
    found = [batching.priority_levels, len(batching.priority_queue_policy), queue.max_queue_size]
    found += [queue.default_timeout_microseconds, queue.allow_timeout_override]
    assert all(found) if bounded else not any(found)


def test_weights_beside_the_file_count_for_the_size_of_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(_view, "MAX_LONE_MODEL_MB", 1)
    monkeypatch.setattr(_view, "usable_cores", lambda: 2)
    version_dir = write_model(tmp_path / "repository")
    (model,) = check_repository(tmp_path / "repository")
    found = []
    for run, num_bytes in (("small", 2**19), ("large", 2**20)):
        (version_dir / "model.bin").write_bytes(bytes(num_bytes))
        (tmp_path / run).mkdir()
        view = View(tmp_path / run)
        view.show([model], {"detector": CpuShare(2, 1)})
        config = triton_config.read_config(view.folder / "detector" / "config.pbtxt")
        found.append(triton_config.LONE_THREADS_PARAMETER in triton_config.config_parameters(config))
    assert found == [True, False]
