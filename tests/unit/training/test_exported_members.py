"""The public names of `deepfake_training`: all that are needed, each importable, none paid for before its use."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from public_api import unexported_types

import deepfake_training


def test_the_stub_lists_what_it_imports_and_every_name_is_there() -> None:
    stub = ast.parse(Path(deepfake_training.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert set(listed) == set(deepfake_training.__all__)
    assert [name for name in listed if not hasattr(deepfake_training, name)] == []


def test_what_public_signatures_mention_of_this_package_is_exported() -> None:
    assert [item for item in unexported_types(deepfake_training) if "deepfake_training." in item] == []


def test_what_measures_a_server_needs_no_pytorch() -> None:
    code = """if True:
        import sys
        import deepfake_training
        print({"numpy", "sklearn", "matplotlib"} & {*sys.modules})
        for name in ("labeled_files", "score_files", "evaluate_files", "write_report", "DEGRADATIONS"):
            getattr(deepfake_training, name)
        print({"torch", "timm", "safetensors"} & {*sys.modules})
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set()", "set()"]
