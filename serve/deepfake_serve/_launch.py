"""What a start of the embedded server needs: room, the backends laid out, environment and command line.

Nothing here starts a process.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import deepfake_preprocess
import deepfake_serve
from deepfake_preprocess.contract.triton_config import EMBEDDED_BACKEND
from deepfake_preprocess.errors import ServerStartError
from deepfake_serve._plan import HOST, SHARED_MEMORY, STOP_TIMEOUT_S, Plan
from deepfake_serve._pulse import FOLDER_VARIABLE
from deepfake_serve._repository import CheckedModel
from deepfake_serve._runtime import TritonRuntime, library_path
from deepfake_serve._shares import CpuShare

MIN_SHARED_MEMORY_MB = 16
POLL_REPOSITORY_S = 1


def check_shared_memory(models: Sequence[CheckedModel], shares: Mapping[str, CpuShare]) -> None:
    """Refuse a start for which there is too little room in /dev/shm.

    Raises:
        ServerStartError: says how much is needed.
    """
    try:
        free_mb = shutil.disk_usage(SHARED_MEMORY).free // 2**20
    except OSError as exc:
        raise ServerStartError(
            f"Triton's Python backend needs {SHARED_MEMORY}, which is not there ({exc.strerror})"
        ) from exc
    instances = sum(share.instances for share in shares.values())
    needed_mb = sum(shares[model.spec.name].instances * shared_memory_mb(model) for model in models)
    if free_mb < needed_mb:
        raise ServerStartError(
            f"{SHARED_MEMORY} has {free_mb} MB free, and {instances} model instances need {needed_mb} MB; "
            f"enlarge it (in Docker: shm_size {max(256, 2 * needed_mb)}m) or lower `instances`"
        )


def shared_memory_mb(model: CheckedModel) -> int:
    """Return what an instance may come to need, in MiB: the crops of two of the largest batches, and answers."""
    batch_bytes = int(model.config.max_batch_size) * model.spec.input_height_px * model.spec.input_width_px * 3
    return max(MIN_SHARED_MEMORY_MB, 2 * batch_bytes // 2**20)


def write_backends(runtime: TritonRuntime, target: Path) -> None:
    """Lay out a backend directory: Triton's Python backend, and ours on top of it."""
    target.mkdir()
    # The folder as a whole: Triton refuses a backend whose library alone is a link to elsewhere.
    (target / "python").symlink_to(runtime.python_backend, target_is_directory=True)
    ours = target / EMBEDDED_BACKEND
    ours.mkdir()
    # The stub embeds a Python in isolated mode, which ignores PYTHONPATH; so the path travels in the file.
    search_path = [str(Path(__file__).parents[1]), *(entry for entry in sys.path if entry)]
    (ours / "model.py").write_text(
        "import sys\n\n"
        f"sys.path[:0] = {search_path!r}\n"
        "from deepfake_serve._backend import TritonPythonModel  # noqa: E402, F401\n",
        encoding="utf-8",
    )


def environment_of(runtime: TritonRuntime, plan: Plan) -> dict[str, str]:
    """Return the environment of the supervisor, of Triton and of its backend processes."""
    return {
        **os.environ,
        FOLDER_VARIABLE: str(plan.pulses),
        "LD_LIBRARY_PATH": library_path(runtime),
        # The stub finds its standard library through the first `python3` on the path.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # This server runs on the CPU; with a GPU in sight it would set aside memory there.
        "CUDA_VISIBLE_DEVICES": "",
    }


def command_line(
    runtime: TritonRuntime,
    run_dir: Path,
    ports: Mapping[str, int],
    shm_prefix: str,
    shm_mb: int,
    more_flags: Sequence[str],
) -> list[str]:
    """Return the command that starts Triton on a view of a repository; each instance gets `shm_mb` MiB to share."""
    flags = [
        f"model-repository={run_dir / 'repository'}",
        f"backend-directory={run_dir / 'backends'}",
        f"backend-config=python,shm-region-prefix-name={shm_prefix}",
        # From the start: a region that grows while both sides use it has crashed Triton.
        f"backend-config=python,shm-default-byte-size={shm_mb << 20}",
        # What changes in the private view of the repository is served; requests can load and drop nothing.
        "model-control-mode=poll",
        f"repository-poll-secs={POLL_REPOSITORY_S}",
        # A strict server calls itself not ready while it loads a new version, although the one before answers.
        "strict-readiness=false",
        "disable-auto-complete-config",
        f"exit-timeout-secs={int(STOP_TIMEOUT_S)}",
        "allow-gpu-metrics=false",
        *(f"{kind}-address={HOST}" for kind in ("grpc", "http", "metrics")),
        *(f"{name}-port={port}" for name, port in ports.items()),
    ]
    return [str(runtime.tritonserver), *(f"--{flag}" for flag in (*flags, *more_flags))]


def supervisor_command(plan_path: Path) -> list[str]:
    """Return the command that starts the supervisor."""
    # Isolated and without site: it needs the standard library only, and starts faster.
    search_path = [str(Path(package.__file__ or "").parents[1]) for package in (deepfake_serve, deepfake_preprocess)]
    code = (
        f"import sys; sys.path[:0] = {search_path!r}; "
        "from deepfake_serve._supervisor import main; sys.exit(main(sys.argv[1]))"
    )
    return [sys.executable, "-I", "-S", "-c", code, str(plan_path)]
