"""What is packed: a source distribution can be worked with as a checkout, a wheel holds the schema of results."""

from __future__ import annotations

import subprocess
import tomllib

from checkout import ROOT

BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
OF_THE_REPOSITORY = {".ci", ".github", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"}
ALWAYS_PACKED = {"pyproject.toml"}


def test_a_source_distribution_holds_what_the_repository_does():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    there = {name.partition("/")[0] for name in tracked.splitlines()} - OF_THE_REPOSITORY - ALWAYS_PACKED
    packed = {name.lstrip("/").partition("/")[0] for name in BUILD["sdist"]["include"]}
    assert packed == there


def test_a_wheel_holds_every_package_and_the_schema():
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/deepfake_*/__init__.py")}
    assert set(BUILD["wheel"]["packages"]) == packages
    assert BUILD["wheel"]["force-include"] == {
        "docs/verdict.schema.json": "deepfake_client/result/verdict.schema.json"
    }
    assert (ROOT / "docs/verdict.schema.json").is_file()
