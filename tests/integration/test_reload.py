"""A running server takes a new version, a rollback, or other models, and loses no request over it."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from server_processes import END_TIMEOUT_S, FAULTS
from tiny_model import TINY_SPEC, write_tiny_onnx, write_tiny_repository

from deepfake_client import DeepfakeClient
from deepfake_export.repository.activation import activate
from deepfake_export.repository.locks import locked
from deepfake_export.repository.staging import publish, staged
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.model_dir import lock_holders
from deepfake_preprocess.contract.version_files import MODEL_FILE
from deepfake_preprocess.errors import RepositoryError, ServerStartError
from deepfake_serve import EmbeddedTriton

SERVE = [sys.executable, "-c", "from deepfake_client.cli.main import main; raise SystemExit(main())", "serve"]
FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


def add_version(root: Path, *, damaged: bool = False, **changes: object) -> int:
    """Export another version; a damaged one is as its manifest says, and no server can load it."""
    with locked(root, "tiny"), staged(root, "tiny") as made:
        spec = dataclasses.replace(TINY_SPEC, version=int(made.name), **changes)
        if damaged:
            (made / MODEL_FILE).write_bytes(b"no onnx")
        else:
            write_tiny_onnx(made / MODEL_FILE, spec)
        manifest = Manifest(spec, file_hashes(made), "fp32")
        manifest.write(made)
        publish(root, manifest, max_batch_size=8)
        return spec.version


@contextmanager
def load_on(triton: EmbeddedTriton, callers: int = 4):
    """Send requests without a pause for as long as the context lasts; yields answers by version, which fill up."""
    answered: Counter[str] = Counter()
    errors: list[str] = []
    over = threading.Event()
    shape = [1, TINY_SPEC.input_height_px, TINY_SPEC.input_width_px, 3]
    faces = tritonclient.grpc.InferInput("faces", shape, "UINT8")
    faces.set_data_from_numpy(np.zeros(shape, np.uint8))

    def ask() -> None:
        with tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client:
            while not over.is_set():
                try:
                    answered[client.infer("tiny", [faces]).get_response().model_version] += 1
                except Exception as exc:
                    errors.append(str(exc))

    threads = [threading.Thread(target=ask) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert errors == []


def wait_for(answered: Counter[str], version: int) -> None:
    """Wait for answers of a version that begin after this call."""
    before = answered[str(version)]
    deadline = threading.Event()
    while answered[str(version)] <= before + 4:
        assert not deadline.wait(0.01)


def test_versions_come_and_go_under_load_and_no_request_is_lost(tiny_repository):
    root = tiny_repository
    with EmbeddedTriton(root, instances=2) as triton, load_on(triton) as answered:
        wait_for(answered, 1)
        assert triton.reload() == []
        assert add_version(root, threshold=0.6) == 2
        assert triton.reload() == ["tiny"]
        assert [model.spec.threshold for model in triton.models] == [0.6]
        wait_for(answered, 2)
        assert (lock_holders(root / "tiny/1"), bool(lock_holders(root / "tiny/2"))) == ((), True)
        for version in (1, 2, 1):
            assert activate(root, "tiny", version).served == version
            assert triton.reload() == ["tiny"]
            wait_for(answered, version)
        add_version(root, damaged=True)
        with pytest.raises(ServerStartError, match=r"version 3 of model 'tiny' could not be loaded.*before still is"):
            triton.reload()
        (root / "tiny/3" / MODEL_FILE).write_bytes(b"not even this")
        with pytest.raises(RepositoryError, match="has changed"):
            triton.reload()
        assert [model.spec.version for model in triton.models] == [1]
        wait_for(answered, 1)
    assert set(answered) == {"1", "2"}


def test_what_was_loaded_last_is_served_after_a_restart(tiny_repository):
    with EmbeddedTriton(tiny_repository, instances=1) as triton, DeepfakeClient(triton.grpc_url) as client:
        add_version(tiny_repository, input_height_px=48)
        triton.reload()
        assert client.model().spec.input_height_px == 48
        FAULTS["backend killed"](triton.pid)
        assert client.score(np.zeros((1, 48, 32, 3), np.uint8)).shape == (1,)


def test_models_are_added_and_removed(tiny_repository):
    def offered() -> set[str]:
        with tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client:
            models = client.get_model_repository_index().models
            return {model.name for model in models if model.state == "READY"}

    with EmbeddedTriton(tiny_repository, instances=1) as triton, load_on(triton):
        write_tiny_repository(tiny_repository, dataclasses.replace(TINY_SPEC, name="other"))
        assert triton.reload() == ["other"]
        assert offered() == {"tiny", "other"}
        shutil.rmtree(tiny_repository / "other")
        assert triton.reload() == ["other"]
        deadline = threading.Event()
        while offered() != {"tiny"}:
            assert not deadline.wait(0.05)
        assert triton.wait(0) is None


@contextmanager
def killed_at_last(process: subprocess.Popen[str]):
    """A test that fails must not wait for a process that nobody ends."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("how", ["signal", "watch"])
def test_the_command_takes_a_new_version(tiny_repository, how):
    command = [*SERVE, "--repository", str(tiny_repository), *FREE_PORTS, *(["--watch"] if how == "watch" else [])]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        killed_at_last(process),
    ):
        said = iter(process.stdout.readline, "")
        assert any("Ctrl-C" in line for line in said)
        add_version(tiny_repository, threshold=0.6)
        if how == "signal":
            process.send_signal(signal.SIGHUP)
        assert next(said) == "Now serving tiny (version 2).\n"
        add_version(tiny_repository, damaged=True)
        if how == "signal":
            process.send_signal(signal.SIGHUP)
        assert next(line for line in said if "Not loaded" in line).endswith("; tiny (version 2) served on.\n")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=END_TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
