"""Videos at an address: which addresses are accepted, how FFmpeg may reach them, and what its errors mean.

An address is opened only because a caller passed it in. Its content may name further addresses only as a playlist of
a live stream, and never a file of this machine.
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

from deepfake_preprocess.errors import DeepfakeError, MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.media.foreign import foreign_errors
from deepfake_preprocess.media.opening import CONTAINERS, Media, video_media
from deepfake_preprocess.media.video import Video
from deepfake_preprocess.support.proxies import is_loopback, through_proxy
from deepfake_preprocess.support.text import reason_of

TIMEOUT_S: Final = 10.0
"""Limit for opening an address, and for each read from it."""

_PROTOCOLS: Final = {
    "http": "http,https,httpproxy,tcp,tls,crypto",
    "https": "https,httpproxy,tcp,tls,crypto",
    "rtsp": "rtsp,rtp,udp,tcp,http",
    "rtsps": "rtsps,rtsp,rtp,srtp,udp,tcp,tls,https",
}
# Still images; FFmpeg's demuxer "image2" reads files only.
_IMAGES: Final = "jpeg_pipe,png_pipe,webp_pipe"
_LIVE: Final = "hls,mpjpeg,rtsp"

_TLS_PORTS: Final = {"https": 443, "rtsps": 322}
# The FFmpeg that comes with PyAV looks for Red Hat's file only. Debian's, Red Hat's, and Alpine's or macOS's:
_CERTIFICATE_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem",
)  # fmt: skip


def is_url(text: str) -> bool:
    """Return whether `text` has the form of an address (``scheme://...``)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def without_password(text: str) -> str:
    """Return an address without user and password, for messages and reports; anything else unchanged."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1", text)


def open_url(url: str) -> Media:
    """Open a video of finite length, or an image, at an http or https address.

    Where the server supports range requests, these are used for seeking.

    Args:
        url: the address; ``user:password@`` before the host is sent to the server and shown nowhere.

    Raises:
        MediaNotFoundError: the server does not have it.
        MediaOpenError: it cannot be reached, is not a video or an image, or has no end.
    """
    name = without_password(url)
    scheme = _scheme(url)
    if scheme.startswith("rtsp"):
        raise MediaOpenError(f"{name} is a live stream without an end; watch it instead of analyzing it")
    formats, options = f"{CONTAINERS},{_IMAGES}", {"reconnect": "1", "reconnect_delay_max": "2"}
    with foreign_errors(name), url_errors(name, TIMEOUT_S):
        video = Video(lambda: _open(url, formats, dict(options), TIMEOUT_S), name)
    media = video_media(video, name)
    if media.duration_s is None and video.container.format.name not in _IMAGES.split(","):
        media.close()
        raise MediaOpenError(f"{name} does not state its length; watch it, or download it first")
    return media


def open_live_url(
    url: str,
    *,
    timeout_s: float = TIMEOUT_S,
    source_ca: str | os.PathLike[str] | None = None,
    source_proxy: str | None = None,
) -> av.container.InputContainer:
    """Open a live stream (RTSP, HLS, MPEG-TS or JPEG pictures over HTTP), or any video at an address.

    The limit holds for opening and for each read; `source_ca` and `source_proxy` are those of `open_live`, errors of
    `open_url`.
    """
    # Over TCP a slow reader makes the camera wait; over UDP, pictures would be damaged.
    options = {"rtsp_transport": "tcp"} if _scheme(url).startswith("rtsp") else {}
    return _open(url, f"{CONTAINERS},{_LIVE}", options, timeout_s, source_ca, source_proxy)


def check_certificates(path: str | os.PathLike[str]) -> None:
    """Raise `OptionError` where a file is not a PEM file of certificates to trust."""
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as exc:
        raise OptionError(f"{os.fspath(path)}: this is not a PEM file of certificates to trust") from exc


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
    source_ca: str | os.PathLike[str] | None = None,
    source_proxy: str | None = None,
) -> av.container.InputContainer:
    name = without_password(url)
    options |= {"format_whitelist": formats, "protocol_whitelist": _PROTOCOLS[_scheme(url)]}
    options["tls_verify"] = "1"  # for http too, which may redirect to https
    if source_proxy is not None:
        options["http_proxy"] = source_proxy
    elif is_loopback(urlsplit(url).hostname or ""):
        options["http_proxy"] = ""  # or FFmpeg would ask a proxy even for this machine
    trusted = _system_certificates() if source_ca is None else os.fspath(source_ca)
    if trusted is not None:
        options["ca_file"] = trusted
    try:
        with url_errors(name, timeout_s):
            return av.open(
                url, mode="r", container_options=options, timeout=(timeout_s, timeout_s), metadata_errors="replace"
            )
    except MediaOpenError as exc:
        # FFmpeg has no error of its own for an untrusted certificate.
        if getattr(exc.__cause__, "errno", None) != errno.EIO or not (why := _mistrust(url, trusted, timeout_s)):
            raise
        raise MediaOpenError(
            f"the certificate of {name} is not trusted ({why}); if your own authority signed it, name its PEM file "
            "as source_ca to watch the address, or else in the environment variable SSL_CERT_FILE"
        ) from exc


def _system_certificates() -> str | None:
    """Return the file of the certificates that this machine trusts, which SSL_CERT_FILE overrides."""
    named = ssl.get_default_verify_paths().cafile
    return named or next((path for path in _CERTIFICATE_FILES if Path(path).is_file()), None)


def _mistrust(url: str, trusted: str | None, timeout_s: float) -> str:
    """Return why the certificate at an address is not trusted, by connecting; empty when it is trusted."""
    place = urlsplit(url)
    default_port = _TLS_PORTS.get(place.scheme.lower())
    if default_port is None or place.hostname is None:
        return ""
    context = ssl.create_default_context(cafile=trusted)
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
    """Translate what PyAV raises about an address; the only place that does."""
    proxy = through_proxy(urlsplit(name).hostname or "", ("http_proxy",)) if name.startswith("http") else ""
    try:
        yield
    except DeepfakeError:
        raise
    except av.error.HTTPNotFoundError as exc:
        raise MediaNotFoundError(f"the server has no {name} (404); check the address") from exc
    except (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError) as exc:
        raise MediaOpenError(
            f"the server denies access to {name} ({exc.strerror}); put user:password@ before the host, or ask its "
            "owner"
        ) from exc
    except av.error.HTTPError as exc:
        raise MediaOpenError(
            f"the server refuses {name} ({exc.strerror}); check the address, or try later{proxy}"
        ) from exc
    except (av.error.ExitError, av.error.TimeoutError) as exc:
        raise MediaOpenError(
            f"{name} sent nothing for {timeout_s:g} s; check that its server is up and the network fast enough{proxy}"
        ) from exc
    except av.error.ConnectionRefusedError as exc:
        raise MediaOpenError(f"nothing answers at {name} (connection refused); check host and port{proxy}") from exc
    except av.error.InvalidDataError as exc:
        raise MediaOpenError(
            f"{name} is not a video that we can read; check that it plays, and that the address is that of the video "
            "and not of a page around it"
        ) from exc
    except (av.error.FFmpegError, OSError) as exc:
        # What FFmpeg calls an unknown host, a connection that breaks off, and more.
        vague = exc.errno == errno.EIO or isinstance(exc, av.error.EOFError)
        reason = "" if vague else f" ({reason_of(exc)})"
        raise MediaOpenError(f"{name} cannot be read{reason}; check the host's name and the network{proxy}") from exc
