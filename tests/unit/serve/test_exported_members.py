"""The public names of `deepfake_serve`: each importable, and nothing heavy loaded before its use."""

import subprocess
import sys

from public_api import unexported_types

import deepfake_serve


def test_public_names_are_these():
    assert sorted(deepfake_serve.__all__, key=str.casefold) == [
        *("check_repository", "CheckedModel", "CpuShare", "EmbeddedTriton", "model_share", "Ports"),
    ]
    assert [name for name in deepfake_serve.__all__ if not hasattr(deepfake_serve, name)] == []


def test_what_public_signatures_mention_is_exported():
    assert [item for item in unexported_types(deepfake_serve) if "deepfake_preprocess." not in item] == []


def test_the_backend_in_triton_loads_no_server():
    code = "import sys, deepfake_serve; print({'deepfake_serve.server', 'rich', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
