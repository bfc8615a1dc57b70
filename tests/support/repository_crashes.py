"""Runs a change of a repository again and again, and breaks it off at each step that touches its files.

A script, run by `test_repository_crashes.py`: it forks for each try, so that a kill is a real one, and stays free of
threads for that. Usage: ``repository_crashes.py CHANGE HOW TEMPLATE TARGET``; each try works in ``TARGET/<n>``,
a copy of TEMPLATE, and the outcomes are printed as JSON.
"""

import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from deepfake_export.repository.activation import activate
from deepfake_export.repository.locks import locked
from deepfake_export.repository.pruning import prune
from deepfake_export.repository.staging import publish, staged
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import production_config
from deepfake_preprocess.contract.version_files import MODEL_FILE
from deepfake_preprocess.errors import RepositoryError

SPEC = ModelSpec(name="tiny", architecture="timm:none", checkpoint_sha256="a" * 64)
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}
TAKES_SPACE = {"os.mkdir", "open"}


def add_version(root: Path, threshold: float, name: str = SPEC.name) -> None:
    with locked(root, name), staged(root, name) as version_dir:
        spec = dataclasses.replace(SPEC, name=name, version=int(version_dir.name), threshold=threshold)
        (version_dir / MODEL_FILE).write_bytes(b"weights of %d" % spec.version)
        manifest = Manifest(spec, file_hashes(version_dir), "fp32")
        manifest.write(version_dir)
        publish(root, manifest, max_batch_size=4)


CHANGES = {
    "export": lambda root: add_version(root, 0.7),
    "rollback": lambda root: activate(root, SPEC.name),
    "prune": lambda root: prune(root, SPEC.name, keep=1),
}


def touches(event: str, arguments: tuple[object, ...], root: Path) -> bool:
    """Whether an audit event is a write below `root`."""
    if event == "open":
        path, mode, flags = arguments
        writes = (
            bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else "r" not in str(mode)
        )
        return writes and isinstance(path, str) and str(root) in path
    return event in WRITES and str(root) in str(arguments)


def break_off_at(step: int, how: str, root: Path) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if not touches(event, arguments, root):
            return
        seen += 1
        if seen <= step:
            return
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "exit":
            os._exit(77)
        elif event in TAKES_SPACE:  # the disk is full from here on, but deleting still works
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))

    sys.addaudithook(hook)


def one_try(change: str, how: str, step: int, root: Path, result: Path) -> None:
    break_off_at(step, how, root)
    try:
        CHANGES[change](root)
        outcome = "done"
    except RepositoryError as exc:
        outcome = str(exc)
    result.write_text(outcome)
    os._exit(0)


def main(change: str, how: str, template: Path, target: Path) -> None:
    # What is imported late is imported before the hook, and before the first fork.
    production_config(SPEC, precision="fp32")
    outcomes = []
    for step in range(200):
        root = target / str(step) / "models"
        shutil.copytree(template, root)
        result = target / f"{step}.txt"
        child = os.fork()
        if child == 0:
            one_try(change, how, step, root, result)
        os.waitpid(child, 0)
        outcomes.append(result.read_text() if result.exists() else "killed")
        if outcomes[-1] == "done":
            break
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
