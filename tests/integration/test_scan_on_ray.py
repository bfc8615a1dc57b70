"""`deepfake scan --engine ray` on real Ray: the same results, whatever dies on the way."""

import shutil
import subprocess
import sys

import pytest
from media import make_clip

from deepfake_scan.results.parts import part_names, read_part
from deepfake_scan.storage import open_storage

pytestmark = pytest.mark.timeout(600)


def addresses(output):
    """Every address with a result, as often as it has one."""
    storage = open_storage(str(output))
    return sorted(
        one for name in part_names(storage) for one in read_part(storage, name, ["address"]).column(0).to_pylist()
    )


def command(folder, output, triton):
    return [
        sys.executable, "-m", "deepfake_client.cli.main", "scan", str(folder), "--output", str(output),
        "--engine", "ray", "--url", triton.grpc_url, "--num-frames", "4",
    ]  # fmt: skip


def clips(folder, number):
    folder.mkdir()
    first = make_clip(folder / "0.mp4", duration_s=0.4)
    for place in range(1, number):
        shutil.copy(first, folder / f"{place}.mp4")
    return sorted(map(str, folder.iterdir()))


def test_ray_gives_a_row_for_each_input(embedded_triton, tmp_path):
    expected = clips(tmp_path / "clips", 3)
    (tmp_path / "clips/damaged.mp4").write_bytes(b"no video")
    ended = subprocess.run(
        command(tmp_path / "clips", tmp_path / "out", embedded_triton), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 5, ended.stderr
    assert addresses(tmp_path / "out") == sorted([*expected, str(tmp_path / "clips/damaged.mp4")])
