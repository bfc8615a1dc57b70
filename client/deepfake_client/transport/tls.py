"""TLS: which certificates are trusted and shown, and why a secured connection could not be made."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from deepfake_preprocess.errors import OptionError

PROBE_TIMEOUT_S = 3.0
ALERT_TIMEOUT_S = 0.5
"""How long the probe waits for a server that says what it thinks of our certificate (TLS 1.3 does so late)."""

_EXPIRED, _NOT_YET_VALID = 10, 9  # X509_V_ERR_* of OpenSSL's <openssl/x509_vfy.h>
_WRONG_NAME = (62, 64)
_NO_TLS_REASONS = (
    "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG",
    "UNEXPECTED_EOF_WHILE_READING",
)  # fmt: skip
"""What OpenSSL makes of answers in plain text, and of a server that hangs up on a greeting it does not understand."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is secured.

    Attributes:
        ca: PEM file with the certificates to trust; public authorities when None.
        certificate: PEM file with the client's own certificate, for servers that ask for one (mTLS).
        key: PEM file with its private key, not encrypted.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise OptionError("`tls.certificate` and `tls.key` belong together; give both or none of them")

    def context(self) -> ssl.SSLContext:
        """Return the settings for Python's own TLS.

        Raises:
            OptionError: a file is missing, is no PEM, or certificate and key do not fit.
        """
        self.read()
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, ValueError) as exc:
            raise OptionError(f"{self.ca}: this is not a PEM file of certificates to trust") from exc
        if self.certificate is not None and self.key is not None:
            try:
                # The empty password keeps OpenSSL from asking for one on the terminal.
                context.load_cert_chain(self.certificate, self.key, password="")
            except (ssl.SSLError, ValueError) as exc:
                raise OptionError(
                    f"{self.certificate} and {self.key} are no PEM certificate and its unencrypted key ({exc})"
                ) from exc
        return context

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the contents of `ca`, `key` and `certificate`, None for each that is not given."""
        return _read(self.ca), _read(self.key), _read(self.certificate)


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as exc:
        raise OptionError(f"{os.fspath(path or '')}: cannot be read ({exc.strerror})") from exc


def diagnose(host: str, port: int, tls: Tls | None, *, alpn: str, worked_before: bool) -> str | None:
    """Say why a connection could not be secured, by trying; blocks for a few seconds at most.

    gRPC reports most of these cases as "Socket closed", and each protocol in words of its own. `alpn` is ``h2`` or
    ``http/1.1``. If it `worked_before`, a server that hangs up is taken for absent, as behind a TLS proxy, and not
    for one that dislikes our certificate.

    Returns what is wrong and what to do, to follow "the server at ..."; None when TLS is not the reason.
    """
    encrypted = False
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as plain:
            family, address = plain.family, plain.getpeername()
        # Made only now: it loads certificates for some 20 ms of CPU time, and mostly nothing listens.
        context = _probing(tls, alpn)
        # Wrapped before it connects: a connection that breaks while it is wrapped would leave a socket open.
        with context.wrap_socket(socket.socket(family), server_hostname=host) as secured:
            secured.settimeout(PROBE_TIMEOUT_S)
            secured.connect(address)
            if tls is None:
                return "speaks TLS; set `tls`, or `tls.ca` for a certificate of your own"
            encrypted = True
            secured.settimeout(ALERT_TIMEOUT_S)
            hung_up = not secured.recv(1)
    except ssl.SSLCertVerificationError as exc:
        return _certificate_sentence(exc, host)
    except ssl.SSLEOFError as exc:
        return None if worked_before else _handshake_sentence(exc, tls)
    except ssl.SSLError as exc:
        return _handshake_sentence(exc, tls)
    except TimeoutError:
        return None
    except OSError:
        # Before the handshake: nothing listens there (any more).
        hung_up = encrypted
    if worked_before or not hung_up:
        return None
    if tls is None or tls.certificate is None:
        return (
            "hung up after the TLS handshake; if it asks for a client certificate, give one with `tls.certificate` "
            "and `tls.key`"
        )
    return "hung up after the TLS handshake; give a client certificate that it trusts"


def _probing(tls: Tls | None, alpn: str) -> ssl.SSLContext:
    """Return the settings of a probe; without `tls`, any certificate will do."""
    if tls is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context = tls.context()
    context.set_alpn_protocols([alpn])
    return context


def _certificate_sentence(exc: ssl.SSLCertVerificationError, host: str) -> str:
    if exc.verify_code == _EXPIRED:
        return "has a certificate that has expired; renew it on the server"
    if exc.verify_code == _NOT_YET_VALID:
        return "has a certificate that is not valid yet; compare the clocks of both machines"
    if exc.verify_code in _WRONG_NAME:
        return f"has a certificate for another name than {host!r}; use a name that is in the certificate"
    return (
        f"has a certificate that no trusted authority has signed ({exc.verify_message}); "
        "give its authority with `tls.ca`"
    )


def _handshake_sentence(exc: ssl.SSLError, tls: Tls | None) -> str | None:
    reason = (exc.reason or "").upper()
    alert = "ALERT" in reason
    if tls is None:
        # A server that refuses by a TLS alert speaks TLS.
        return "speaks TLS and refused a connection without certificate; set `tls`" if alert else None
    if alert and tls.certificate is None:
        return "asks for a client certificate; give one with `tls.certificate` and `tls.key`"
    if alert:
        return f"refused the client certificate ({reason.lower().replace('_', ' ')}); give one that it trusts"
    if reason in _NO_TLS_REASONS:
        return "does not speak TLS on this port; leave `tls` out, or connect to the port that does"
    return f"ended the TLS handshake ({reason.lower().replace('_', ' ') or exc}); look at its log"
