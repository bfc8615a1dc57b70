"""The model of cost: its figures are those of the committed benchmarks, and its formula is the documented one."""

import json

import pytest
from checkout import ROOT

from deepfake_preprocess.errors import OptionError
from deepfake_scan import plan

RESULTS = ROOT / "benchmarks/results"


def result(name):
    return json.loads((RESULTS / f"amd-epyc-2core-{name}.json").read_text(encoding="utf-8"))


def test_the_figures_are_those_of_the_benchmarks():
    per_crop_s = result("served")["protocols"]["grpc"]["server_cpu_ms_per_crop"] / 1000
    longest = max(result("pipeline")["repeated"], key=lambda run: run["clips"])
    assert pytest.approx(per_crop_s, rel=0.02) == plan.CORE_S_PER_CROP
    assert result("pipeline")["frames_per_clip"] == plan.CROPS_PER_CLIP
    client_s = longest["cpu_s_per_clip"] - plan.CROPS_PER_CLIP * per_crop_s
    assert pytest.approx(client_s, rel=0.02) == plan.CORE_S_PER_CLIP


def test_the_table_of_the_page_is_what_the_command_prints():
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    for cluster in plan.parse_plan("examples"):
        row = (cluster.clips_per_day, cluster.scan_cores, cluster.crops_per_s, cluster.server_cores)
        assert "| " + " | ".join(f"{value:,}" for value in row) + " |" in page


def test_servers_are_counted_by_what_one_scores():
    (cluster,) = plan.parse_plan("10e6,900")
    assert (cluster.clips_per_day, cluster.servers, cluster.server_cores) == (10_000_000, 6, None)
    for text in ("many", "0", "1e6,0", "1e6,x", ""):
        with pytest.raises(OptionError, match="`plan`"):
            plan.parse_plan(text)
