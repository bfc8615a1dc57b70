"""Why a connection could not be secured, and that nothing is made for a server that is not there."""

import gc
import socket
import ssl
import struct

import pytest

from deepfake_client.transport import tls as module
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


def test_a_server_that_goes_while_certificates_are_loaded_is_absent_and_leaves_no_socket(monkeypatch):
    real = module._probing
    with listening("127.0.0.1", 0) as listener:

        def probing(*args):
            accepted, _ = listener.accept()
            # A reset, as from a process that was killed.
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            return real(*args)

        monkeypatch.setattr(module, "_probing", probing)
        assert diagnose("127.0.0.1", listener.getsockname()[1], None, alpn="h2", worked_before=True) is None
    gc.collect()  # an open socket is an error of this test
