"""OpenVINO with a network for each of some batch sizes: every batch is answered, crop by crop and in order."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_model import TINY_SPEC, write_tiny_onnx

from deepfake_preprocess.support import engines
from deepfake_preprocess.support.engines import open_network

pytest.importorskip("openvino")

SHAPE = (TINY_SPEC.input_height_px, TINY_SPEC.input_width_px, 3)
CROPS = np.random.default_rng(5).integers(0, 256, (9, *SHAPE), dtype=np.uint8)


@pytest.mark.parametrize("sizes", [(), (1,), (1, 2), (4, 1)])
def test_a_batch_of_any_size_is_computed_in_parts_of_those_compiled(tmp_path, sizes):
    path = tmp_path / "model.onnx"
    write_tiny_onnx(path)
    outputs = ["fake_probability", "logit"]
    expected = open_network(path, outputs, threads=1)(CROPS)
    network = open_network(path, outputs, engine="openvino", threads=1, sizes=sizes)
    for count in range(1, len(CROPS) + 1):
        for found, wanted in zip(network(CROPS[:count]), expected, strict=True):
            np.testing.assert_allclose(found, wanted[:count], atol=1e-5)


GONE = """
import os, signal, sys
from pathlib import Path
from deepfake_preprocess.support.engines import open_network

def opened():
    return open_network(Path(sys.argv[1]), ["logit"], engine="openvino", threads=1)

signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first, second = opened(), opened()
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_networks_went_in_the_order_in_which_they_came(tmp_path):
    path = tmp_path / "model.onnx"
    write_tiny_onnx(path)
    done = subprocess.run([sys.executable, "-c", GONE, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "handled\n", "")


def test_threads_that_open_networks_at_the_same_time_share_one_core(monkeypatch):
    made, second = [], threading.Event()

    class Core:
        def __init__(self):
            made.append(self)
            if len(made) > 1:
                second.set()
            second.wait(0.2)  # for another thread, if one gets here

    monkeypatch.setattr(engines, "require_extra", lambda *_, **__: types.SimpleNamespace(Core=Core))
    # The real core of this process stays the only one.
    monkeypatch.setattr(engines, "_made_core", functools.cache(engines._made_core.__wrapped__))
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: engines._core(), range(2))
    assert one is other
    assert made == [one]
