"""TLS and mTLS: gRPC against Triton's own, HTTP and damaged certificates through a relay that ends TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pytest
import trustme
from tiny_model import TINY_SPEC

from deepfake_client import NO_RETRY, Connection, DeepfakeClient, Health, OptionError, ServerTlsError, Tls, connect
from deepfake_client.transport.tls import diagnose
from deepfake_serve import EmbeddedTriton

FACES = np.zeros((2, TINY_SPEC.input_height_px, TINY_SPEC.input_width_px, 3), np.uint8)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """PEM files: of the authority and of another one, and for each a client certificate with its key."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, ca in (("ours", authority), ("other", trustme.CA())):
        ca.cert_pem.write_to_path(folder / f"{name}-ca.pem")
        client = ca.issue_cert("client@example.org")
        client.private_key_pem.write_to_path(folder / f"{name}.key")
        client.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    local = authority.issue_cert("localhost")
    local.private_key_pem.write_to_path(folder / "server.key")
    local.cert_chain_pems[0].write_to_path(folder / "server.pem")
    return folder


@pytest.fixture(scope="module")
def tls_triton(shared_tiny_repository, files):
    """Triton whose gRPC wants certificates of both sides; its own is for `localhost`, not for 127.0.0.1."""
    flags = [
        "grpc-use-ssl=true",
        "grpc-use-ssl-mutual=true",
        f"grpc-server-cert={files / 'server.pem'}",
        f"grpc-server-key={files / 'server.key'}",
        f"grpc-root-cert={files / 'ours-ca.pem'}",
    ]
    with EmbeddedTriton(shared_tiny_repository, flags=flags) as triton:
        yield triton


@pytest.fixture
def mutual(files):
    return Tls(files / "ours-ca.pem", files / "ours.pem", files / "ours.key")


def health(url: str, **options: object) -> Health:
    async def scenario() -> Health:
        transport = connect(Connection(url=url, retry=NO_RETRY, **options))
        try:
            return await transport.health()
        finally:
            await transport.close()

    return asyncio.run(scenario())


def named(triton: EmbeddedTriton) -> str:
    return triton.grpc_url.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize("protocol", ["grpc", "grpc-shm"])
def test_mutual_tls_with_triton_itself(tls_triton, mutual, protocol):
    with DeepfakeClient(Connection(url=named(tls_triton), protocol=protocol, tls=mutual)) as client:
        assert client.score(FACES) == pytest.approx([0.5, 0.5])


def test_certificates_that_triton_or_we_refuse_are_told_in_one_sentence(tls_triton, files, mutual):
    url = named(tls_triton)
    assert health(url, tls=mutual).ready
    for tls, says in (
        (None, "speaks TLS.*`tls`"),
        (Tls(files / "ours-ca.pem"), "asks for a client certificate.* give one with `tls.certificate`"),
        (
            Tls(files / "ours-ca.pem", files / "other.pem", files / "other.key"),
            "(refused|give) (the|a) client certificate",
        ),
        (Tls(files / "other-ca.pem", files / "ours.pem", files / "ours.key"), "no trusted authority.*`tls.ca`"),
        (Tls(None, files / "ours.pem", files / "ours.key"), "no trusted authority.*`tls.ca`"),
    ):
        with pytest.raises(ServerTlsError, match=says) as caught:
            health(url, tls=tls)
        assert str(caught.value).startswith(f"the server at {url} ")
    with pytest.raises(ServerTlsError, match=r"certificate for another name than '127\.0\.0\.1'"):
        health(tls_triton.grpc_url, tls=mutual)


@contextmanager
def relay(target: str, certificate: trustme.LeafCert, *, client_authority: trustme.CA | None = None) -> Iterator[int]:
    """Serve `target` (host:port) with TLS; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if client_authority is not None:
        client_authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    host, _, port = target.rpartition(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, upstream[1]), copy(upstream[0], writer))

    async def serve() -> None:
        listener = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
        ports.append(listener.sockets[0].getsockname()[1])
        ready.set()
        await done.wait()
        listener.close()

    ports: list[int] = []
    ready = threading.Event()
    done = asyncio.Event()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # broken handshakes are what the tests are about
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_https_with_and_without_a_client_certificate(embedded_triton, authority, files, mutual):
    target = urlsplit(embedded_triton.http_url).netloc
    with relay(target, authority.issue_cert("localhost")) as port:
        trusted = Tls(files / "ours-ca.pem")
        with DeepfakeClient(Connection(url=f"https://localhost:{port}", tls=trusted)) as client:
            assert client.score(FACES) == pytest.approx([0.5, 0.5])
        for url, tls, says in (
            (f"https://localhost:{port}", None, "no trusted authority.*`tls.ca`"),
            (f"https://localhost:{port}", Tls(files / "other-ca.pem"), "no trusted authority.*`tls.ca`"),
            (f"http://localhost:{port}", None, "speaks TLS.*`tls`"),
            (f"https://127.0.0.1:{port}", trusted, "another name than '127"),
        ):
            with pytest.raises(ServerTlsError, match=says):
                health(url, tls=tls)
    with relay(target, authority.issue_cert("localhost"), client_authority=authority) as port:
        assert health(f"https://localhost:{port}", tls=mutual).ready
        with pytest.raises(ServerTlsError, match=r"client certificate.* give one with `tls.certificate`"):
            health(f"https://localhost:{port}", tls=trusted)


def test_a_proxy_that_hangs_up_is_taken_for_an_absent_server_once_it_has_worked(authority, files):
    """A server behind a TLS proxy is restarted: that is waited for, and not taken for trouble with certificates."""
    trusted = Tls(files / "ours-ca.pem")
    with relay("127.0.0.1:1", authority.issue_cert("localhost")) as port:
        first = diagnose("localhost", port, trusted, alpn="h2", worked_before=False)
        assert "hung up after the TLS handshake; if it asks for a client certificate" in str(first)
        assert diagnose("localhost", port, trusted, alpn="h2", worked_before=True) is None


def test_an_expired_certificate_is_called_that_with_every_protocol(embedded_triton, authority, files):
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    expired = authority.issue_cert(
        "localhost", not_before=yesterday - datetime.timedelta(days=9), not_after=yesterday
    )
    trusted = Tls(files / "ours-ca.pem")
    for protocol, target in (
        ("grpc", embedded_triton.grpc_url),
        ("grpc-shm", embedded_triton.grpc_url),
        ("http", urlsplit(embedded_triton.http_url).netloc),
    ):
        with (
            relay(target, expired) as port,
            pytest.raises(ServerTlsError, match="has a certificate that has expired; renew it"),
        ):
            health(f"localhost:{port}", protocol=protocol, tls=trusted)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tls_where_none_is_spoken_is_told(embedded_triton, files, protocol):
    url = embedded_triton.http_url.removeprefix("http://") if protocol == "http" else embedded_triton.grpc_url
    with pytest.raises(ServerTlsError, match="does not speak TLS on this port; leave `tls` out"):
        health(url, protocol=protocol, tls=Tls(files / "ours-ca.pem"))


@pytest.mark.parametrize("protocol", ["grpc", "http", "grpc-shm"])
def test_files_that_are_no_certificates_are_refused_before_connecting(files, protocol):
    (files / "text.pem").write_text("no certificate")
    for tls, says in (
        (Tls(files / "none.pem"), "none.pem: cannot be read"),
        (Tls(files / "text.pem"), "text.pem: this is not a PEM file of certificates to trust"),
        (Tls(None, files / "ours.pem", files / "other.key"), "no PEM certificate and its unencrypted key"),
    ):
        with pytest.raises(OptionError, match=says):
            connect(Connection(url="localhost:1", protocol=protocol, tls=tls))
    with pytest.raises(OptionError, match="belong together"):
        Tls(certificate=files / "ours.pem")
