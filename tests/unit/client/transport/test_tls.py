"""Why a connection could not be secured, and that nothing is made for a server that is not there."""

import gc
import socket
import ssl
import struct
import threading

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


@pytest.mark.parametrize("taken", [0, 1])
def test_a_server_that_goes_meanwhile_is_absent_and_leaves_no_socket(taken, monkeypatch):
    real = module._probing
    with listening("127.0.0.1", 0) as listener:

        def probing(*args):
            for _ in range(taken):
                reset(listener.accept()[0])
            # The next connection is accepted by nobody, and broken off with those that wait.
            threading.Timer(0.1, listener.close).start()
            return real(*args)

        monkeypatch.setattr(module, "_probing", probing)
        assert diagnose("127.0.0.1", listener.getsockname()[1], None, alpn="h2", worked_before=True) is None
    gc.collect()  # an open socket is an error of this test


def reset(connection):
    """Break a connection off as a process does that was killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
