"""`ServedDetector` against the steps of the contract, written out one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops
from deepfake_preprocess.contract.spec import Head, ModelSpec

SIZE_WH = (24, 16)


def spec_of(**changes: object) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        architecture="timm:none",
        input_width_px=SIZE_WH[0],
        input_height_px=SIZE_WH[1],
        **{"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)} | changes,
    )


@pytest.mark.parametrize("color_order", ["RGB", "BGR"])
def test_the_network_sees_what_it_was_trained_with(color_order):
    crops = generate_crops(2, SIZE_WH)
    spec = spec_of(color_order=color_order)
    seen = ServedDetector(torch.nn.Identity(), spec).normalize(torch.from_numpy(crops)).numpy()
    ordered = crops if color_order == "RGB" else crops[..., ::-1]
    expected = (ordered / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    assert seen.dtype == np.float32
    assert seen.shape == (2, 3, 16, 24)
    # One rounding of scale, offset, product and sum each, at magnitudes below 4.
    np.testing.assert_allclose(seen, expected.transpose(0, 3, 1, 2), atol=4 * 4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(("kind", "fake_index"), [*itertools.product(("sigmoid", "softmax"), (0, 1))])
def test_probability_is_that_of_fake_whatever_the_head(kind, fake_index):
    class Head2(torch.nn.Module):
        def forward(self, crops):
            values = crops.mean(dim=(2, 3))
            return values[:, :1] if kind == "sigmoid" else values[:, :2]

    spec = spec_of(head=Head(kind, fake_index))
    detector = ServedDetector(Head2(), spec)
    crops = torch.from_numpy(generate_crops(3, SIZE_WH))
    probability, logit = detector(crops)
    outputs = Head2()(detector.normalize(crops))
    if kind == "softmax":
        expected = outputs.softmax(dim=1)[:, fake_index : fake_index + 1]
    else:
        expected = outputs.sigmoid() if fake_index == 1 else 1 - outputs.sigmoid()
    assert probability.shape == logit.shape == (3, 1)
    assert probability.dtype == logit.dtype == torch.float32
    torch.testing.assert_close(probability, expected)
    torch.testing.assert_close(logit.sigmoid(), probability)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("squeeze", [False, True])
def test_one_logit_per_crop_may_come_without_its_axis(count, squeeze):
    class Flat(torch.nn.Module):
        def forward(self, crops):
            logits = crops.mean(dim=(1, 2, 3))
            return logits.squeeze() if squeeze else logits

    probability, _ = ServedDetector(Flat(), spec_of())(torch.from_numpy(generate_crops(count, SIZE_WH)))
    assert probability.shape == (count, 1)
