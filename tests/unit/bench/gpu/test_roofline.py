"""What the roofline counts, and how it bounds; and the stopwatch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deepfake_bench.gpu.roofline import Ceilings, Operation, bound_s, count_operations
from deepfake_bench.machine import stopwatch
from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.demo.untrained import UNTRAINED_SPEC


def test_convolutions_products_and_poolings_are_counted_and_what_is_fused_is_not():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1),
    )  # fmt: skip
    convolution, pooling, product = count_operations(network, 2, (8, 6))
    pixels = 2 * 8 * 6
    assert convolution == Operation(flops=2 * pixels * 4 * 3 * 9, values=pixels * 3 + 4 * 3 * 9 + pixels * 4)
    assert pooling == Operation(flops=0, values=pixels * 4 + 2 * 4)
    assert product == Operation(flops=2 * 2 * 4, values=2 * 4 + 4 + 1 + 2)
    assert next(network.parameters()).device.type == "cpu"


def test_an_efficientnet_has_the_operations_that_pytorchs_own_counter_sees():
    network = build_network(UNTRAINED_SPEC).eval()
    operations = count_operations(network, 2, UNTRAINED_SPEC.input_size_wh)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        network.to("meta")(torch.empty(2, 3, 224, 224))
    assert sum(item.flops for item in operations) == counter.get_total_flops()
    # 0.39 billion multiply-adds for a crop (Tan and Le, 2019, table 1), without the thousand classes.
    assert counter.get_total_flops() / 2 == pytest.approx(2 * 0.39e9, rel=0.02)


def test_each_operation_is_bound_by_the_slower_of_arithmetic_and_memory():
    ceilings = Ceilings({"fp32": 1e3, "fp16": 4e3}, 100.0)
    computing, moving = Operation(flops=4_000, values=1), Operation(flops=0, values=50)
    assert bound_s([computing, moving], "fp32", ceilings) == pytest.approx(4 + 2)
    assert bound_s([computing, moving], "fp16", ceilings) == pytest.approx(1 + 1)
    assert bound_s([computing], "tf32", ceilings) is None


def test_a_call_is_warmed_up_repeated_and_told_in_quartiles(monkeypatch):
    now = 0.0
    lengths = iter([9.0, 9.0, 9.0, 0.1, 0.2, 0.3, 0.4, 0.5, 7.0])

    def run() -> None:
        nonlocal now
        now += next(lengths)

    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now)
    timing = stopwatch.measure(run, seconds=1.0)
    assert (timing.median_ms, timing.q1_ms, timing.q3_ms, timing.runs) == (300.0, 200.0, 400.0, 5)
    assert next(lengths) == 7.0
