"""Videos at an address: what is fetched, what is watched, and what is said when it cannot be had."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import trustme
from fixed_detector import LEFT, FixedDetector
from http_files import Site, free_port, serving
from media import write_video
from numpy.typing import NDArray
from rtsp_camera import filming

from deepfake_client import (
    DeepfakeClient,
    Label,
    MediaNotFoundError,
    MediaOpenError,
    OptionError,
    Verdict,
    WatchOptions,
)
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.media.remote import url_errors


def image(brightness: int) -> NDArray[np.uint8]:
    return np.full((60, 80, 3), brightness, np.uint8)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def client() -> Iterator[DeepfakeClient]:
    with DeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT)) as client:
        yield client


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """100 dark frames and 100 bright ones as MPEG-TS."""
    path = tmp_path_factory.mktemp("stream") / "stream.ts"
    write_video(path, [image(30)] * 100 + [image(220)] * 100)
    return path.read_bytes()


def watched(client: DeepfakeClient, url: str, **options: object) -> list[Verdict]:
    chosen = {"fps": 10, "window_s": 1.0, "step_s": 0.5, "source_timeout_s": 5, "reconnects": 0, **options}
    return list(client.watch(url, options=WatchOptions(**chosen)))  # type: ignore[arg-type]


def test_a_remote_file_gets_the_verdict_of_the_local_one(client: DeepfakeClient, site: Site, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, [image(value) for value in range(0, 250, 5)])
    site.files["/clip.mp4"] = path.read_bytes()
    local, remote = client.analyze(path), client.analyze(f"{site.url}/clip.mp4")
    assert remote.source == f"{site.url}/clip.mp4"
    assert remote.frames == local.frames
    (outcome,) = client.analyze_many([f"{site.url}/clip.mp4"])
    assert outcome.verdict is not None
    assert outcome.verdict.frames == local.frames


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_remote_image(client: DeepfakeClient, site: Site, kind: str) -> None:
    site.files[f"/face.{kind}"] = cv2.imencode(f".{kind}", image(200))[1].tobytes()
    verdict = client.analyze(f"{site.url}/face.{kind}")
    assert verdict.label is Label.FAKE
    assert len(verdict.frames) == 1


def refuse(code: int) -> object:
    return lambda handler: handler.send_error(code)


def test_what_cannot_be_had_is_said_in_one_sentence(client: DeepfakeClient, site: Site) -> None:
    site.files.update(
        {
            "/private.mp4": refuse(403), "/login.mp4": refuse(401), "/broken.mp4": refuse(503),  # type: ignore[dict-item]
            "/page.html": b"<html><body>watch here</body></html>" * 20, "/empty.mp4": b"",
        }
    )  # fmt: skip
    for ask in (client.analyze, lambda url: watched(client, url)):
        with pytest.raises(MediaNotFoundError, match=r"no http://.*/missing\.mp4 \(404\); check the address"):
            ask(f"{site.url}/missing.mp4")
        for name, words in (
            ("private.mp4", "denies access to"),
            ("login.mp4", "user:password@ before the host"),
            ("broken.mp4", "refuses .*try later"),
            ("page.html", "is not a video that we can read"),
            ("empty.mp4", r"empty\.mp4"),
        ):
            with pytest.raises(MediaOpenError, match=words):
                ask(f"{site.url}/{name}")
        with pytest.raises(MediaOpenError, match=r"connection refused.*check host and port"):
            ask(f"http://127.0.0.1:{free_port()}/clip.mp4")
        with pytest.raises(MediaOpenError, match="addresses may start with http://, https://, rtsp://"):
            ask("gopher://example.org/clip.mp4")
        with pytest.raises(MediaOpenError, match=r"connection refused|live stream without an end"):
            ask(f"rtsp://127.0.0.1:{free_port()}/camera")


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path, Path]:
    """An authority, its certificate, and that of another one."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    paths = folder / "ca.pem", folder / "other.pem"
    authority.cert_pem.write_to_path(str(paths[0]))
    trustme.CA().cert_pem.write_to_path(str(paths[1]))
    return authority, *paths


@pytest.fixture
def secure_site(authorities: tuple[trustme.CA, Path, Path]) -> Iterator[Site]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authorities[0].issue_cert("localhost").configure_cert(context)
    with serving(context) as site:
        yield site


def test_a_source_at_https_is_watched_when_its_certificate_is_trusted(
    client: DeepfakeClient, secure_site: Site, stream: bytes, authorities: tuple[trustme.CA, Path, Path]
) -> None:
    _, ours, other = authorities
    secure_site.files["/live.ts"] = stream
    url = f"{secure_site.url}/live.ts"
    verdicts = watched(client, url, source_ca=ours, on_slow="wait")
    assert (verdicts[0].label, verdicts[-1].label) == (Label.REAL, Label.FAKE)
    asked = list(secure_site.asked)
    for source_ca, address, words in (
        (None, url, "unable to get local issuer certificate.*name its PEM file as source_ca"),
        (other, url, "certificate verify failed|unable to get local issuer certificate|self.signed"),
        (ours, url.replace("localhost", "127.0.0.1"), "IP address mismatch"),
    ):
        with pytest.raises(MediaOpenError, match=f"^the certificate of {address} is not trusted .*{words}"):
            watched(client, address, source_ca=source_ca)
    assert secure_site.asked == asked, "nothing is asked of a server that is not trusted"


def test_the_environment_names_authorities_for_every_address(
    client: DeepfakeClient,
    secure_site: Site,
    site: Site,
    tmp_path: Path,
    authorities: tuple[trustme.CA, Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, [image(200)] * 10)
    secure_site.files["/clip.mp4"] = path.read_bytes()
    url = f"{secure_site.url}/clip.mp4"

    def lead_on(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    site.files["/moved.mp4"] = lead_on
    with pytest.raises(MediaOpenError, match=r"is not trusted .*SSL_CERT_FILE"):
        client.analyze(url)
    with pytest.raises(MediaOpenError, match=r"moved\.mp4 cannot be read"):
        client.analyze(f"{site.url}/moved.mp4")
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities[1]))
    assert client.analyze(url).label is Label.FAKE
    assert client.analyze(f"{site.url}/moved.mp4").label is Label.FAKE


def test_a_file_without_certificates_is_refused_at_once(client: DeepfakeClient, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    for name in ("text.pem", "gone.pem"):
        with pytest.raises(OptionError, match=f"{name}: this is not a PEM file"):
            client.watch("https://localhost/live.ts", options=WatchOptions(source_ca=tmp_path / name))


def test_a_camera_at_rtsps_must_be_trusted_too(
    client: DeepfakeClient, secure_site: Site, authorities: tuple[trustme.CA, Path, Path]
) -> None:
    url = secure_site.url.replace("https", "rtsps")
    with pytest.raises(MediaOpenError, match=r"the certificate of rtsps://.* is not trusted"):
        watched(client, url)
    with pytest.raises(MediaOpenError) as caught:
        watched(client, url, source_ca=authorities[1])  # trusted, but no camera
    assert "certificate" not in str(caught.value)


def test_passwords_are_sent_to_the_server_and_shown_nowhere(
    client: DeepfakeClient, site: Site, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, [image(90)] * 5)
    seen: list[str | None] = []

    def guarded(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        if seen[-1] is None:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="clips"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            handler._send(path.read_bytes())  # type: ignore[attr-defined]

    site.files["/clip.mp4"] = guarded
    host = site.url.removeprefix("http://")
    verdict = client.analyze(f"http://me:secret@{host}/clip.mp4")
    assert verdict.source == f"{site.url}/clip.mp4"
    assert "Basic bWU6c2VjcmV0" in seen
    with pytest.raises(MediaNotFoundError) as caught:
        client.analyze(f"http://me:secret@{host}/missing.mp4")
    assert "secret" not in str(caught.value)


def test_a_stream_without_an_end_is_not_analyzed_but_watched(
    client: DeepfakeClient, site: Site, stream: bytes
) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(stream)
        handler.wfile.flush()
        site.closing.wait(30)

    site.files["/live.ts"] = endless
    with pytest.raises(MediaOpenError, match="does not state its length; watch it"):
        client.analyze(f"{site.url}/live.ts")
    verdicts = client.watch(
        f"{site.url}/live.ts", options=WatchOptions(fps=10, window_s=1.0, step_s=0.5, max_latency_s=60)
    )
    seen = [next(verdicts).label, next(verdicts).label]
    verdicts.close()
    assert seen[0] is Label.REAL


def test_a_stream_that_breaks_off_is_opened_again(client: DeepfakeClient, site: Site, stream: bytes) -> None:
    def breaks_off(handler: BaseHTTPRequestHandler) -> None:
        first = site.asked.count("/live.ts") == 1
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(stream)))
        handler.end_headers()
        handler.wfile.write(stream[: len(stream) // 2] if first else stream)
        handler.close_connection = True

    site.files["/live.ts"] = breaks_off
    verdicts = watched(client, f"{site.url}/live.ts", reconnects=1, on_slow="wait")
    assert site.asked.count("/live.ts") == 2
    labels = [verdict.label for verdict in verdicts]
    assert (labels[0], labels[-1]) == (Label.REAL, Label.FAKE)
    assert verdicts[-1].frames[-1].pts_seconds > 9, "the time goes on"
    indices = [frame.index for frame in verdicts[-1].frames]
    assert indices == sorted(set(indices))


def test_a_stream_that_stalls_ends_with_a_reason(client: DeepfakeClient, site: Site, stream: bytes) -> None:
    def stalls(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(stream)
        handler.wfile.flush()
        site.closing.wait(30)

    site.files["/live.ts"] = stalls
    verdicts = client.watch(
        f"{site.url}/live.ts", options=WatchOptions(fps=10, source_timeout_s=0.7, reconnects=0, on_slow="wait")
    )
    seen: list[Verdict] = []
    with pytest.raises(MediaOpenError, match=r"sent nothing for 0\.7 s"):
        seen.extend(verdicts)
    assert "deepfake-live" not in [thread.name for thread in threading.enumerate()]


def test_an_hls_playlist_is_watched_and_may_name_no_file_of_ours(
    client: DeepfakeClient, site: Site, tmp_path: Path
) -> None:
    folder = tmp_path / "hls"
    folder.mkdir()
    write_video(
        folder / "live.m3u8", [image(30)] * 50 + [image(220)] * 50, container_format="hls", muxing={"hls_time": "1"}
    )
    for path in folder.iterdir():
        site.files[f"/{path.name}"] = path.read_bytes()
    verdicts = watched(client, f"{site.url}/live.m3u8")
    assert (verdicts[0].label, verdicts[-1].label) == (Label.REAL, Label.FAKE)
    with pytest.raises(MediaOpenError):
        client.analyze(folder / "live.m3u8")
    segment = next(path for path in folder.iterdir() if path.suffix == ".ts")
    site.files["/evil.m3u8"] = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{segment}\n#EXT-X-ENDLIST\n".encode()
    )
    with pytest.raises(MediaOpenError):
        watched(client, f"{site.url}/evil.m3u8")


def test_pictures_of_a_network_camera(client: DeepfakeClient, site: Site) -> None:
    def pictures(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        for brightness in [40] * 30 + [210] * 30:
            data = cv2.imencode(".jpg", image(brightness))[1].tobytes()
            handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
            handler.wfile.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n")
        handler.close_connection = True

    site.files["/mjpeg"] = pictures
    verdicts: list[Verdict] = []
    watching = client.watch(
        f"{site.url}/mjpeg", options=WatchOptions(fps=10, window_s=1.0, step_s=0.5, reconnects=0, on_slow="wait")
    )
    with pytest.raises(MediaOpenError, match=r"/mjpeg cannot be read"):
        verdicts.extend(watching)
    assert (verdicts[0].label, verdicts[-1].label) == (Label.REAL, Label.FAKE), "what came before it broke off counts"


def test_a_camera_over_rtsp_is_opened_again_when_it_breaks_off(client: DeepfakeClient, stream: bytes) -> None:
    verdicts: list[Verdict] = []
    with filming([stream, stream]) as camera:
        url = camera.url.replace("rtsp://", "rtsp://me:secret@")
        watching = client.watch(
            url,
            options=WatchOptions(fps=10, window_s=1.0, step_s=0.5, reconnects=1, on_slow="wait", source_timeout_s=5),
        )
        with pytest.raises(MediaOpenError, match=r"rtsp://127\S+ broke off and .* \(attempts: 1\)"):
            verdicts.extend(watching)
    assert camera.methods.count("PLAY") == 2
    assert {verdict.source for verdict in verdicts} == {camera.url}
    changes = [verdict.label for verdict in verdicts]
    assert [label for label, before in zip(changes, [None, *changes], strict=False) if label != before] == [
        Label.REAL, Label.FAKE, Label.REAL, Label.FAKE,
    ]  # fmt: skip
    assert verdicts[-1].frames[-1].pts_seconds > 15, "the time goes on"


@pytest.mark.parametrize(
    "foreign",
    [kind for kind in vars(av.error).values() if isinstance(kind, type) and issubclass(kind, av.error.FFmpegError)],
    ids=lambda kind: kind.__name__,
)
def test_no_foreign_error_gets_out(foreign: type[av.error.FFmpegError]) -> None:
    with (
        pytest.raises((MediaOpenError, MediaNotFoundError), match="http://host/clip"),
        url_errors("http://host/clip", 1),
    ):
        raise foreign(1, "something")


def test_ffmpeg_has_what_cameras_need() -> None:
    assert {"rtsp", "hls", "mpjpeg"} <= av.formats_available
    assert av.ContainerFormat("v4l2", "r").is_input
