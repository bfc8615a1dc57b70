"""The public names of `deepfake_preprocess`: all that are needed, each importable, none paid for before its use."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from public_api import unexported_types

import deepfake_preprocess
from deepfake_preprocess import errors


def test_the_stub_lists_what_it_imports_and_every_name_is_there():
    stub = ast.parse(Path(deepfake_preprocess.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert listed == sorted(listed)
    assert set(listed) == set(deepfake_preprocess.__all__)
    assert [name for name in listed if not hasattr(deepfake_preprocess, name)] == []


def test_the_whole_error_tree_is_exported():
    tree = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert tree <= set(deepfake_preprocess.__all__)


def test_what_public_signatures_mention_is_exported():
    assert unexported_types(deepfake_preprocess) == []


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'deepfake_preprocess' has no attribute 'nothing'"):
        deepfake_preprocess.nothing  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used():
    code = "import sys, deepfake_preprocess; print({'av', 'cv2', 'numpy', 'onnxruntime', 'yaml'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
