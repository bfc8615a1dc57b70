"""Why a connection could not be secured, and that nothing is made for a server that is not there."""

import ssl

import pytest

from deepfake_client.transport.tls import Tls, diagnose
from deepfake_preprocess.support.sockets import listening


@pytest.mark.parametrize("tls", [None, Tls()])
def test_no_certificates_are_loaded_where_nothing_listens(tls, monkeypatch):
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    made = []
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: made.append("certificates"))
    assert diagnose("127.0.0.1", port, tls, alpn="h2", worked_before=True) is None
    assert made == []
