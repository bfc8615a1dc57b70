"""A repository is changed beside a real Triton that serves it: export, rollback and prune against the next start."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import psutil
import pytest
import tritonclient.grpc
from tiny_model import TINY_SPEC, write_tiny_onnx

from deepfake_export.repository.activation import activate
from deepfake_export.repository.listing import inspect_repository
from deepfake_export.repository.locks import locked
from deepfake_export.repository.pruning import prune
from deepfake_export.repository.staging import publish, staged
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.model_dir import lock_holders, versions_of
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import config_parameters
from deepfake_preprocess.contract.version_files import MODEL_FILE
from deepfake_preprocess.errors import RepositoryError
from deepfake_serve import EmbeddedTriton

END_TIMEOUT_S = 30


def add_version(root, threshold):
    with locked(root, "tiny"), staged(root, "tiny") as version_dir:
        spec = dataclasses.replace(TINY_SPEC, version=int(version_dir.name), threshold=threshold)
        write_tiny_onnx(version_dir / MODEL_FILE, spec)
        manifest = Manifest(spec, file_hashes(version_dir), "fp32")
        manifest.write(version_dir)
        publish(root, manifest, max_batch_size=8)


def what_triton_serves(triton):
    with tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client:
        (version,) = client.get_model_metadata("tiny").versions
        spec = ModelSpec.from_parameters(config_parameters(client.get_model_config("tiny").config))
        return int(version), spec.threshold


def test_a_running_server_keeps_its_version_and_the_next_one_takes_the_change(tiny_repository):
    with EmbeddedTriton(tiny_repository, instances=1) as triton:
        add_version(tiny_repository, 0.6)
        add_version(tiny_repository, 0.7)
        assert what_triton_serves(triton) == (1, 0.4)
        assert inspect_repository(tiny_repository)[0].versions[0].in_use_by
        with pytest.raises(RepositoryError, match="tiny/1 is in use by process"):
            prune(tiny_repository, "tiny", keep=2)
        assert versions_of(tiny_repository / "tiny") == [1, 2, 3]
    assert inspect_repository(tiny_repository)[0].versions[0].in_use_by == ()
    assert activate(tiny_repository, "tiny").served == 2
    with EmbeddedTriton(tiny_repository, instances=1) as triton:
        assert what_triton_serves(triton) == (2, 0.6)
        assert prune(tiny_repository, "tiny", keep=1).removed == (1,)
        assert what_triton_serves(triton) == (2, 0.6)
    assert versions_of(tiny_repository / "tiny") == [2, 3]


def test_a_version_is_in_use_until_the_server_of_a_killed_process_has_ended(tiny_repository):
    add_version(tiny_repository, 0.6)
    activate(tiny_repository, "tiny")
    code = (
        "import signal; from deepfake_serve import EmbeddedTriton\n"
        f"triton = EmbeddedTriton({str(tiny_repository)!r}, instances=1); triton.start()\n"
        "print(triton.pid, flush=True); signal.pause()"
    )
    version_dir = tiny_repository / "tiny" / "1"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        supervisor = psutil.Process(int(parent.stdout.readline()))
        assert lock_holders(version_dir) == (parent.pid,)
        activate(tiny_repository, "tiny", 2)
        with pytest.raises(RepositoryError, match=f"in use by process {parent.pid}"):
            prune(tiny_repository, "tiny", keep=1)
        parent.kill()
    psutil.wait_procs([supervisor], timeout=END_TIMEOUT_S)
    assert lock_holders(version_dir) == ()
    assert prune(tiny_repository, "tiny", keep=1).removed == (1,)
