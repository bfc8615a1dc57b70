"""`CheckpointExplainer`: heatmaps for face crops from the checkpoint that a served model was made from.

One object belongs to one device and explains one batch at a time, whoever calls it from whatever thread: the hooks
that listen to the network's layers would mix up two batches. Nothing is trained, so nothing but the target layer's
output ever gets a gradient, and no hook outlives its call.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepfake_client.explain.overlay import overlay_heatmap
from deepfake_client.explain.types import ExplainOptions, Explanation, MemberHeatmap, ServedScores
from deepfake_explain._agreement import check_checkpoint, check_scores
from deepfake_explain._cam import heatmaps_of
from deepfake_explain._target_layer import TargetLayer, find_target_layer, list_names, spatial_layers
from deepfake_explain.faithfulness import RANDOMIZED, compare_maps, measure_faithfulness, randomized
from deepfake_explain.regions import find_regions, part_map, part_shares
from deepfake_export.ensemble.network import EnsembleNetwork
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.network import load_network
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import ExplainError, OptionError

MAX_BATCH = 8
"""Crops per pass: larger batches win nothing on a CPU, and memory grows with them."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """One network that has a heatmap of its own: the whole detector, or a member of an ensemble."""

    name: str
    network: nn.Module
    head: Head
    domain: str
    layers: tuple[TargetLayer, ...]

    def label(self, layer: TargetLayer) -> str:
        """Return how people name one of its layers."""
        return f"{self.name}:{layer.name}" if self.name else layer.name

    def twin(self, network: nn.Module) -> _Subject:
        """Return the same subject with a copy of its network, whose layers have the same names."""
        layers = tuple(dataclasses.replace(layer, module=network.get_submodule(layer.name)) for layer in self.layers)
        return dataclasses.replace(self, network=network, layers=layers)


@dataclass(frozen=True, slots=True, eq=False)
class _Heat:
    """Heatmaps of a batch: combined float32 ``[N, H, W]``, probabilities ``[N]``, and those of each member."""

    maps: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    members: tuple[tuple[MemberHeatmap, ...], ...]


class CheckpointExplainer:
    """Explains crops with the checkpoint itself; a `deepfake_client.explain.types.Explainer`.

    ::

        explainer = CheckpointExplainer.load("detector.safetensors")
        (explanation,) = explainer.explain(crop[None], ExplainOptions(method="hires-cam"))

    Safe to use from several threads, which take turns.

    Attributes:
        spec: contract of the detector, with the checkpoint's hash.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec, *, device: str = "cpu") -> None:
        """Take over a network, which must not be used elsewhere meanwhile.

        Args:
            network: FP32 ``[N, 3, H, W]`` -> ``[N, num_logits]``; that of `load_network`.
            spec: its contract, with `checkpoint_sha256`.
            device: PyTorch's name of the device, such as ``cpu`` or ``cuda:0``.

        Raises:
            OptionError: the device is not there.
            ExplainError: the network cannot be listened to (TorchScript).
        """
        if spec.checkpoint_sha256 is None:
            raise OptionError("the spec holds no checkpoint_sha256; load the network with CheckpointExplainer.load")
        self.spec = spec
        self._device = _checked_device(device)
        self._lock = threading.Lock()
        self._detector = ServedDetector(network, spec).to(self._device).eval().requires_grad_(False)
        size = (1, 3, spec.input_height_px, spec.input_width_px)
        blank = torch.zeros(size, device=self._device)
        self._ensemble = network if isinstance(network, EnsembleNetwork) else None
        if self._ensemble is None:
            self._subjects = [_Subject("", network, spec.head, "pixels", spatial_layers(network, blank))]
        else:
            self._subjects = [
                _Subject(member.name, branch, member.head, _domain(branch), _named(member.name, branch, blank))
                for member, branch in zip(self._ensemble.member_specs, self._ensemble.branches, strict=True)
            ]
        self._targets(None)

    @classmethod
    def load(cls, checkpoint: str | Path, spec: ModelSpec | str | Path | None = None, *, device: str = "cpu") -> Self:
        """Load a checkpoint, as `deepfake export` does.

        Args:
            checkpoint: its file, or the YAML file of an ensemble.
            spec: contract or its YAML file; the one next to the checkpoint when None.
            device: PyTorch's name of the device.

        Raises:
            CheckpointError: the file cannot be read safely, or does not fit the spec.
            SpecError: there is no spec, or it is wrong.
            OptionError: the device is not there.
            ExplainError: the network cannot be listened to (TorchScript).
        """
        loaded = load_network(checkpoint, spec)
        return cls(loaded.network, loaded.spec, device=device)

    def close(self) -> None:
        """See `Explainer.close`; there is nothing to release."""

    def layer_names(self) -> tuple[str, ...]:
        """Return the layers that can be named, in the order in which they finish; members with their prefix."""
        return tuple(subject.label(layer) for subject in self._subjects for layer in subject.layers)

    def default_layer(self) -> str:
        """Return the layer that is taken where none is named; for an ensemble one per member, with commas."""
        return self._shown(self._targets(None))

    def score(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the fake probabilities float32 ``[N]`` of uint8 ``[N, H, W, 3]`` RGB crops, by PyTorch."""
        self._check_crops(crops)
        with self._lock, torch.inference_mode():
            return np.concatenate([self._detector(batch)[0][:, 0].cpu().numpy() for batch in self._batches(crops)])

    def explain(
        self,
        crops: NDArray[np.uint8],
        options: ExplainOptions | None = None,
        *,
        landmarks_xy: Sequence[NDArray[np.float32] | None] | None = None,
        served: ServedScores | None = None,
    ) -> list[Explanation]:
        """Explain crops; see `deepfake_client.explain.types.Explainer.explain`.

        Raises:
            OptionError: crops of another size or dtype, an unknown layer (the message lists those there are).
            ExplainDisagreementError: the checkpoint is not the served one, or its score not the served score.
        """
        options = options or ExplainOptions()
        self._check_crops(crops)
        layer = self._shown(self._targets(options.layer))
        if landmarks_xy is not None and len(landmarks_xy) != len(crops):
            raise OptionError(f"`landmarks_xy` must be one per crop ({len(crops)}), got {len(landmarks_xy)}")
        if served is not None:
            check_checkpoint(str(self.spec.checkpoint_sha256), served)
        if not len(crops):
            return []
        heat = self._heat(crops, options, self._subjects)
        tolerance = None if served is None else check_scores(heat.probabilities, served)
        checks = self._checks(crops, heat, options)
        parts = [self._parts(points) for points in ([None] * len(crops) if landmarks_xy is None else landmarks_xy)]
        return [
            Explanation(
                heatmap=heatmap,
                overlay=overlay_heatmap(crop, heatmap),
                fake_probability=float(heat.probabilities[index]),
                served_probability=None if served is None else float(served.probabilities[index]),
                tolerance=tolerance,
                method=options.method,
                layer=layer,
                checkpoint_sha256=str(self.spec.checkpoint_sha256),
                regions=find_regions(heatmap, parts[index]),
                part_shares=part_shares(heatmap, parts[index]),
                members=heat.members[index],
                checks=checks[index],
            )
            for index, (crop, heatmap) in enumerate(zip(crops, heat.maps, strict=True))
        ]

    def _heat(self, crops: NDArray[np.uint8], options: ExplainOptions, subjects: Sequence[_Subject]) -> _Heat:
        targets = self._targets(options.layer, subjects)
        parts = []
        # Each batch for itself, so a long request lets others take their turn.
        for batch in self._batches(crops):
            with self._lock:
                parts.append(self._heat_of_batch(batch, options.method, subjects, targets))
        return _Heat(
            np.concatenate([part.maps for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            tuple(members for part in parts for members in part.members),
        )

    def _heat_of_batch(
        self, batch: Tensor, method: str, subjects: Sequence[_Subject], targets: Sequence[TargetLayer]
    ) -> _Heat:
        inputs = self._detector.normalize(batch)
        maps, outputs = zip(
            *(
                heatmaps_of(subject.network, inputs, layer, subject.head, method)
                for subject, layer in zip(subjects, targets, strict=True)
            ),
            strict=True,
        )
        if self._ensemble is None:
            probabilities = torch.sigmoid(self._detector.logit_of(outputs[0]))[:, 0].cpu().numpy()
            return _Heat(maps[0], probabilities, ((),) * len(batch))
        logits = torch.cat(outputs, dim=1)
        probabilities, weights = self._combine(logits)
        combined = _scaled(np.einsum("nm,mnhw->nhw", weights, np.stack(maps)))
        single = torch.sigmoid(logits).cpu().numpy()
        members = tuple(
            tuple(
                MemberHeatmap(
                    subject.name,
                    maps[m][n],
                    subject.domain,
                    targets[m].name,
                    fake_probability=float(single[n, m]),
                    weight=float(weights[n, m]),
                )
                for m, subject in enumerate(subjects)
            )
            for n in range(len(batch))
        )
        return _Heat(combined, probabilities, members)

    def _combine(self, logits: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the ensemble's probabilities ``[N]``, and each member's share in its heatmap, ``[N, M]``.

        A share is how much the ensemble's logit rises with the member's. A member that speaks for "real" when it
        rises, and one that sees frequencies and not places, has none.
        """
        assert self._ensemble is not None
        with torch.enable_grad():
            leaves = logits.detach().requires_grad_()
            combined = self._ensemble.combine(leaves)
            (slopes,) = torch.autograd.grad(combined.sum(), leaves)
        placed = torch.tensor([subject.domain == "pixels" for subject in self._subjects], device=slopes.device)
        shares = slopes.clamp_min(0) * placed
        shares = shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return torch.sigmoid(combined.detach())[:, 0].cpu().numpy(), shares.cpu().numpy().astype(np.float32)

    def _checks(self, crops: NDArray[np.uint8], heat: _Heat, options: ExplainOptions) -> list[Mapping[str, object]]:
        """Return what was asked for beyond the heatmaps, per crop."""
        checks: list[dict[str, object]] = [{} for _ in crops]
        if options.faithfulness:
            for crop, heatmap, found in zip(crops, heat.maps, checks, strict=True):
                measured = measure_faithfulness(crop, heatmap, self.score, mean_rgb=_mean_rgb(self.spec))
                found["faithfulness"] = measured.to_dict()
        if options.sanity:
            others = [
                self._heat(
                    crops, options, [item.twin(randomized(item.network, seed=seed)) for item in self._subjects]
                )
                for seed in range(RANDOMIZED)
            ]
            for index, found in enumerate(checks):
                compared = compare_maps(heat.maps[index], np.stack([other.maps[index] for other in others]))
                found["sanity"] = compared.to_dict()
        return list(checks)

    def _targets(self, name: str | None, subjects: Sequence[_Subject] | None = None) -> list[TargetLayer]:
        """Return the target layer of each subject; `name` is for the one it starts with the name of."""
        subjects = self._subjects if subjects is None else subjects
        if self._ensemble is None or name is None:
            return [find_target_layer(subject.layers, name) for subject in subjects]
        member, _, layer = name.partition(":")
        known = [subject.name for subject in subjects]
        if member not in known or not layer:
            raise OptionError(
                f"`layer` is {name!r}; allowed for an ensemble: MEMBER:LAYER, where MEMBER is {' or '.join(known)}, "
                f"and LAYER for {known[0]} one of {list_names(subjects[0].layers)}"
            )
        return [find_target_layer(subject.layers, layer if subject.name == member else None) for subject in subjects]

    def _shown(self, targets: Sequence[TargetLayer]) -> str:
        return ", ".join(map(_Subject.label, self._subjects, targets))

    def _parts(self, landmarks_xy: NDArray[np.float32] | None) -> NDArray[np.uint8] | None:
        if landmarks_xy is None or not np.isfinite(landmarks_xy).all():
            return None
        return part_map(landmarks_xy, self.spec.input_size_wh)

    def _batches(self, crops: NDArray[np.uint8]) -> Sequence[Tensor]:
        tensor = torch.from_numpy(np.ascontiguousarray(crops))
        return [batch.to(self._device) for batch in torch.split(tensor, MAX_BATCH)]

    def _check_crops(self, crops: NDArray[np.uint8]) -> None:
        width, height = self.spec.input_size_wh
        if crops.ndim != 4 or crops.shape[1:] != (height, width, 3) or crops.dtype != np.uint8:
            raise OptionError(
                f"crops must be uint8 [N, {height}, {width}, 3] RGB, got {crops.dtype} {list(crops.shape)}"
            )


def _named(name: str, branch: nn.Module, blank: Tensor) -> tuple[TargetLayer, ...]:
    try:
        return spatial_layers(branch, blank)
    except ExplainError as exc:
        raise ExplainError(f"member {name!r}: {exc}") from exc


def _domain(branch: nn.Module) -> str:
    return "pixels" if getattr(branch, "spectrum", None) is None else "frequencies"


def _scaled(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each map to its own largest value, as those of single networks are."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(maps, largest, out=np.zeros_like(maps), where=largest > 0), dtype=np.float32)


def _mean_rgb(spec: ModelSpec) -> tuple[int, int, int]:
    """Return the color that the normalization makes zero."""
    ordered = spec.mean if spec.color_order == "RGB" else spec.mean[::-1]
    red, green, blue = (int(np.clip(round(value * 255), 0, 255)) for value in ordered)
    return red, green, blue


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        usable = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise OptionError(
            f"`device` is {name!r}, which PyTorch cannot use here; usable: {', '.join(usable)}"
        ) from exc
    return device
