"""The gate serves the fastest precision that passes, falls back in order, and writes down why."""

from __future__ import annotations

import pytest

from deepfake_export.proof.gate import Entrant, Promotion, check_precisions, decide
from deepfake_preprocess.errors import OptionError

FP32 = Entrant("fp32", (), {})


def entrant(precision: str, ratio: float, *problems: str) -> Entrant:
    return Entrant(precision, problems, {"1": ratio, "8": ratio})


def decision(*entrants: Entrant, requested: str = "best") -> Promotion:
    return decide([FP32, *entrants], requested)


def test_the_fastest_that_passes_is_served():
    found = decision(entrant("fp16", 1.2), entrant("int8", 1.6))
    assert found.promoted == "int8"
    assert "1.60x at batch 8" in found.reason
    assert found.rejected["fp16"] == "slower than INT8"
    assert decision(entrant("fp16", 1.9), entrant("int8", 1.6)).promoted == "fp16"


def test_what_changes_verdicts_is_never_served_however_fast():
    found = decision(entrant("int8", 9.0, "12 of 500 verdicts change (limit 2)"))
    assert found.promoted == "fp32"
    assert "INT8: 12 of 500 verdicts change (limit 2)" in found.reason
    assert decision(entrant("int8", 9.0, "wrong"), requested="int8").promoted == "fp32"


def test_what_is_slower_at_any_batch_is_not_the_best():
    found = decision(Entrant("int8", (), {"1": 0.9, "8": 1.4}))
    assert found.promoted == "fp32"
    assert found.rejected["int8"] == "slower than FP32 (0.90x at batch 1)"


def test_noise_does_not_replace_fp32():
    assert decision(entrant("fp16", 1.06)).promoted == "fp32"


def test_a_precision_asked_for_is_served_though_slow_here_and_falls_back_in_order():
    slow = entrant("int8", 0.5)
    assert decision(entrant("fp16", 1.2), slow, requested="int8").promoted == "int8"
    failed = entrant("int8", 2.0, "7 of 100 verdicts change")
    found = decision(entrant("fp16", 1.2), failed, requested="int8")
    assert found.promoted == "fp16"
    assert "INT8 fell back to FP16: 7 of 100 verdicts change" in found.reason
    assert decision(entrant("fp16", 0.7), failed, requested="int8").promoted == "fp32"
    assert decision(entrant("int8", 2.0), requested="fp32").promoted == "fp32"


def test_nan_speed_is_no_speed():
    assert decision(entrant("int8", float("nan"))).promoted == "fp32"


def test_precisions_are_put_in_order():
    assert check_precisions(["int8", "fp16"]) == ("fp32", "fp16", "int8")
    assert check_precisions(["fp32"]) == ("fp32",)
    with pytest.raises(OptionError, match=r"'int4' is unknown; allowed: fp32, fp16, bf16, int8"):
        check_precisions(["fp32", "int4"])


def test_the_engine_is_chosen_with_the_precision():
    slow, fast = entrant("int8", 0.4), Entrant("int8", (), {"1": 1.5, "8": 1.4}, "openvino")
    bf16 = Entrant("bf16", (), {"1": 1.9, "8": 2.1}, "openvino")
    same = Entrant("fp32", (), {"1": 1.0, "8": 1.02}, "openvino")
    found = decision(same, slow, fast, bf16)
    assert (found.promoted, found.engine) == ("bf16", "openvino")
    assert "BF16 in OpenVINO keeps the verdicts and runs at 1.90x at batch 1, 2.10x at batch 8" in found.reason
    assert found.rejected == {
        "fp32": "slower than BF16 in OpenVINO",
        "fp32 openvino": "not clearly faster than FP32 (1.02x)",
        "int8": "slower than FP32 (0.40x at batch 1, 0.40x at batch 8)",
        "int8 openvino": "slower than BF16 in OpenVINO",
    }
    asked = decision(same, slow, fast, bf16, requested="int8")
    assert (asked.promoted, asked.engine) == ("int8", "openvino")
    assert asked.rejected["int8"] == "slower than INT8 in OpenVINO"
    plain = decision(same, requested="fp32")
    assert (plain.promoted, plain.engine) == ("fp32", "onnxruntime")


def test_a_precision_that_fails_in_every_engine_falls_back():
    wrong = [Entrant("int8", ("wrong",), {"8": 3.0}, engine) for engine in ("onnxruntime", "openvino")]
    found = decision(*wrong, Entrant("bf16", (), {"8": 2.0}, "openvino"), requested="int8")
    assert (found.promoted, found.engine) == ("bf16", "openvino")
    assert "INT8 fell back to BF16 in OpenVINO: wrong" in found.reason
