"""Nothing on this machine is asked through a proxy; of other hosts, messages name the one in between."""

import pytest

from deepfake_preprocess.support.proxies import is_loopback, through_proxy


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"])
def test_this_machine(host, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert is_loopback(host)
    assert through_proxy(host, ("http_proxy",)) == ""


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "localhost.example.org", "127.example.org", ""])
def test_other_machines(host):
    assert not is_loopback(host)


def test_the_first_variable_that_is_set_is_named_without_a_password(monkeypatch):
    for name in ("grpc_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    monkeypatch.setenv("http_proxy", "http://other:1")
    said = through_proxy("gpu-host", ("grpc_proxy", "https_proxy", "http_proxy"))
    assert "through the proxy http://proxy:3128 (https_proxy in the environment)" in said
    assert "secret" not in said
    assert through_proxy("gpu-host", ("grpc_proxy",)) == ""
    monkeypatch.setenv("no_proxy", "gpu-host,.example.org")
    assert through_proxy("gpu-host", ("https_proxy",)) == ""
