"""The real Triton, started without Docker, answers as the wire contract says."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnxruntime as ort
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from server_processes import END_TIMEOUT_S, assert_all_end, server_processes, shm_prefix
from tiny_model import TINY_SPEC
from tritonclient.utils import InferenceServerException

from deepfake_export.repository.configs import refresh_configs
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError, RepositoryError, ServerStartError
from deepfake_serve import EmbeddedTriton, Ports
from deepfake_serve._launch import MIN_SHARED_MEMORY_MB
from deepfake_serve._shares import CpuShare

SHM = Path("/dev/shm")
SERVE = [sys.executable, "-c", "from deepfake_client.cli.main import main; raise SystemExit(main())", "serve"]
FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


def crops(count, seed=0):
    shape = (count, TINY_SPEC.input_height_px, TINY_SPEC.input_width_px, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def grpc_tensor(array, datatype="UINT8"):
    tensor = tritonclient.grpc.InferInput("faces", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


@pytest.fixture
def client(embedded_triton):
    with tritonclient.grpc.InferenceServerClient(embedded_triton.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def in_process(shared_tiny_repository):
    path = shared_tiny_repository / "tiny" / "1" / "model.onnx"
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(array):
        return session.run(["fake_probability", "logit"], {"faces": array})

    return run


def metric(triton, name):
    text = urllib.request.urlopen(triton.metrics_url).read().decode()
    return int(re.search(rf'^{name}{{model="tiny",version="1"}} (\d+)', text, re.MULTILINE).group(1))


def counters(triton):
    return metric(triton, "nv_inference_count"), metric(triton, "nv_inference_exec_count")


def edit_config(repository, change):
    path = repository / "tiny" / triton_config.EMBEDDED_CONFIG_NAME
    config = triton_config.read_config(path)
    change(config)
    path.write_text(triton_config.config_to_text(config), encoding="utf-8")


def environments():
    """Folders of Triton's Python backend, one for each server, also of tests beside this one."""
    return set(Path("/tmp").glob("python_env_*"))


def left_behind(before):
    """Return how many folders of the Python backend are there now that were not before, and no server runs with."""
    beside = sum(process.info["name"] == "tritonserver" for process in psutil.process_iter(["name"]))
    return max(0, len(environments() - before) - beside)


# --- what it answers


@pytest.mark.parametrize("count", [1, 3, 8, 32])
def test_grpc_scores_equal_in_process_scores(client, in_process, count):
    array = crops(count, seed=count)
    answer = client.infer("tiny", [grpc_tensor(array)])
    probability, logit = in_process(array)
    np.testing.assert_allclose(answer.as_numpy("fake_probability"), probability, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answer.as_numpy("logit"), logit, rtol=1e-5, atol=1e-5)
    assert answer.as_numpy("logit").dtype == np.float32


def test_only_the_outputs_that_were_asked_for_come_back(client):
    wanted = [tritonclient.grpc.InferRequestedOutput("logit")]
    answer = client.infer("tiny", [grpc_tensor(crops(2))], outputs=wanted).get_response()
    assert [output.name for output in answer.outputs] == ["logit"]


def test_answers_leave_nothing_in_the_log(tiny_repository, tmp_path):
    log = tmp_path / "triton.log"
    with EmbeddedTriton(tiny_repository, log=log) as triton:
        started = log.read_text()
        with tritonclient.grpc.InferenceServerClient(triton.grpc_url) as own:
            for count in (1, 3):
                own.infer("tiny", [grpc_tensor(crops(count))])
    said = log.read_text().removeprefix(started)
    assert "Traceback" not in said
    assert "Error" not in said


def test_http_scores_equal_in_process_scores(embedded_triton, in_process):
    array = crops(2)
    tensor = tritonclient.http.InferInput("faces", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array)
    with tritonclient.http.InferenceServerClient(urlsplit(embedded_triton.http_url).netloc) as client:
        answer = client.infer("tiny", [tensor])
    np.testing.assert_allclose(answer.as_numpy("fake_probability"), in_process(array)[0], rtol=1e-5, atol=1e-6)


def test_a_plain_json_request_is_answered(embedded_triton, in_process):
    array = crops(1)
    body = {"inputs": [{"name": "faces", "datatype": "UINT8", "shape": list(array.shape), "data": array.tolist()}]}
    request = urllib.request.Request(
        f"{embedded_triton.http_url}/v2/models/tiny/infer",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        outputs = {item["name"]: item for item in json.load(response)["outputs"]}
    assert outputs["fake_probability"]["shape"] == [1, 1]
    assert outputs["fake_probability"]["data"] == pytest.approx(in_process(array)[0].ravel().tolist(), abs=1e-6)


def test_the_spec_reads_back_from_the_server(client):
    config = client.get_model_config("tiny").config
    assert ModelSpec.from_parameters(triton_config.config_parameters(config)) == TINY_SPEC


def send_all(client, array):
    """Send every crop as a request of its own, all at once; return the answers and errors in order."""
    answers = [None] * len(array)
    done = threading.Semaphore(0)

    def receive(index, result, error):
        answers[index] = error or result
        done.release()

    for index in range(len(array)):
        client.async_infer("tiny", [grpc_tensor(array[index : index + 1])], callback=partial(receive, index))
    return answers, done


def wait_for(done, count):
    for _ in range(count):
        assert done.acquire(timeout=END_TIMEOUT_S)


def test_concurrent_single_crops_are_batched_and_keep_their_order(embedded_triton, client, in_process):
    before = counters(embedded_triton)
    for seed in range(3):
        array = crops(32, seed)
        answers, done = send_all(client, array)
        wait_for(done, len(array))
        scores = np.concatenate([answer.as_numpy("fake_probability") for answer in answers])
        np.testing.assert_allclose(scores, in_process(array)[0], rtol=1e-5, atol=1e-6)
    deadline = time.monotonic() + END_TIMEOUT_S
    # Triton counts a request after it has answered it.
    while (after := counters(embedded_triton))[0] < before[0] + 96 and time.monotonic() < deadline:
        time.sleep(0.05)
    # Now and then the supervisor has the model score a crop of its own.
    probes = after[0] - before[0] - 96
    assert 0 <= probes <= 3
    assert 96 / (after[1] - before[1] - probes) >= 4


def test_a_full_queue_refuses_at_once_and_serves_the_rest(tiny_repository):
    def one_place(config):
        config.dynamic_batching.default_queue_policy.max_queue_size = 1
        config.dynamic_batching.max_queue_delay_microseconds = 200_000

    edit_config(tiny_repository, one_place)
    with (
        EmbeddedTriton(tiny_repository) as triton,
        tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client,
    ):
        answers, done = send_all(client, crops(32))
        wait_for(done, 32)
    refused = [answer for answer in answers if isinstance(answer, InferenceServerException)]
    assert 0 < len(refused) < 32
    assert {answer.status() for answer in refused} == {"StatusCode.UNAVAILABLE"}


def test_requests_in_flight_are_answered_before_the_server_ends(tiny_repository):
    def long_wait(config):
        config.dynamic_batching.max_queue_delay_microseconds = 500_000

    edit_config(tiny_repository, long_wait)
    with (
        EmbeddedTriton(tiny_repository) as triton,
        tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client,
    ):
        # Eight leave at once as a full batch; the ninth is in the queue when the server is told to stop.
        answers, done = send_all(client, crops(9))
        wait_for(done, 8)
        deadline = time.monotonic() + END_TIMEOUT_S
        while (
            metric(triton, "nv_inference_pending_request_count") + metric(triton, "nv_inference_request_success") < 9
        ):
            assert time.monotonic() < deadline
        triton.stop()
        wait_for(done, 1)
    assert [answer for answer in answers if isinstance(answer, InferenceServerException)] == []


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.zeros((1, 24, 31, 3), np.uint8), "UINT8"),
        (np.zeros((1, 3, 24, 32), np.uint8), "UINT8"),
        (np.zeros((24, 32, 3), np.uint8), "UINT8"),
        (np.zeros((33, 24, 32, 3), np.uint8), "UINT8"),
        (np.zeros((1, 24, 32, 3), np.float32), "FP32"),
    ],
    ids=["width", "channels first", "no batch", "batch too large", "dtype"],
)
def test_a_wrong_request_gets_an_error_and_the_server_lives_on(client, array, datatype):
    with pytest.raises(InferenceServerException, match=r"faces|batch-size|tiny"):
        client.infer("tiny", [grpc_tensor(array, datatype)], client_timeout=END_TIMEOUT_S)
    assert client.infer("tiny", [grpc_tensor(crops(1))]).as_numpy("logit").shape == (1, 1)


def test_it_listens_on_the_loopback_interface_only(embedded_triton):
    server = server_processes(embedded_triton.pid)[0]
    listening = {item.laddr.ip for item in server.net_connections("tcp") if item.status == psutil.CONN_LISTEN}
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


# --- how it starts


def test_a_second_start_fetches_nothing_and_uses_the_share_it_was_given(tiny_repository):
    said = []
    with EmbeddedTriton(tiny_repository, instances=1, threads=2, announce=said.append) as triton:
        assert triton.shares == {"tiny": CpuShare(1, 2)}
        assert len(server_processes(triton.pid)) == 2
    assert said == []


def test_the_newest_version_is_served(tiny_repository):
    spec = ModelSpec.from_dict({**TINY_SPEC.to_dict(), "version": 2})
    shutil.copytree(tiny_repository / "tiny" / "1", tiny_repository / "tiny" / "2")
    manifest = Manifest(spec, file_hashes(tiny_repository / "tiny" / "2"), "fp32")
    manifest.write(tiny_repository / "tiny" / "2")
    refresh_configs(tiny_repository / "tiny", manifest, max_batch_size=4)
    with (
        EmbeddedTriton(tiny_repository, instances=1) as triton,
        tritonclient.grpc.InferenceServerClient(triton.grpc_url) as client,
    ):
        assert client.get_model_metadata("tiny").versions == ["2"]


def test_an_altered_file_is_refused_with_model_and_file(tiny_repository):
    path = tiny_repository / "tiny" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RepositoryError, match=r"tiny/1 .*model\.onnx has changed"):
        EmbeddedTriton(tiny_repository).start()


def test_a_taken_port_is_one_clear_sentence(tiny_repository):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ServerStartError, match=rf"port {port} .*another `ports.http`, or 0") as caught:
            EmbeddedTriton(tiny_repository, ports=Ports(http=port)).start()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_model_that_cannot_be_loaded_is_reported_with_the_reason(tiny_repository):
    version_dir = tiny_repository / "tiny" / "1"
    (version_dir / "model.onnx").write_bytes(b"no onnx")
    Manifest(TINY_SPEC, file_hashes(version_dir), "fp32").write(version_dir)
    triton = EmbeddedTriton(tiny_repository)
    with pytest.raises(ServerStartError, match=r"(?s)ended while it started.*model\.onnx"):
        triton.start()
    assert triton.pid is None


def test_a_start_that_takes_too_long_is_given_up(tiny_repository):
    triton = EmbeddedTriton(tiny_repository, start_timeout_s=0)
    with pytest.raises(ServerStartError, match="not ready within 0 s"):
        triton.start()
    assert triton.pid is None


def test_it_cannot_be_started_twice(embedded_triton):
    with pytest.raises(ServerStartError, match="started already"):
        embedded_triton.start()


@pytest.mark.parametrize("ports", [{"grpc": 65536}, {"http": -1}, {"grpc": 18001, "http": 18001}])
def test_impossible_ports_are_refused(ports):
    with pytest.raises(OptionError, match=r"`ports\.\w+` is"):
        Ports(**ports)


# --- how it ends


def test_stop_leaves_nothing_behind(tiny_repository):
    before = environments()
    triton = EmbeddedTriton(tiny_repository)
    triton.start()
    processes = server_processes(triton.pid)
    prefix = shm_prefix(processes[0])
    # All from the start: Triton has crashed where it grew.
    assert {region.stat().st_size >> 20 for region in SHM.glob(f"{prefix}*")} == {MIN_SHARED_MEMORY_MB}
    run_dir = triton.log_path.parent
    triton.stop()
    assert not any(process.is_running() for process in processes)
    assert list(SHM.glob(f"{prefix}*")) == []
    assert not run_dir.exists()
    # Another server that has just ended still has its folder for a moment.
    deadline = time.monotonic() + END_TIMEOUT_S
    while left_behind(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left_behind(before)
    triton.stop()  # once more does no harm


def test_a_killed_supervisor_takes_the_server_with_it(tiny_repository):
    with EmbeddedTriton(tiny_repository) as triton:
        processes = server_processes(triton.pid)
        prefix = shm_prefix(processes[0])
        psutil.Process(triton.pid).kill()
        assert_all_end(processes)
    assert list(SHM.glob(f"{prefix}*")) == []


def test_the_server_dies_with_its_parent(tiny_repository):
    code = (
        "import sys, signal; from deepfake_serve import EmbeddedTriton, Ports\n"
        f"triton = EmbeddedTriton({str(tiny_repository)!r}); triton.start()\n"
        "print(triton.pid, triton.log_path.parent, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid, run_dir = parent.stdout.readline().split()
        supervisor = psutil.Process(int(pid))
        processes = server_processes(supervisor.pid)
        prefix = shm_prefix(processes[0])
        parent.kill()
        assert_all_end([supervisor, *processes])
    assert list(SHM.glob(f"{prefix}*")) == []
    assert not Path(run_dir).exists()


# --- the command


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_addresses_and_stops_when_told(shared_tiny_repository, stop):
    command = [*SERVE, "--repository", str(shared_tiny_repository), *FREE_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        shown = {}
        for line in process.stdout:
            key, _, value = line.strip().partition(" ")
            shown[key] = value.strip()
            if "Ctrl-C" in line:
                break
        http_connection = http.client.HTTPConnection(urlsplit(shown["HTTP"]).netloc, timeout=END_TIMEOUT_S)
        http_connection.request("GET", "/v2/models/tiny/ready")
        assert http_connection.getresponse().status == 200
        http_connection.close()
        assert Path(shown["log"]).is_file()
        process.send_signal(stop)
        _, errors = process.communicate(timeout=END_TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    Path(shown["log"]).unlink()


def test_the_command_says_when_the_server_dies_and_when_it_is_back(shared_tiny_repository):
    command = [*SERVE, "--repository", str(shared_tiny_repository), "--verbose", *FREE_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        (supervisor,) = psutil.Process(process.pid).children()
        server_processes(supervisor.pid)[0].kill()
        said = ""
        for line in process.stderr:
            said += line
            if "serves again" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 0
    assert "Triton ended by itself (exit code 137); starting Triton again (restart 1)" in said
    assert said.count("Started GRPCInferenceService") == 2  # --verbose passes Triton's log through
    assert "Traceback" not in said


def test_the_command_ends_with_4_when_nothing_keeps_the_server_running(shared_tiny_repository):
    command = [*SERVE, "--repository", str(shared_tiny_repository), *FREE_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        (supervisor,) = psutil.Process(process.pid).children()
        supervisor.kill()
        _, errors = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 4
    assert "Triton could not be kept running (exit code -9)" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_the_command_refuses_a_repository_without_models(tmp_path, make):
    make(tmp_path / "models")
    done = subprocess.run([*SERVE, "-r", str(tmp_path / "models")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "deepfake export" in done.stderr
    assert "Traceback" not in done.stderr
