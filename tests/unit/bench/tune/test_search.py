"""The search for serving options: what is tried, in which order, and when it ends; and the traffic it is tried on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from repository_crashes import add_version

from deepfake_bench.load.counters import ServerShare
from deepfake_bench.load.measure import Measurement
from deepfake_bench.load.statistics import Latency
from deepfake_bench.report.figures import tune_rows
from deepfake_bench.tune.search import CLOSE, Setting, divisions, highest_rate, neighbors, search
from deepfake_bench.tune.traffic import Traffic, holds
from deepfake_bench.tune.tuning import _versions
from deepfake_export.repository.activation import activate
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.triton_config import ServingOptions
from deepfake_serve._repository import check_repository

START = Setting(1, ServingOptions(tuned_for_cores=2))


def around(setting):
    return neighbors(setting, cores=2, largest_batch=16, forms=[(1, "", ""), (2, "", "")])


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1), (2, 1)]),
        (2, [(2, 1), (3, 1), (1, 2), (2, 2)]),
        (6, [(6, 1), (7, 1), (3, 2), (4, 2), (1, 4), (2, 4), (1, 6), (2, 6)]),
        (64, [(16, 4), (8, 8), (9, 8), (4, 16), (5, 16), (2, 32), (3, 32), (1, 64), (2, 64)]),
    ],
)
def test_divisions_use_the_cores_and_at_most_one_instance_more(cores, expected) -> None:
    assert divisions(cores) == expected


def test_every_setting_differs_in_one_respect_and_stays_within_what_was_proved() -> None:
    start = replace(START, options=replace(START.options, preferred_batch_size=8))
    found = list(around(start))
    assert start not in found
    assert found[0] == replace(start, version=2)

    def values(name):
        """Of the settings that differ in this respect, in order."""
        return [item for item in found if getattr(item.options, name) != getattr(start.options, name)]

    larger = values("max_batch_size")
    assert [item.options.max_batch_size for item in larger] == [1, 2, 4, 16]
    # A preference above the largest batch would never be met.
    assert [item.options.preferred_batch_size for item in larger] == [None, None, None, 8]
    preferred = [item for item in values("preferred_batch_size") if item not in larger]
    assert [item.options.preferred_batch_size for item in preferred] == [None, 1, 2, 4]
    assert [item.options.queue_delay_us for item in values("queue_delay_us")] == [500, 1_000, 2_000, 5_000]
    assert all(item.options.tuned_for_cores == 2 for item in found)


def test_the_search_finds_the_best_in_each_respect_and_tries_nothing_twice() -> None:
    goal = ServingOptions(4, 500, 2, instances=3, threads=1, tuned_for_cores=2)
    tried = []

    def likeness(setting):
        options = setting.options
        return sum(
            getattr(options, name) == getattr(goal, name)
            for name in ("max_batch_size", "queue_delay_us", "preferred_batch_size", "instances", "threads")
        )

    best = [START]

    def is_better(setting):
        tried.append(setting)
        if likeness(setting) > likeness(best[0]):
            best[0] = setting
            return True
        return False

    assert search(START, around, is_better, lambda: False) == Setting(1, goal)
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


def test_only_accepted_precisions_of_the_same_network_are_considered(tmp_path) -> None:
    def as_precision(version, precision, parity=None):
        version_dir = tmp_path / "tiny" / str(version)
        manifest = Manifest.read(version_dir)
        replace(manifest, precision=precision).write(version_dir)

    for threshold in (0.5, 0.5, 0.5, 0.7, 0.5):
        add_version(tmp_path, threshold)
    as_precision(2, "int8")
    as_precision(3, "int8")
    activate(tmp_path, "tiny", 1)
    (model,) = check_repository(tmp_path)
    found = _versions(model)
    assert {version: manifest.precision for version, manifest in found.items()} == {1: "fp32", 3: "int8"}


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
