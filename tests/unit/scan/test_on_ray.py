"""The engine of a cluster, without one."""

import types

import pytest

from deepfake_preprocess.errors import ServerUnavailableError
from deepfake_scan.engines.on_ray import _start


@pytest.mark.parametrize(("address", "said"), [("", "start here"), ("head:6379", "no Ray cluster at head:6379")])
def test_a_ray_that_does_not_start_is_one_sentence(address, said, monkeypatch):
    ended = []

    def init(**options):
        raise Exception("The current node timed out during startup. \nSee the log.")

    ray = types.SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: ended.append(True))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ServerUnavailableError, match=said) as raised:
        _start(ray)
    assert "(The current node timed out during startup)" in str(raised.value)
    assert ended
