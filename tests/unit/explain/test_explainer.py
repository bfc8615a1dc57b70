"""Heatmaps: the same as `pytorch-grad-cam`'s, of the served checkpoint only, and without anything left behind."""

from __future__ import annotations

import gc
import json
import threading

import cv2
import numpy as np
import pytest
import timm
import torch
import yaml
from explain_nets import OTHER_SHA, SHA, SIDE_PX, SOFTMAX, spec_of, tiny_explainer, tiny_network
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from safetensors.torch import save_file
from torch import nn

import deepfake_explain
from deepfake_client.explain.wire import ExplainAnswer
from deepfake_explain import METHODS, PARTS, CheckpointExplainer, ExplainOptions, ServedScores
from deepfake_explain import explainer as explainer_module
from deepfake_explain._agreement import check_scores
from deepfake_explain._cam import CAMS
from deepfake_explain._target_layer import find_target_layer, spatial_layers
from deepfake_explain.faithfulness import compare_maps, measure_faithfulness, randomized
from deepfake_explain.regions import find_regions, part_map, part_shares
from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.tolerances import PLAN_PROBABILITY_ABS, TOLERANCES
from deepfake_preprocess.contract.spec import Crop, Head, ModelSpec
from deepfake_preprocess.errors import ExplainDisagreementError, ExplainError, OptionError
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.faces.geometry import crop_geometry
from deepfake_preprocess.media.frame import ArrayFrame


def crops_of(count: int = 3, side: int = SIDE_PX) -> np.ndarray:
    return generate_crops(count, (side, side), seed=5)


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build().eval()


def small_swin() -> nn.Module:
    return timm.models.swin_transformer.SwinTransformer(
        img_size=64, patch_size=4, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), num_classes=1
    )


def vit_tokens(values: torch.Tensor) -> torch.Tensor:
    """As the documentation of pytorch-grad-cam writes it for a ViT: without the class token, as a map."""
    side = int((values.shape[1] - 1) ** 0.5)
    return values[:, 1:].reshape(len(values), side, side, -1).transpose(2, 3).transpose(1, 2)


NETWORKS = {
    "convolutions": (tiny_network, SIDE_PX, "4", None),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=1), 64, "bn2", None),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=1), 64, "stages.3", None),
    "resnet": (lambda: timm.create_model("test_resnet", num_classes=1), 64, "layer4.0", None),
    "swin": (small_swin, 64, "norm", lambda values: values.permute(0, 3, 1, 2)),
    "vit": (lambda: timm.create_model("test_vit", num_classes=1, img_size=64), 64, "blocks.5.norm1", vit_tokens),
}


def test_public_names_are_these():
    assert " ".join(sorted(deepfake_explain.__all__, key=str.casefold)) == (
        "CheckpointExplainer ExplainOptions Explanation Faithfulness MemberHeatmap METHODS PARTS Region Sanity "
        "ServedScores"
    )
    assert all(hasattr(deepfake_explain, name) for name in deepfake_explain.__all__)


@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_are_those_of_pytorch_grad_cam_by_hand(name):
    build, side, layer, reshape = NETWORKS[name]
    network = seeded(build)
    spec = spec_of(input_height_px=side, input_width_px=side)
    crops = crops_of(side=side)
    by_hand = {}
    inputs = ServedDetector(network, spec).normalize(torch.from_numpy(crops))
    for method in METHODS:
        with CAMS[method](network, [network.get_submodule(layer)], reshape_transform=reshape) as cam:
            by_hand[method] = cam(inputs, [ClassifierOutputTarget(0)] * len(crops))
    network.zero_grad(set_to_none=True)
    explainer = CheckpointExplainer(network, spec)
    assert explainer.default_layer() == layer
    for method in METHODS:
        found = explainer.explain(crops, ExplainOptions(method))
        for explanation, expected in zip(found, by_hand[method], strict=True):
            np.testing.assert_array_equal(explanation.heatmap, expected)
    assert any(heatmap.any() for heatmap in by_hand["grad-cam"])


@pytest.mark.parametrize(
    ("head", "target"), [(SOFTMAX, ClassifierOutputTarget(0)), (Head("sigmoid", 0), lambda outputs: -outputs[0])]
)
def test_what_is_explained_is_the_logit_of_fake(head, target):
    network = tiny_network(head.num_logits)
    spec = spec_of(head=head, color_order="BGR")
    crops = crops_of()
    inputs = ServedDetector(network, spec).normalize(torch.from_numpy(crops))
    with CAMS["grad-cam"](network, [network[4]]) as cam:
        expected = cam(inputs, [target] * len(crops))
    for explanation, heatmap in zip(CheckpointExplainer(network, spec).explain(crops), expected, strict=True):
        np.testing.assert_array_equal(explanation.heatmap, heatmap)


def test_a_named_layer_is_taken_and_an_unknown_one_answered_with_those_there_are():
    explainer = tiny_explainer()
    assert explainer.layer_names() == ("0", "1", "2", "3", "4")
    (first,) = explainer.explain(crops_of(1), ExplainOptions(layer="0"))
    (last,) = explainer.explain(crops_of(1))
    assert (first.layer, last.layer) == ("0", "4")
    assert not np.array_equal(first.heatmap, last.heatmap)
    with pytest.raises(OptionError, match=r"`layer` is 'conv_head'; allowed: 4, 3, 2, 1, 0$"):
        explainer.explain(crops_of(1), ExplainOptions(layer="conv_head"))
    with pytest.raises(OptionError, match=r"`method` is 'gradcam'; allowed: grad-cam, grad-cam\+\+, eigen-cam"):
        explainer.explain(crops_of(1), ExplainOptions("gradcam"))


def test_layers_that_run_twice_and_networks_without_a_map():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.again, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Linear(3, 1)

        def forward(self, pixels):
            return self.head(self.again(self.again(self.conv(pixels))).mean((2, 3)))

    sample = torch.zeros(1, 3, 16, 24)
    assert [layer.name for layer in spatial_layers(Twice().eval(), sample)] == ["conv"]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16 * 24 * 3, 1)).eval()
    with pytest.raises(ExplainError, match="no layer with a map of the picture"):
        find_target_layer(spatial_layers(flat, sample), None)


class Small(nn.Module):
    """Ends as code from outside does."""

    def __init__(self, end):
        super().__init__()
        self.conv, self.fc, self.end = nn.Conv2d(3, 4, 3), nn.Linear(4, 1), end

    def forward(self, x):
        return self.end(self.fc(self.conv(x).relu().mean((2, 3))))


def test_a_network_that_squeezes_its_output_is_explained_crop_by_crop():
    spec = spec_of()
    torch.manual_seed(0)
    whole = Small(nn.Identity())
    squeezing = Small(torch.squeeze)
    squeezing.load_state_dict(whole.state_dict())
    for count in (1, 2):
        crops = crops_of(count)
        expected = CheckpointExplainer(whole, spec).explain(crops, ExplainOptions())
        for explained, other in zip(
            CheckpointExplainer(squeezing, spec).explain(crops, ExplainOptions()), expected, strict=True
        ):
            np.testing.assert_array_equal(explained.heatmap, other.heatmap)


def test_a_score_without_a_gradient_is_refused_with_what_to_do():
    explainer = CheckpointExplainer(Small(torch.Tensor.detach), spec_of())
    crops = crops_of(1)
    with pytest.raises(ExplainError, match=r"no gradient of the score reaches layer 'conv'.*eigen-cam"):
        explainer.explain(crops, ExplainOptions())
    assert explainer.explain(crops, ExplainOptions("eigen-cam"))[0].heatmap.max() > 0


def test_torchscript_is_refused_with_what_to_do():
    with pytest.warns(FutureWarning, match=r"torch\.jit"):
        script = torch.jit.trace(tiny_network(), torch.zeros(1, 3, SIDE_PX, SIDE_PX))
    with pytest.raises(ExplainError, match="export the same weights as a state dict"):
        CheckpointExplainer(script, spec_of("torchscript"))


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (np.zeros((1, 32, 48, 3), np.uint8), r"must be uint8 \[N, 48, 48, 3\] RGB, got uint8 \[1, 32, 48, 3\]"),
        (np.zeros((48, 48, 3), np.uint8), r"got uint8 \[48, 48, 3\]"),
        (np.zeros((1, 48, 48, 3), np.float32), "got float32"),
    ],
)
def test_crops_of_another_size_are_refused(crops, message):
    with pytest.raises(OptionError, match=message):
        tiny_explainer().explain(crops)


def test_options_of_the_explainer_are_checked():
    with pytest.raises(OptionError, match="`device` is 'gpu7', which PyTorch cannot use here; usable: cpu"):
        tiny_explainer(device="gpu7")
    with pytest.raises(OptionError, match="`landmarks_xy` must be one per crop"):
        tiny_explainer().explain(crops_of(2), landmarks_xy=[None])
    assert tiny_explainer().explain(crops_of(1)[:0]) == []


def test_a_thousand_calls_leave_nothing_behind():
    explainer = tiny_explainer()
    network = explainer._detector.network
    crops = crops_of(1)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    explainer.explain(crops)
    before = tensors()
    for number in range(1000):
        # All methods, and the slow one (a decomposition per call) only now and then.
        quick = ("grad-cam", "grad-cam++", "layer-cam", "hires-cam")[number % 4]
        explainer.explain(crops, ExplainOptions("eigen-cam" if number % 100 == 0 else quick))
    with pytest.raises(OptionError):
        explainer.explain(crops, ExplainOptions(layer="none"))
    assert tensors() == before
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_hooks_are_released_when_the_network_fails():
    explainer = tiny_explainer()
    network = explainer._detector.network
    network[7].weight.data = torch.zeros(1, 3)
    with pytest.raises(RuntimeError):
        explainer.explain(crops_of(1))
    assert not any(module._forward_hooks for module in network.modules())


def test_batches_and_threads_do_not_change_the_maps(monkeypatch):
    crops = crops_of(7)
    alone = [tiny_explainer().explain(crop[None])[0] for crop in crops]
    monkeypatch.setattr(explainer_module, "MAX_BATCH", 3)
    explainer = tiny_explainer()
    found: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda key=key: found.update({key: explainer.explain(crops)})) for key in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3]
    for several in found.values():
        for one, other in zip(alone, several, strict=True):
            # Batches choose other kernels of the same arithmetic.
            np.testing.assert_allclose(other.heatmap, one.heatmap, atol=1e-4)
            assert other.fake_probability == pytest.approx(one.fake_probability, abs=1e-6)


def test_the_score_is_that_of_the_served_graph_and_the_overlay_shows_the_heat():
    explainer = tiny_explainer()
    crops = crops_of()
    # Layer-CAM has heat for every network; Grad-CAM may find nothing that speaks for fake.
    found = explainer.explain(crops, ExplainOptions("layer-cam"))
    detector = ServedDetector(tiny_network(), spec_of()).eval()
    with torch.inference_mode():
        expected = detector(torch.from_numpy(crops))[0][:, 0].numpy()
    np.testing.assert_allclose([item.fake_probability for item in found], expected, atol=1e-6)
    for crop, item in zip(crops, found, strict=True):
        assert item.heatmap.dtype == np.float32
        assert 0 <= item.heatmap.min() <= item.heatmap.max() <= 1
        changed = np.abs(item.overlay.astype(int) - crop).sum(axis=2)
        assert changed[item.heatmap == 0].max(initial=0) == 0
        assert changed[item.heatmap > 0.9].mean() > changed[item.heatmap < 0.2].mean()


def test_agreement_needs_the_served_checkpoint_and_the_served_score():
    explainer = tiny_explainer()
    crops = crops_of()
    scores = explainer.score(crops)
    (first, *_) = explainer.explain(crops, served=ServedScores(scores, SHA))
    assert first.served_probability == pytest.approx(first.fake_probability, abs=1e-6)
    assert first.tolerance == TOLERANCES["fp32"].probability_abs
    with pytest.raises(ExplainDisagreementError, match=f"{OTHER_SHA}, but {SHA} is loaded here"):
        explainer.explain(crops, served=ServedScores(scores, OTHER_SHA))
    with pytest.raises(ExplainDisagreementError, match="does not say which checkpoint"):
        explainer.explain(crops, served=ServedScores(scores, None))
    with pytest.raises(OptionError, match="one per crop"):
        explainer.explain(crops, served=ServedScores(scores[:1], SHA))
    wrong = scores.copy()
    wrong[1] += 0.01
    with pytest.raises(ExplainDisagreementError) as raised:
        explainer.explain(crops, served=ServedScores(wrong, SHA))
    assert f"PyTorch gives {scores[1]:.6f} for crop 1, but the server gave {wrong[1]:.6f}" in str(raised.value)
    # What FP16 may change is not an error for FP16.
    explainer.explain(crops, served=ServedScores(wrong, SHA, "fp16"))
    with pytest.raises(OptionError, match="`precision` is 'fp8'; allowed: fp32, fp16, bf16, int8"):
        explainer.explain(crops, served=ServedScores(scores, SHA, "fp8"))
    with pytest.raises(ExplainDisagreementError):
        check_scores(scores, ServedScores(np.full_like(scores, np.nan), SHA))
    plan = ServedScores(scores, SHA, "fp16", tensorrt=True)
    assert check_scores(scores, plan) == TOLERANCES["fp16"].probability_abs + PLAN_PROBABILITY_ABS["fp16"]


def test_other_weights_under_the_same_hash_are_noticed():
    crops = crops_of()
    served = ServedScores(CheckpointExplainer(tiny_network(seed=9), spec_of()).score(crops), SHA)
    with pytest.raises(ExplainDisagreementError, match="apart"):
        tiny_explainer().explain(crops, served=served)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    specs = {
        "eyes": spec_of("timm:test_efficientnet", input_height_px=64, input_width_px=64, checkpoint_sha256=None),
        "texture": spec_of("layers", head=Head(layers=("conv:4", "relu", "avgpool", "flatten", "linear:1")),
                           checkpoint_sha256=None),
    }  # fmt: skip
    for name, spec in specs.items():
        save_file(seeded(lambda spec=spec: build_network(spec)).state_dict(), folder / f"{name}.safetensors")
        (folder / f"{name}.yaml").write_text(spec.to_yaml().replace("name: tiny", f"name: {name}"))
    frequency = {
        "name": "frequency", "checkpoint": "frequency.safetensors", "architecture": "layers", "input": "log_spectrum",
        "input_height_px": 32, "input_width_px": 32,
        "head": {"layers": ["conv:4", "relu", "avgpool", "flatten", "linear:1"]},
    }  # fmt: skip
    members = [{"checkpoint": f"{name}.safetensors", "weight": 1 + index} for index, name in enumerate(specs)]
    data = {"name": "both", "architecture": "ensemble", "members": [*members, frequency]}
    spec = ModelSpec(
        "f", "layers", input_height_px=32, input_width_px=32, head=Head(layers=tuple(frequency["head"]["layers"]))
    )
    save_file(seeded(lambda: build_network(spec, in_channels=1)).state_dict(), folder / "frequency.safetensors")
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(data))
    return CheckpointExplainer.load(folder / "ensemble.yaml")


def test_each_member_of_an_ensemble_is_explained_and_weighs_what_it_counts(ensemble):
    crops = crops_of(2, side=64)
    for found in ensemble.explain(crops):
        eyes, texture, frequency = found.members
        assert [member.name for member in found.members] == ["eyes", "texture", "frequency"]
        assert [member.domain for member in found.members] == ["pixels", "pixels", "frequencies"]
        assert eyes.weight + texture.weight == pytest.approx(1)
        assert frequency.weight == 0
        assert all(member.heatmap.shape == (64, 64) for member in found.members)
        combined = eyes.weight * eyes.heatmap + texture.weight * texture.heatmap
        np.testing.assert_allclose(found.heatmap, combined / max(combined.max(), 1e-9), atol=1e-5)
    np.testing.assert_allclose(
        [found.fake_probability for found in ensemble.explain(crops)], ensemble.score(crops), atol=1e-6
    )


def test_an_ensembles_explanation_is_written_as_json_and_read_back(ensemble):
    (found,) = ensemble.explain(crops_of(1, side=64))
    back = ExplainAnswer.model_validate_json(ExplainAnswer(explanation=found).model_dump_json()).explanation
    assert back.facts() == json.loads(json.dumps(found.facts()))
    for one, other in zip(back.members, found.members, strict=True):
        np.testing.assert_array_equal(one.heatmap, other.heatmap)


def test_a_members_map_is_that_of_the_member_alone(ensemble):
    crops = crops_of(2, side=64)
    branch = ensemble._ensemble.branches[0]
    layer = branch.network.bn2
    with CAMS["layer-cam"](branch, [layer]) as cam:
        pixels = (torch.from_numpy(crops).permute(0, 3, 1, 2) / 255).requires_grad_()
        expected = cam(pixels, [ClassifierOutputTarget(0)] * 2)
    for found, heatmap in zip(ensemble.explain(crops, ExplainOptions("layer-cam")), expected, strict=True):
        np.testing.assert_allclose(found.members[0].heatmap, heatmap, atol=1e-5)


def test_a_layer_of_an_ensemble_is_named_with_its_member(ensemble):
    assert ensemble.default_layer() == "eyes:network.bn2, texture:network.1, frequency:network.1"
    (found,) = ensemble.explain(crops_of(1, side=64), ExplainOptions(layer="texture:network.0"))
    assert found.layer == "eyes:network.bn2, texture:network.0, frequency:network.1"
    with pytest.raises(OptionError, match="MEMBER:LAYER, where MEMBER is eyes or texture or frequency"):
        ensemble.explain(crops_of(1, side=64), ExplainOptions(layer="bn2"))


LANDMARKS = np.array([[34, 40], [62, 40], [48, 56], [37, 70], [59, 70]], np.float32)


def test_parts_of_the_face_lie_where_its_landmarks_are():
    parts = part_map(LANDMARKS, (96, 110))
    for (x, y), part in zip(LANDMARKS.astype(int), ("eyes", "eyes", "nose", "mouth", "mouth"), strict=True):
        assert PARTS[parts[y, x]] == part
    for (x, y), part in {(48, 22): "forehead", (28, 56): "cheeks", (48, 86): "jaw", (2, 2): "outside face"}.items():
        assert PARTS[parts[y, x]] == part
    # A face that lies on its side has them turned with it.
    turned = np.stack([LANDMARKS[:, 1], 96 - LANDMARKS[:, 0]], axis=1)
    sideways = part_map(turned, (110, 97))
    assert PARTS[sideways[48, 22]] == "forehead"
    assert PARTS[sideways[(96 - 48), 86]] == "jaw"


def test_regions_are_the_hot_areas_named_and_with_their_share():
    heatmap = np.zeros((110, 96), np.float32)
    heatmap[38:44, 30:38] = 1.0
    heatmap[66:74, 40:56] = 0.8
    heatmap[0, 0] = 0.9
    parts = part_map(LANDMARKS, (96, 110))
    mouth, eye = find_regions(heatmap, parts)
    assert (mouth.part, mouth.box_xyxy) == ("mouth", (40, 66, 56, 74))
    assert (eye.part, eye.box_xyxy) == ("eyes", (30, 38, 38, 44))
    assert mouth.share == pytest.approx(0.8 * 128 / heatmap.sum())
    shares = part_shares(heatmap, parts)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == list(PARTS)
    assert find_regions(heatmap, None)[0].part is None
    assert part_shares(heatmap, None) == {}
    assert find_regions(np.zeros_like(heatmap), parts) == ()


def in_frame(geometry, points_xy):
    """Points ``[N, 2]`` of the crop in pixels of the frame."""
    return points_xy @ geometry.to_frame[:, :2].T + geometry.to_frame[:, 2]


@pytest.mark.parametrize("align", ["none", "eyes"])
@pytest.mark.parametrize("box", [(30.3, 20.2, 70.9, 75.7), (20, 30, 32, 44), (-20, 60, 40, 130)])
def test_a_crop_lies_in_the_frame_where_the_geometry_says(align, box):
    """Each pixel of the frame holds its own place, so each pixel of the crop says where it comes from."""
    # Doubled, because the mean of two neighbors would always be rounded to the same side.
    columns, rows = np.meshgrid(2 * np.arange(125), 2 * np.arange(120))
    frame = ArrayFrame.from_rgb(np.stack([columns, rows, np.full_like(rows, 255)], axis=-1).astype(np.uint8))
    left, top, right, _ = box
    eyes = [[left + 4, top + 9], [right - 4, top + 6]]
    face = Face(np.array(box, np.float32), 1.0, np.array([*eyes, *eyes[:1] * 3], np.float32))
    spec = spec_of(crop=Crop(0.2, align), input_height_px=20, input_width_px=24)
    crop = crop_face(frame, face, spec)
    geometry = crop_geometry(face, (125, 120), spec)
    pixels_xy = np.stack(np.meshgrid(np.arange(24), np.arange(20)), axis=-1).reshape(-1, 2)
    places = in_frame(geometry, pixels_xy)
    # Blue marks what lies inside the frame; at its edge, black is averaged in.
    inside = crop.reshape(-1, 3)[:, 2] == 255
    assert inside.sum() > 100
    error = crop.reshape(-1, 3)[inside, :2] / 2 - places[inside]
    # Values are whole, after one or two roundings, and do not lean to any side.
    assert np.abs(error).max() < 0.7
    assert np.abs(error.mean(axis=0)).max() < 0.1
    np.testing.assert_allclose(geometry.points_to_crop(places), pixels_xy, atol=1e-9)


def test_a_heatmap_lies_in_the_frame_under_its_crop():
    face = Face(np.array([60, 40, 120, 100], np.float32), 1.0)
    spec = spec_of(crop=Crop(0.0))
    geometry = crop_geometry(face, (200, 160), spec)
    heatmap = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    heatmap[12, 36] = 1.0
    found = geometry.heatmap_to_frame(np.maximum(heatmap, 0.1), (200, 160))
    assert found.shape == (160, 200)
    x, y = in_frame(geometry, np.array([[36, 12]]))[0]
    hottest = np.unravel_index(found.argmax(), found.shape)
    assert abs(hottest[0] - y) <= 1
    assert abs(hottest[1] - x) <= 1
    covered = cv2.boundingRect((found > 0).astype(np.uint8))
    assert covered == (60, 40, 60, 60)


def test_deletion_and_insertion_tell_a_true_map_from_a_false_one():
    crop = crops_of(1)[0]
    crop[8:16, 8:16] = 250

    def bright_patch(crops):
        return (crops[:, 8:16, 8:16].mean(axis=(1, 2, 3)) / 255).astype(np.float32)

    true = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    true[6:18, 6:18] = 1.0
    false = 1 - true
    black = (0, 0, 0)
    good = measure_faithfulness(crop, true, bright_patch, mean_rgb=black)
    bad = measure_faithfulness(crop, false, bright_patch, mean_rgb=black)
    assert good.deletion_auc < good.random_deletion_auc < bad.deletion_auc
    assert good.insertion_auc > good.random_insertion_auc > bad.insertion_auc
    assert good.deletion[0] == pytest.approx(float(bright_patch(crop[None])[0]))
    assert good.deletion[-1] == 0
    assert good.insertion[-1] == pytest.approx(good.deletion[0])
    assert len(good.deletion) == 17


def test_randomized_weights_are_others_and_the_map_is_compared_with_theirs():
    network = tiny_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    other = randomized(network, seed=1)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert not torch.equal(other[0].weight, network[0].weight)
    assert other[0].weight.detach().std().item() == pytest.approx(network[0].weight.detach().std().item(), rel=0.3)
    heatmap = np.random.default_rng(0).random((SIDE_PX, SIDE_PX), np.float32)
    same = compare_maps(heatmap, heatmap[None])
    assert same.rank_correlation == pytest.approx(1)
    assert same.ssim == pytest.approx(1)
    assert compare_maps(heatmap, 1 - heatmap[None]).rank_correlation == pytest.approx(-1)
    assert compare_maps(heatmap, np.zeros_like(heatmap)[None]).rank_correlation == 0
    (found,) = tiny_explainer().explain(crops_of(1), ExplainOptions(faithfulness=True, sanity=True))
    assert -1 <= found.checks["sanity"]["rank_correlation"] < 0.999
    assert found.checks["faithfulness"]["deletion"][0] == pytest.approx(found.fake_probability, abs=1e-5)
