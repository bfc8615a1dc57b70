"""Real servers of the protocols of S3, GCS and Azure. Import it as ``object_store`` (see conftest.py)."""

from __future__ import annotations

import atexit
import base64
import hmac
import itertools
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from email.utils import formatdate
from functools import cache

import obstore
import pytest
from http_files import free_port
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from obstore.store import from_url
from werkzeug.serving import make_server

HAS_AZURITE = shutil.which("azurite-blob") is not None
"""`npm install -g azurite`"""
AZURE = pytest.param("az", marks=pytest.mark.skipif(not HAS_AZURITE, reason="no azurite-blob here"))
SCHEMES = ("s3", "gs", AZURE)
AZURE_ACCOUNT = "devstoreaccount1"
# Azurite's own, the same everywhere.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_numbers = itertools.count()


@contextmanager
def served_bucket(monkeypatch, scheme="s3"):
    """Yield the address of an empty bucket and its store; the environment says how it is reached."""
    bucket = f"clips{next(_numbers)}"  # Google's client escapes a hyphen, which moto takes for part of the name
    with _azure(bucket) if scheme == "az" else _moto(bucket, scheme) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield f"{scheme}://{bucket}", from_url(f"{scheme}://{bucket}")


def put(store, path: str, content: bytes) -> None:
    """Put an object."""
    obstore.put(store, path, content)


@contextmanager
def _moto(bucket, scheme):
    server = make_server(
        "127.0.0.1", 0, _signed_as_for_s3(DomainDispatcherApplication(create_backend_app)), threaded=True
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.port}"
    try:
        _ask(url, "PUT", f"/{bucket}")
        yield _of_s3(url) if scheme == "s3" else _of_gcs(url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _azure(bucket):
    url = _azurite()
    _make_container(url, bucket)
    yield {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": url}


def _of_s3(url):
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


def _of_gcs(url):
    """Return how object_store's GCS client, which speaks the XML API, reaches a server of S3, of which that is a kin.

    The emulators of GCS that can be had answer the JSON API only.
    """
    account = {
        "gcs_base_url": url,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "GOOGLE_ALLOW_HTTP": "true"}


def _signed_as_for_s3(app):
    """Sign what Google's client does not: moto tells by a signature what is asked for by whom."""

    def answer(environ, start_response):
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):
            environ["HTTP_AUTHORIZATION"] = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
        return app(environ, start_response)

    return answer


@cache
def _azurite():
    """Start Azurite, once for all tests of this process; return its address."""
    port, folder = free_port(), tempfile.mkdtemp()
    process = subprocess.Popen(
        [
            *("azurite-blob", "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", folder),
            *("--silent", "--skipApiVersionCheck", "--disableTelemetry"),
        ]
    )

    def end():
        process.kill()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return f"http://127.0.0.1:{port}"
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError("Azurite did not start")


def _make_container(url, name):
    """Make a container; object_store makes none. Signed as the service's documentation of Shared Key says."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    what = f"x-ms-date:{date}\nx-ms-version:{version}\n/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    key = hmac.digest(base64.b64decode(AZURE_KEY), ("PUT" + 12 * "\n" + what).encode(), "sha256")
    signature = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(key).decode()}"
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": signature, "Content-Length": "0"}
    _ask(url, "PUT", f"/{AZURE_ACCOUNT}/{name}?restype=container", headers)


def _ask(url, method, path, headers=None):
    urllib.request.urlopen(urllib.request.Request(url + path, method=method, headers=headers or {})).close()
