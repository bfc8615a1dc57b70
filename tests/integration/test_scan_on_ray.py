"""`deepfake scan --engine ray` on real Ray: the same results, whatever dies on the way."""

import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from media import make_clip

from deepfake_scan.results.parts import part_names, read_part
from deepfake_scan.results.upkeep import done_ids
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


@pytest.mark.slow
def test_a_cluster_that_loses_actors_nodes_and_its_driver_finishes(embedded_triton, tmp_path):
    from ray.cluster_utils import Cluster

    expected = clips(tmp_path / "clips", 60)
    output = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    worker = cluster.add_node(num_cpus=1)
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    try:
        for kill in (kill_an_actor, lambda _: cluster.remove_node(worker, allow_graceful=False), kill_the_driver):
            before = len(addresses(output))
            driver = subprocess.Popen(command(tmp_path / "clips", output, embedded_triton), env=environment)
            wait_until(lambda: driver.poll() is not None or len(addresses(output)) > before)  # noqa: B023
            kill(driver)
            if kill is not kill_the_driver:
                driver.wait(timeout=400)
        ended = subprocess.run(command(tmp_path / "clips", output, embedded_triton), env=environment, timeout=400)
        assert ended.returncode == 0
    finally:
        cluster.shutdown()
    done_ids(open_storage(str(output)))
    assert addresses(output) == expected


def kill_an_actor(driver):
    workers = [
        one for one in psutil.process_iter(["name", "cmdline"]) if "MapWorker" in " ".join(one.info["cmdline"] or ())
    ]
    workers[0].kill()


def kill_the_driver(driver):
    driver.kill()
    driver.wait()


def wait_until(done):
    deadline = time.monotonic() + 300
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)
