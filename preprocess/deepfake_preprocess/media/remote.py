"""Videos at an address: which addresses are taken, how FFmpeg may reach them, and what its errors mean.

An address is opened only because a caller handed it in. What lies there may name further addresses only as a
playlist that is watched live, and never a file of this machine.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import av

from deepfake_preprocess.errors import MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.media.opening import CONTAINERS, Media, describe

TIMEOUT_S: Final = 10.0
"""How long opening an address, and each read from it, may take."""

_PROTOCOLS: Final = {
    "http": "http,https,tcp,tls,crypto",
    "https": "https,tcp,tls,crypto",
    "rtsp": "rtsp,rtp,udp,tcp,http",
    "rtsps": "rtsps,rtsp,rtp,srtp,udp,tcp,tls,https",
}
# Still images; FFmpeg has no demuxer "image" for what is not a file.
_IMAGES: Final = "jpeg_pipe,png_pipe,webp_pipe"
_LIVE: Final = "hls,mpjpeg,rtsp"

_HTTPS_PORT: Final = 443
_RTSPS_PORT: Final = 322
# The FFmpeg that comes with PyAV looks for Red Hat's file alone. Debian's, Red Hat's, and Alpine's or macOS's.
_AUTHORITIES: Final = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem",
)  # fmt: skip


def is_url(text: str) -> bool:
    """Return whether `text` has the form of an address (``scheme://...``)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def without_password(text: str) -> str:
    """Return an address without user and password, for messages and reports; anything else as it is."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*@", r"\1", text)


def open_url(url: str, *, timeout_s: float = TIMEOUT_S) -> Media:
    """Open a video of finite length, or an image, at an http or https address.

    Reading goes back and forth by range requests where the server knows them.

    Args:
        url: the address; ``user:password@`` before the host is sent to the server and shown nowhere.
        timeout_s: how long opening, and each read, may take.

    Raises:
        MediaNotFoundError: the server does not have it.
        MediaOpenError: it cannot be reached, is no video or image, or has no end.
    """
    name = without_password(url)
    scheme = _scheme(url)
    if scheme.startswith("rtsp"):
        raise MediaOpenError(f"{name} is a live stream without an end; watch it instead of analyzing it")
    container = _open(url, f"{CONTAINERS},{_IMAGES}", {"reconnect": "1", "reconnect_delay_max": "2"}, timeout_s)
    try:
        with url_errors(name, timeout_s):
            media = describe(container, name)
    except BaseException:
        container.close()
        raise
    if media.duration_s is None and container.format.name not in _IMAGES.split(","):
        media.close()
        raise MediaOpenError(f"{name} does not say how long it is; watch it, or download it first")
    return media


def open_live_url(
    url: str, *, timeout_s: float = TIMEOUT_S, authorities: str | os.PathLike[str] | None = None
) -> av.container.InputContainer:
    """Open a live stream (RTSP, HLS, MPEG-TS or JPEG pictures over HTTP), or any video at an address.

    Args:
        url: the address.
        timeout_s: how long opening, and each read, may take.
        authorities: PEM file with the certificates to trust; those that this machine trusts when None.

    Raises:
        MediaNotFoundError: the server does not have it.
        MediaOpenError: it cannot be reached, or is no video.
    """
    # Over TCP a slow reader makes the camera wait; over UDP, pictures would be damaged.
    options = {"rtsp_transport": "tcp"} if _scheme(url).startswith("rtsp") else {}
    return _open(url, f"{CONTAINERS},{_LIVE}", options, timeout_s, authorities)


def check_authorities(path: str | os.PathLike[str]) -> None:
    """Refuse what is no PEM file of certificates to trust, with `OptionError`."""
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as exc:
        raise OptionError(f"{os.fspath(path)}: this is no PEM file of certificates to trust") from exc


def _scheme(url: str) -> str:
    scheme = urlsplit(url).scheme.lower()
    if scheme not in _PROTOCOLS:
        raise MediaOpenError(
            f"{without_password(url)}: addresses may start with {', '.join(f'{name}://' for name in _PROTOCOLS)}"
        )
    return scheme


def _open(
    url: str,
    formats: str,
    options: dict[str, str],
    timeout_s: float,
    authorities: str | os.PathLike[str] | None = None,
) -> av.container.InputContainer:
    name = without_password(url)
    # Also for http, which may lead on to https.
    options = {
        "format_whitelist": formats, "protocol_whitelist": _PROTOCOLS[_scheme(url)], "tls_verify": "1", **options
    }  # fmt: skip
    trusted = _authorities() if authorities is None else os.fspath(authorities)
    if trusted is not None:
        options["ca_file"] = trusted
    try:
        with url_errors(name, timeout_s):
            return av.open(
                url, mode="r", container_options=options, timeout=(timeout_s, timeout_s), metadata_errors="replace"
            )
    except MediaOpenError as exc:
        # FFmpeg has no error of its own for it.
        if getattr(exc.__cause__, "errno", None) != errno.EIO or not (why := _mistrust(url, trusted, timeout_s)):
            raise
        raise MediaOpenError(
            f"the certificate of {name} is not trusted ({why}); if an authority of your own has signed it, name its "
            "PEM file: `watch` takes --source-ca FILE, everything else the environment variable SSL_CERT_FILE"
        ) from exc


def _authorities() -> str | None:
    """Return the file of the authorities that this machine trusts, which SSL_CERT_FILE overrides."""
    named = ssl.get_default_verify_paths().cafile
    return named or next((path for path in _AUTHORITIES if Path(path).is_file()), None)


def _mistrust(url: str, authorities: str | None, timeout_s: float) -> str:
    """Say in a few words why the certificate at an address is not trusted, by trying; empty when it is."""
    place = urlsplit(url)
    default_port = _RTSPS_PORT if place.scheme.lower() == "rtsps" else _HTTPS_PORT
    if place.scheme.lower() not in ("https", "rtsps") or place.hostname is None:
        return ""
    context = ssl.create_default_context(cafile=authorities)
    try:
        with (
            socket.create_connection((place.hostname, place.port or default_port), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=place.hostname),
        ):
            return ""
    except ssl.SSLCertVerificationError as exc:
        return exc.verify_message
    except (OSError, ValueError):
        return ""


@contextmanager
def url_errors(name: str, timeout_s: float) -> Iterator[None]:
    """Translate what PyAV raises about an address; the one place where it is done."""
    try:
        yield
    except av.error.HTTPNotFoundError as exc:
        raise MediaNotFoundError(f"the server has no {name} (404); check the address") from exc
    except (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError) as exc:
        raise MediaOpenError(
            f"the server does not let us read {name} ({exc.strerror}); put user:password@ before the host, or ask "
            "its owner"
        ) from exc
    except av.error.HTTPError as exc:
        raise MediaOpenError(f"the server refuses {name} ({exc.strerror}); check the address, or try later") from exc
    except (av.error.ExitError, av.error.TimeoutError) as exc:
        raise MediaOpenError(
            f"{name} sent nothing for {timeout_s:g} s; is its server up and the network fast?"
        ) from exc
    except av.error.ConnectionRefusedError as exc:
        raise MediaOpenError(f"nothing answers at {name} (connection refused); check host and port") from exc
    except av.error.InvalidDataError as exc:
        raise MediaOpenError(
            f"what lies at {name} is no video that we can read; check that it plays, and that the address is that of "
            "the video and not of a page around it"
        ) from exc
    except (av.error.FFmpegError, OSError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise MediaOpenError(f"{name} cannot be read ({reason}); check the host's name and the network") from exc
