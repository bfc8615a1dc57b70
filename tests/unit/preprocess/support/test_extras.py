"""A missing extra is reported with the pip command that works where the project was installed from."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from deepfake_preprocess.errors import MissingExtraError
from deepfake_preprocess.support import extras


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'deepfake-serving[report]'"),
        ({"url": "https://example.org/x.whl", "archive_info": {}}, "pip install 'deepfake-serving[report]'"),
        ({"url": "file:///src/x-1.whl", "archive_info": {}}, "pip install 'deepfake-serving[report]'"),
        ({"url": "file:///src/house", "dir_info": {}}, "pip install '/src/house[report]'"),
        ({"url": "file:///my%20src", "dir_info": {"editable": True}}, "pip install -e '/my src[report]'"),
    ],
)
def test_the_command_names_where_the_project_came_from(monkeypatch, origin, command):
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(extras, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    assert extras.install_command("report") == command
    # A shell reads it as one argument.
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines()[-1].endswith("[report]")


def test_without_an_installation_the_index_is_named(monkeypatch):
    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", not_installed)
    with pytest.raises(MissingExtraError, match="'no_such_module' is not installed; run: pip install 'deep"):
        extras.require_extra("no_such_module.part", extra="report")


def test_what_another_process_needs_is_looked_for_and_not_loaded(monkeypatch, tmp_path):
    (tmp_path / "only_for_others.py").write_text("raise AssertionError('loaded')")
    monkeypatch.syspath_prepend(tmp_path)
    extras.check_extra("only_for_others", extra="report")
    assert "only_for_others" not in sys.modules
    with pytest.raises(MissingExtraError, match="'no_such_module' is not installed; run: pip install"):
        extras.check_extra("no_such_module", extra="report")
