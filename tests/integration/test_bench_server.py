"""The benchmarks of a server, with a tiny model on a real Triton: what is counted, and how it is reported."""

from __future__ import annotations

import json
import time

import psutil
import pytest
from tiny_model import write_tiny_repository

from deepfake_bench.load.generator import Load
from deepfake_bench.load.measure import Stopping, measure_level
from deepfake_bench.load.process import LoadProcesses
from deepfake_bench.machine.results import environment
from deepfake_bench.report.plots import FORMATS, write_plots
from deepfake_bench.server.reference import OnnxReference, verify_served
from deepfake_bench.server.serving import embedded_server, running_server
from deepfake_client import Connection
from deepfake_client.cli import main as cli
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.errors import DeepfakeError

STOPPING = Stopping(window_s=0.3, max_windows=1)


@pytest.fixture(scope="module")
def server(embedded_triton):
    """Return the running server, as it is reached over one protocol."""

    def over(protocol):
        url = embedded_triton.http_url if protocol == "http" else embedded_triton.grpc_url
        reference = embedded_triton.models[0].version_dir / "model.onnx"
        return running_server(Connection(url=url, protocol=protocol), model="tiny", reference=reference)

    return over


@pytest.mark.parametrize("protocol", ["grpc", "http", "grpc-shm"])
def test_every_protocol_gives_the_files_answers_and_the_server_counts_what_we_count(server, protocol) -> None:
    server = server(protocol)
    target = server.target(protocol, crops_per_request=2)
    assert server.verify(target) < 1e-5
    with LoadProcesses(target, server.crops, processes=2) as load:
        before = server.counters()
        traces = load.run(Load(concurrency=5, measure_s=0.3))
    succeeded = sum(trace.succeeded for trace in traces)
    deadline = time.monotonic() + 10
    # Triton counts a request after it has answered it.
    while (after := server.counters()).requests < before.requests + succeeded and time.monotonic() < deadline:
        pass
    answered = sum(trace.answered for trace in traces)
    assert len(traces) == 2
    assert not any(trace.errors for trace in traces)
    assert answered > 0
    # Now and then the supervisor has the model score a crop of its own.
    probes = after.requests - before.requests - succeeded
    assert 0 <= probes <= 10
    assert succeeded <= answered + 5
    assert after.crops - before.crops == 2 * succeeded + probes


def test_requests_in_flight_together_are_batched_and_the_share_of_the_server_is_told(server) -> None:
    server = server("grpc")
    with LoadProcesses(server.target("grpc"), server.crops) as load:
        measured = measure_level(
            load,
            Load(concurrency=8),
            counters=server.counters,
            server=psutil.Process(),
            stopping=STOPPING,
        )
    assert measured.server.mean_batch > 2
    sizes = measured.server.executions_by_batch
    assert sum(size * count for size, count in sizes.items()) / sum(sizes.values()) == measured.server.mean_batch
    assert measured.client_and_network_ms > 0
    assert measured.latency.p50_ms <= measured.latency.p99_ms <= measured.latency.max_ms
    assert measured.server_cores is not None
    assert measured.server_rss_mb > 10


def test_other_answers_are_never_timed(server, tmp_path) -> None:
    import onnx
    from tiny_model import write_tiny_onnx

    path = tmp_path / "other.onnx"
    write_tiny_onnx(path)
    other = onnx.load(path)
    weights = next(item for item in other.graph.initializer if item.name == "weights")
    weights.CopyFrom(onnx.numpy_helper.from_array(0.5 * onnx.numpy_helper.to_array(weights), "weights"))
    onnx.save(other, path)
    server = server("grpc")
    with pytest.raises(DeepfakeError, match="nothing was measured"):
        verify_served(server.target("grpc"), server.crops, OnnxReference(path))


def test_refused_requests_are_counted_and_not_timed(tmp_path) -> None:
    repository = write_tiny_repository(tmp_path / "model_repository")
    config_path = repository / "tiny" / "configs" / "embedded.pbtxt"
    config = triton_config.read_config(config_path)
    config.dynamic_batching.default_queue_policy.max_queue_size = 1
    config.dynamic_batching.max_queue_delay_microseconds = 100_000
    config_path.write_text(triton_config.config_to_text(config), encoding="utf-8")
    with embedded_server(repository) as full, LoadProcesses(full.target("grpc"), full.crops) as load:
        (trace,) = load.run(Load(concurrency=6, measure_s=2.0))
    assert set(trace.errors) == {"UNAVAILABLE"}
    assert trace.errors["UNAVAILABLE"] == int(trace.failed.sum()) > trace.answered > 0
    # A refusal comes at once; what was served waited in the queue. Mixed, the percentiles would be of refusals.
    waits = (trace.answered_s - trace.due_s)[~trace.failed]
    assert len(waits) == trace.answered
    assert waits.max() > 0.09


def test_the_command_writes_results_that_can_be_drawn(embedded_triton, tmp_path, capsys) -> None:
    output = tmp_path / "here-server.json"
    with pytest.raises(SystemExit) as left:
        cli.main(
            [
                *("bench", "server", "--url", embedded_triton.http_url),
                *("--concurrency", "1,4", "--rate", "30", "--window", "0.2"),
                *("--max-windows", "1", "--output", str(output)),
                *("--reference", str(embedded_triton.models[0].version_dir / "model.onnx")),
            ]
        )
    assert left.value.code == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    assert data["environment"].keys() == environment().keys()
    assert (data["model"]["name"], data["model"]["precision"]) == ("tiny", "fp32")
    loads = [(item["concurrency"], item["requests_per_s"]) for item in data["protocols"]["http"]]
    assert loads == [(1, None), (4, None), (None, 30.0)]
    assert data["largest_probability_difference"]["http"] < 1e-4
    assert "4 in flight" in capsys.readouterr().out
    for form in FORMATS:
        pictures = write_plots(output, form=form)
        assert [path.name for path in pictures] == [
            f"here-server-{name}.{form}" for name in ("latency-throughput", "stages", "batches")
        ]
        assert all(path.stat().st_size > 3000 for path in pictures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concurrency", "0"], "numbers above 0"),
        (["--concurrency", "1.5"], "whole numbers from 1"),
        (["--rate", "nan"], "numbers above 0"),
        (["--concurrency", ""], "there is no load to measure"),
        (["--protocol", "quic"], "allowed: grpc, http, grpc-shm"),
        (["--num-crops", "100"], "takes at most"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(embedded_triton, options, message, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "server", "--url", embedded_triton.grpc_url, *options])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
