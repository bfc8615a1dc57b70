"""A real server of the S3 protocol in this process. Import it as ``object_store`` (see conftest.py)."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import obstore
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

_numbers = itertools.count()


@contextmanager
def served_bucket(monkeypatch):
    """Yield the address of an empty bucket and its store; the environment says how it is reached."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("ENDPOINT_URL", f"http://{host}:{port}"),
            ("ALLOW_HTTP", "true"),
            ("ACCESS_KEY_ID", "test"),
            ("SECRET_ACCESS_KEY", "test"),
            ("REGION", "us-east-1"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        bucket = f"clips-{next(_numbers)}"
        # A bucket is made by a PUT of its name.
        import urllib.request

        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/{bucket}", method="PUT")).close()
        yield f"s3://{bucket}", S3Store.from_url(f"s3://{bucket}")
    finally:
        server.stop()


def put(store, path: str, content: bytes) -> None:
    """Put an object."""
    obstore.put(store, path, content)
