"""Real sandboxes, with a server that a function stands for: what they give, and what a medium cannot do in them."""

import asyncio
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from contextvars import copy_context
from pathlib import Path

import av
import gateways
import pytest
from http_files import serving

from deepfake_client import AnalyzeOptions, DeepfakeClient, Sampling
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_client.transport.testing import FakeTransport
from deepfake_gateway.intake.options import stored_options
from deepfake_gateway.sandbox import isolation
from deepfake_gateway.sandbox.limits import Limits
from deepfake_gateway.sandbox.process import SandboxPool, TaskError
from deepfake_preprocess.errors import ServerAccessError

LIMITS = Limits(memory_bytes=2 * 2**30, cpu_s=60, wall_s=120, max_duration_s=7200, max_pixels=2**26, max_frames=1000)


class NamedTransport(FakeTransport):
    """Keeps the names that requests came under."""

    names = ()

    async def infer(self, *args, **options):
        self.names = (*self.names, REQUEST_ID.get())
        return await super().infer(*args, **options)


class Sandboxes:
    """A pool of one, in a loop of its own."""

    def __init__(self):
        self.transport = NamedTransport(spec=gateways.SPEC)
        self.runner = asyncio.Runner()
        self.pool = SandboxPool(1, LIMITS, self.transport, None)

    def analyze(self, path, name="clip.mp4", **options):
        options = stored_options(options, max_frames=1000)
        task = {"kind": "analyze", "path": str(path), "name": name, "options": options}
        return self.runner.run(self.pool.run(task), context=copy_context())["verdict"]

    @property
    def pid(self):
        return self.pool._idle[0]._process.pid

    def close(self):
        self.runner.run(self.pool.close())
        self.runner.close()


@pytest.fixture(scope="module")
def sandboxes():
    made = Sandboxes()
    yield made
    made.close()


@pytest.fixture(scope="module")
def clip_path(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    path.write_bytes(clip)
    return path


def test_the_verdict_is_that_of_the_client(sandboxes, clip_path):
    verdict = sandboxes.analyze(clip_path, num_frames=3)
    with DeepfakeClient(FakeTransport(spec=gateways.SPEC)) as client:
        own = client.analyze(clip_path, options=AnalyzeOptions(sampling=Sampling(num_frames=3))).to_dict()
    for found in (own, verdict):
        del found["timing_s"], found["source"]
    assert verdict == own


def test_the_server_is_asked_under_the_name_of_the_request_that_a_task_is_of(sandboxes, clip_path):
    for name in ("first", "second"):
        sandboxes.transport.names = ()
        context = copy_context()
        context.run(REQUEST_ID.set, name)
        context.run(sandboxes.analyze, clip_path, num_frames=4)
        assert set(sandboxes.transport.names) == {name}


def test_it_has_no_network_no_rights_and_bounds(sandboxes, clip_path):
    sandboxes.analyze(clip_path, num_frames=1)
    about = Path("/proc") / str(sandboxes.pid)
    status = dict(line.split(":\t", 1) for line in (about / "status").read_text().splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    limits = (about / "limits").read_text()
    assert "unlimited" not in next(line for line in limits.splitlines() if line.startswith("Max address space"))
    if os.geteuid() == 0:  # others need a kernel that lets them make namespaces, and cannot look into them
        assert (status["CapEff"], status["CapPrm"]) == ("0" * 16, "0" * 16)
        assert (about / "ns" / "net").readlink() != Path("/proc/self/ns/net").readlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_only_its_parent_needs_is_not_loaded():
    code = "import sys; import deepfake_gateway.sandbox.child; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "aiohttp", "sqlalchemy", "dbos", "fastapi", "grpc"} & set(done.stdout.split())


def test_root_becomes_nobody_where_python_can_be_read():
    code = (
        "import os; from deepfake_gateway.sandbox import isolation; isolation._unreadable = lambda: None; "
        "assert isolation.drop_user() is None; print(os.getresuid())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{(isolation.NOBODY,) * 3}\n"


def test_what_the_server_refuses_is_told_by_its_own_error(sandboxes, clip_path):
    sandboxes.transport.error, sandboxes.transport.fail_after = ServerAccessError("a token is missing"), 0
    verdict = sandboxes.analyze(clip_path, num_frames=4)
    assert (verdict["reason"], "a token is missing" in verdict["detail"]) == ("server_unavailable", True)
    sandboxes.transport.error = sandboxes.transport.fail_after = None
    assert sandboxes.analyze(clip_path, num_frames=4)["reason"] is None


def png_bomb(side):
    """A picture of a few hundred kilobytes that says it has `side` times `side` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    lines = zlib.compress(bytes((side + 1) * 2000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def webp_bomb(side):
    """A WebP file of 30 bytes that says it has `side` times `side` pixels."""
    about = bytes(4) + (side - 1).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + about


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("clip.mp4", bytes(2**24))
    return path.read_bytes()


def test_what_is_no_video_is_refused_and_names_nothing_else_to_open(sandboxes, tmp_path):
    with serving() as server:
        server.files["/secret.mp4"] = b"secret"
        uploads = {
            "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{server.url}/secret.mp4\n#EXT-X-ENDLIST\n",
            "concat": f"ffconcat version 1.0\nfile '{server.url}/secret.mp4'\n",
            "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{server.url}/secret.mp4"/></svg>',
            "html": f"<html><script src='{server.url}/secret.mp4'></script></html>",
            "zip": zip_bomb(tmp_path / "bomb.zip"),
            "png": png_bomb(60_000),
            "webp": webp_bomb(16_384),
            "gzip": b"\x1f\x8b\x08" + zlib.compress(bytes(2**24)),
        }
        path = tmp_path / "upload"
        for kind, content in uploads.items():
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            with pytest.raises(TaskError, match=r"clip\.mp4") as caught:
                sandboxes.analyze(path)
            too_large = kind in ("png", "webp")
            assert caught.value.kind == ("MediaLimitError" if too_large else "MediaOpenError"), kind
            assert str(tmp_path) not in str(caught.value)
        assert server.asked == []


@pytest.mark.slow
def test_a_hundred_thousand_frames_are_looked_at_in_part(sandboxes, tmp_path):
    path = tmp_path / "long.avi"
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=30, width=64, height=64, pix_fmt="yuvj420p")
        (packet,) = [*stream.encode(av.VideoFrame(64, 64, "yuvj420p")), *stream.encode(None)][:1]
        data, base = bytes(packet), packet.time_base
        for number in range(100_000):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, base, True
            packet.pts = packet.dts = number
            container.mux(packet)
    verdict = sandboxes.analyze(path, num_frames=4)
    assert (len(verdict["frames"]), verdict["reason"]) == (4, "no_face")


def test_8k_frames_are_judged_within_the_bounds(sandboxes, tmp_path):
    path = tmp_path / "8k.avi"
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=30, width=7680, height=4320, pix_fmt="yuvj420p")
        container.mux(stream.encode(av.VideoFrame(7680, 4320, "yuvj420p")))
        container.mux(stream.encode(None))
    assert sandboxes.analyze(path, num_frames=1)["reason"] in ("no_face", "too_few_frames")
