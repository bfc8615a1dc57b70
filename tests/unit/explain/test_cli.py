"""`deepfake explain-serve`: what its options make of the service, without serving."""

from __future__ import annotations

import socket

import pytest
import uvicorn
from explain_nets import tiny_explainer

from deepfake_client.cli import main as cli
from deepfake_client.transport.retry import NO_RETRY
from deepfake_explain.cli import explain_serve as command
from deepfake_explain.service.admission import RequestLimits


@pytest.fixture
def serve(monkeypatch):
    """Run the command up to the point where it would serve; return what `build_app` was given."""
    given = {}
    monkeypatch.setattr(command.CheckpointExplainer, "load", lambda *_, **__: tiny_explainer())
    monkeypatch.setattr(command, "build_app", lambda *_, **options: given.update(options))
    monkeypatch.setattr(command.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(command.cv2, "setNumThreads", lambda _: None)
    monkeypatch.setattr(command, "yield_cores", lambda nice: given.update(nice=nice))
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["explain-serve", "detector.safetensors", "--port", "0", *arguments])
        return stopped.value.code or 0, given

    return run


def test_any_connection_to_the_server_can_be_named(serve, monkeypatch):
    monkeypatch.setenv("DEEPFAKE_TOKEN", "secret")
    code, given = serve("--url", "https://gpu:8000/triton", "--tls", "--header", "X-Team: faces", "--model", "other")
    assert code == 0
    connection = given["connect"].args[0]
    assert connection.url == "https://gpu:8000/triton"
    assert connection.tls is not None
    assert connection.headers == {"x-team": "faces", "authorization": "Bearer secret"}
    assert connection.retry == NO_RETRY
    assert given["connect"].keywords == {"model": "other"}


def test_of_several_models_it_compares_with_the_one_of_the_checkpoints_name(serve):
    _, given = serve("--url", "localhost:8001")
    assert given["connect"].keywords == {"model": tiny_explainer().spec.name}


def test_without_a_server_it_says_what_is_compared(serve, capsys):
    code, given = serve()
    assert code == 0
    assert given["connect"] is None
    assert "only scores that a request brings along are compared" in capsys.readouterr().err


def test_beside_a_gateway_it_prints_errors_only(serve, capsys):
    code, _ = serve("--quiet", "--host", "0.0.0.0")
    assert code == 0
    assert capsys.readouterr().err == ""


def test_limits_and_priority_are_options(serve):
    _, given = serve("--max-requests", "3", "--max-upload-mb", "2", "--deadline", "1.5", "--nice", "5")
    assert given["limits"] == RequestLimits(max_requests=3, max_upload_bytes=2 * 2**20, timeout_s=1.5)
    assert given["nice"] == 5


def test_a_port_in_use_is_a_sentence(serve, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _ = serve("--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "(Address already in use); name another --host or --port" in capsys.readouterr().err
