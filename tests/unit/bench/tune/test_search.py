"""The search for serving options: what is tried, in which order, and when it ends; and the traffic it is tried on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deepfake_bench.load.counters import ServerShare
from deepfake_bench.load.measure import Measurement
from deepfake_bench.load.statistics import Latency
from deepfake_bench.report.figures import tune_rows
from deepfake_bench.tune.search import CLOSE, divisions, highest_rate, neighbors, search
from deepfake_bench.tune.traffic import Traffic, holds
from deepfake_preprocess.contract.forms import ServedForm
from deepfake_preprocess.contract.triton_config import ServingOptions

START = ServingOptions(tuned_for_cores=2, engine="onnxruntime", precision="fp32")
FORMS = [ServedForm("onnxruntime", "fp32", "model.onnx"), ServedForm("openvino", "bf16", "model.onnx")]


def around(setting):
    return neighbors(setting, cores=2, largest_batch=16, forms=FORMS)


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(2, 1)]),
        (2, [(2, 1), (3, 1), (2, 2)]),
        (6, [(6, 1), (7, 1), (3, 2), (4, 2), (2, 4), (2, 6)]),
        (64, [(16, 4), (8, 8), (9, 8), (4, 16), (5, 16), (2, 32), (3, 32), (2, 64)]),
    ],
)
def test_divisions_use_the_cores_with_two_instances_at_least_and_at_most_one_more(cores, expected) -> None:
    assert divisions(cores) == expected


def test_every_setting_differs_in_one_respect_and_stays_within_what_was_proved() -> None:
    found = list(around(START))
    assert START not in found
    assert found[0] == replace(START, engine="openvino", precision="bf16")
    assert [(item.instances, item.threads) for item in found[1:3]] == [(3, 1), (2, 2)]
    assert [item.max_batch_size for item in found[3:]] == [1, 2, 4, 16]
    assert all(item.tuned_for_cores == 2 for item in found)


def test_the_search_finds_the_best_in_each_respect_and_tries_nothing_twice() -> None:
    goal = ServingOptions(4, instances=3, threads=1, tuned_for_cores=2, engine="openvino", precision="bf16")
    tried = []

    def likeness(setting):
        return sum(
            getattr(setting, name) == getattr(goal, name)
            for name in ("max_batch_size", "engine", "precision", "instances", "threads")
        )

    best = [START]

    def is_better(setting):
        tried.append(setting)
        if likeness(setting) > likeness(best[0]):
            best[0] = setting
            return True
        return False

    assert search(START, around, is_better, lambda: False) == goal
    assert len(tried) == len(set(tried))
    assert START not in tried


def test_the_search_ends_when_time_is_up_with_the_best_so_far() -> None:
    tried = []

    def is_better(setting):
        tried.append(setting)
        return len(tried) == 2

    assert search(START, around, is_better, lambda: len(tried) == 3) == tried[1]


@pytest.mark.parametrize("limit", [0.3, 5.0, 40.0])
def test_the_highest_rate_that_holds_is_found(limit) -> None:
    probes = []

    def holds(rate):
        probes.append(rate)
        return rate <= limit

    found = highest_rate(holds, 4.0)
    if limit < 1:
        assert found is None or found <= limit
    elif limit < 20:
        assert limit / CLOSE <= found <= limit
    else:
        assert 4.0 < found <= limit
    assert len(probes) <= 8


def test_a_rate_that_is_known_to_hold_is_not_tried_again() -> None:
    probes = []
    assert highest_rate(lambda rate: probes.append(rate), 5.0, known=4.0, out_of_time=lambda: len(probes) == 2) == 4.0
    assert all(4.0 < rate <= 5.0 for rate in probes)


def crops(count, value):
    return np.full((count, 2, 2, 3), value, np.uint8)


def test_a_higher_rate_is_the_same_traffic_closer_together() -> None:
    traffic = Traffic(
        [crops(1, 1), crops(2, 2), crops(1, 3)], [[(0.1, 0), (0.2, 1)], [(0.5, 2)]], {"a": "REAL", "b": ""}
    )
    slow, fast = (traffic.arrivals(rate, 1_000 / rate, seed=3) for rate in (1.0, 10.0))
    assert sorted(slow) == slow
    assert all(moment < 1_000 for moment, _ in slow)
    begins = [[round((moment - 0.1) * rate, 6) for moment, number in part if number == 0]
              for rate, part in ((1.0, slow), (10.0, fast))]  # fmt: skip
    shared = min(map(len, begins))
    assert begins[0][:shared] == pytest.approx(begins[1][:shared])
    assert 400 < shared < 600
    # The two requests of one video keep their distance at any rate.
    times = {number: [moment for moment, found in fast if found == number] for number in (0, 1)}
    distances = np.subtract(times[1], times[0][: len(times[1])])
    assert distances == pytest.approx(np.full(len(distances), 0.1))
    assert traffic.arrivals(1.0, 10.0, seed=4) != traffic.arrivals(1.0, 10.0, seed=5)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"latency": Latency(1.0, 2.0, 3.0, 51.0, 60.0)}, False),
        ({"latency": Latency(None, None, None, None, None)}, False),
        ({"errors": {"UNAVAILABLE": 1}}, False),
        ({"falls_behind": True}, False),
    ],
)
def test_a_bound_is_kept_only_when_every_request_was_answered(change, kept) -> None:
    replayed = Measurement(
        mode="replay",
        concurrency=None,
        requests_per_s=None,
        windows=1,
        crops_per_s=64.0,
        crops_per_s_half_width=None,
        latency=Latency(1.0, 2.0, 3.0, 50.0, 60.0),
        errors={},
        server=ServerShare(1.0, 2.0, 4.0, 0, {4: 10}),
        client_and_network_ms=1.0,
        load_cores=0.1,
        load_rss_mb=90.0,
        server_cores=1.5,
        server_rss_mb=400.0,
        falls_behind=False,
        generator_limited="",
    )
    assert holds(replace(replayed, **change), 50.0) is kept


def test_the_table_says_what_was_found() -> None:
    options = {"instances": 2, "threads": 1, "max_batch_size": 4}
    data = {
        "model": {"name": "net", "precision": "fp32"},
        "p99_bound_ms": 200.0,
        "start": {**options, "videos_per_s": 2.0},
        "best": options,
        "best_is_start": False,
        "tried": [{"videos_per_s": 2.0}, {"videos_per_s": None}, {"videos_per_s": 2.5}],
    }
    (row,) = tune_rows(data)
    assert "99% of the requests within 200 ms" in row.what
    assert (row.against, row.figure) == ("the setting before", "1.25 x the videos/s (2 x 1, batches to 4)")
    assert tune_rows({**data, "best_is_start": True})[0].figure.startswith("2.00 videos/s with the present setting")
