"""What a request for an export says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from deepfake_export.request.request import DECIDES, REQUEST_KEY, what_changed

FP32: dict[str, Any] = {**dict.fromkeys(DECIDES), "precisions": ["fp32"], "engines": ["onnxruntime"]}
COMPARED = {**FP32, "precisions": ["fp32", "bf16"], "engines": ["onnxruntime", "openvino"], "cpu": ["avx512_bf16"]}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (FP32, FP32, ()),
        (COMPARED, FP32, ("`precisions`",)),
        (FP32, {**COMPARED, "promote": "bf16"}, ("`precisions`", "`promote`")),
        ({**COMPARED, "engines": ["onnxruntime"], "cpu": None}, COMPARED, ("the engines that are installed",)),
        ({**COMPARED, "cpu": []}, COMPARED, ("the CPU that it is measured on",)),
    ],
)
def test_what_changed_is_named_and_not_what_follows_from_it(
    before: dict[str, Any], now: dict[str, Any], words: tuple[str, ...]
) -> None:
    parity = {REQUEST_KEY: before, "batch_sizes": [1, 8]}
    assert what_changed(parity, now, 8) == words
