"""`deepfake tune` on a real Triton: it searches, keeps the verdicts, and writes what servers then use."""

from __future__ import annotations

import json
from dataclasses import replace

import media
import pytest

from deepfake_bench.report.plots import write_plots
from deepfake_bench.tune import search, tuning
from deepfake_client.cli import main as cli
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.support.machine import usable_cores
from deepfake_serve import EmbeddedTriton
from deepfake_serve._shares import CpuShare


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return media.make_clip(tmp_path_factory.mktemp("clips") / "two.mp4", duration_s=0.4, faces=2)


@pytest.fixture
def short(monkeypatch):
    """Measure as little as will do: what is measured is not looked at."""
    monkeypatch.setattr(tuning, "CONFIRMATIONS", 1)
    monkeypatch.setattr(search, "MAX_PROBES", 3)
    monkeypatch.setattr(tuning, "FULL_LOAD_S", 0.2)


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["tune", *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def embedded(repository):
    return triton_config.read_config(repository / "tiny" / triton_config.EMBEDDED_CONFIG_NAME)


def add_int8(repository):
    """Give version 1 another form, which is called INT8 and gives other verdicts."""
    import onnx

    version_dir = repository / "tiny/1"
    model = onnx.load(version_dir / "model.onnx")
    weights = next(item for item in model.graph.initializer if item.name == "weights")
    weights.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), "weights"))
    onnx.save(model, version_dir / "int8.onnx")
    forms = (ServedForm("onnxruntime", "fp32", "model.onnx"), ServedForm("onnxruntime", "int8", "int8.onnx"))
    manifest = replace(Manifest.read(version_dir), files=file_hashes(version_dir), forms=forms)
    manifest.write(version_dir)


def test_a_search_measures_settings_keeps_verdicts_and_changes_nothing_when_dry(
    clip, tiny_repository, tmp_path, short, monkeypatch, capsys
) -> None:
    output = tmp_path / "here-tune.json"
    add_int8(tiny_repository)
    options = triton_config.ServingOptions(
        4, 0, 2, instances=1, threads=2, tuned_for_cores=usable_cores(), engine="onnxruntime", precision="fp32"
    )
    # Two candidates; the whole space takes minutes.
    monkeypatch.setattr(
        tuning,
        "neighbors",
        lambda setting, **_: [replace(options, precision="int8"), options],
    )
    arguments = [
        str(clip),
        "--repository",
        str(tiny_repository),
        "--p99",
        "5000",
        "--num-frames",
        "4",
        "--window",
        "0.3",
    ]
    before = embedded(tiny_repository)
    assert bench(*arguments, "--dry-run", "--output", str(output)) == 0
    assert embedded(tiny_repository) == before
    data = json.loads(output.read_text(encoding="utf-8"))
    assert data["traffic"]["crops"] == 8
    assert 2 <= data["traffic"]["requests"] <= 4, "two faces each of four frames, of up to two frames together"
    start, int8, other = data["tried"]
    assert (int8["precision"], int8["failed"], int8["replays"]) == ("int8", "other verdicts on two.mp4", [])
    assert (start["max_batch_size"], other["max_batch_size"]) == (8, 4)
    assert max(replay["server"]["mean_batch"] for replay in other["replays"]) <= 4
    # Of a rate at which the server falls behind, as on a busy machine, there is no latency.
    assert any((replay["latency"]["p50_ms"] or 0) > 0 for replay in start["replays"])
    assert other["better"] == (data["best"]["max_batch_size"] == 4 or bool(data["objection"]))
    assert len(data["confirmation"]) == (2 if other["better"] else 0)
    assert "videos/s within the bound" in capsys.readouterr().out
    (picture,) = write_plots(output, form="svg")
    assert picture.name == "here-tune-settings.svg"


def test_what_wins_is_written_and_served(clip, tiny_repository) -> None:
    options = triton_config.ServingOptions(
        4, 0, 2, instances=1, threads=2, tuned_for_cores=usable_cores(), engine="onnxruntime", precision="fp32"
    )
    tuned = tuning.Tuning(
        tiny_repository, None, [clip], num_frames=2, p99_ms=1e6, window_s=0.2, seconds=0, announce=lambda _: None
    )
    tuned.best = options
    assert tuned.write() == tiny_repository / "tiny/configs/embedded.pbtxt"
    assert triton_config.tuned_options(embedded(tiny_repository)) == options
    with EmbeddedTriton(tiny_repository) as triton:
        assert triton.shares == {"tiny": CpuShare(1, 2)}
        assert triton_config.batching_options(triton.models[0].config) == (4, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.mp4", "--p99", "10"], "absent.mp4"),
        (["two.mp4", "--p99", "10", "--repository", "nowhere"], "there is no such model repository"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, message, clip, monkeypatch, capsys) -> None:
    monkeypatch.chdir(clip.parent)
    assert bench(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_bound_that_nothing_holds_is_an_error_and_the_figures_are_kept(
    clip, tiny_repository, tmp_path, short, capsys
) -> None:
    output = tmp_path / "here-tune.json"
    arguments = ["--repository", str(tiny_repository), "--p99", "0.1", "--num-frames", "2", "--window", "0.2"]
    assert bench(str(clip), *arguments, "--minutes", "0.01", "--output", str(output)) == 1
    assert "raise --p99" in capsys.readouterr().err
    data = json.loads(output.read_text(encoding="utf-8"))
    assert data["tried"][0]["videos_per_s"] is None
    assert triton_config.tuned_options(embedded(tiny_repository)) is None


def test_the_bound_must_be_given_and_the_help_says_how_it_works(capsys) -> None:
    assert bench("clip.mp4") == 2
    assert "--p99" in capsys.readouterr().err
    assert bench("--help") == 0
    assert "--dry-run" in capsys.readouterr().out
