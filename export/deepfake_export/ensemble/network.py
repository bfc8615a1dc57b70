"""`EnsembleNetwork`: several checkpoints as one network, which is exported, proved and served like any other.

It sees what `ServedDetector` gives every network (here plain RGB in [0, 1], at the size of the largest member) and
returns one logit. Each member resizes, reorders and normalizes for itself inside the graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepfake_export.checkpoint.loading import load_checkpoint
from deepfake_export.ensemble.meta_model import MetaModel
from deepfake_export.ensemble.spec import EnsembleSpec, Member
from deepfake_export.ensemble.transforms import KeepsFloat32, LogSpectrum, Shrink
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_preprocess.contract.spec import Head
from deepfake_preprocess.errors import CheckpointError, SpecError

SMALLEST_PROBABILITY = 1e-30
"""Where a mean of probabilities is cut off before its logarithm; far below any that a sigmoid gives in practice."""


class Branch(nn.Module):
    """One member: from the ensemble's pixels to the member's fake logit."""

    mean: Tensor
    std: Tensor
    channel_order: Tensor

    def __init__(self, network: nn.Module, member: Member, from_wh: tuple[int, int]) -> None:
        super().__init__()
        spec = member.spec
        self.network = network
        self.resize = Shrink(from_wh, spec.input_size_wh) if from_wh != spec.input_size_wh else nn.Identity()
        self.spectrum = LogSpectrum(spec.input_size_wh, member.spectrum) if member.spectrum else None
        self._reorder = spec.color_order == "BGR" and member.in_channels == 3
        channels = member.in_channels
        self.register_buffer("channel_order", torch.tensor([2, 1, 0]), persistent=False)
        self.register_buffer("mean", torch.tensor(spec.mean[:channels]).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std[:channels]).reshape(1, -1, 1, 1), persistent=False)
        # Which output means fake is decided in one place for single networks and members.
        self.logit_of = ServedDetector(nn.Identity(), spec).logit_of

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the fake logit ``[N, 1]`` of RGB ``[N, 3, H, W]`` in [0, 1]."""
        values = self.resize(pixels)
        if self.spectrum is not None:
            values = self.spectrum(values)
        if self._reorder:
            values = torch.index_select(values, 1, self.channel_order)
        return self.logit_of(self.network((values - self.mean) / self.std))


class WeightedMean(KeepsFloat32):
    """The weighted mean of the members' probabilities, as a logit."""

    weights: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        shares = torch.tensor(weights, dtype=torch.float64)
        self.register_buffer("weights", (shares / shares.sum()).float().reshape(-1, 1), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return ``[N, 1]`` of the members' logits ``[N, M]``."""
        logits = logits.to(torch.float32)
        # Both sides are averaged, because 1 - p has no digits left where p is almost 1.
        fake = torch.matmul(torch.sigmoid(logits), self.weights)
        real = torch.matmul(torch.sigmoid(-logits), self.weights)
        return torch.log(fake.clamp_min(SMALLEST_PROBABILITY)) - torch.log(real.clamp_min(SMALLEST_PROBABILITY))


class Regression(KeepsFloat32):
    """A logistic regression over the members' probabilities or logits."""

    coef: Tensor
    intercept: Tensor

    def __init__(self, meta_model: MetaModel) -> None:
        super().__init__()
        coef, intercept = meta_model.folded()
        self._of_probabilities = meta_model.features == "probability"
        self.register_buffer("coef", torch.tensor(coef, dtype=torch.float64).float().reshape(-1, 1), persistent=False)
        self.register_buffer("intercept", torch.tensor(intercept, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return ``[N, 1]`` of the members' logits ``[N, M]``."""
        logits = logits.to(torch.float32)
        features = torch.sigmoid(logits) if self._of_probabilities else logits
        return torch.matmul(features, self.coef) + self.intercept


class EnsembleNetwork(nn.Module):
    """All members side by side, and what combines them.

    Attributes:
        branches: one per member, in the order of the YAML file.
        combine: from the members' logits ``[N, M]`` to one, ``[N, 1]``.
        member_specs: one per member: the branch alone, as a detector on the ensemble's pixels.
    """

    def __init__(self, branches: Sequence[Branch], ensemble: EnsembleSpec) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.combine: nn.Module = (
            Regression(ensemble.meta_model)
            if ensemble.meta_model
            else WeightedMean([member.weight for member in ensemble.members])
        )
        self.member_specs = tuple(
            dataclasses.replace(ensemble.spec, name=member.spec.name, head=Head(), checkpoint_sha256=None)
            for member in ensemble.members
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the fake logit ``[N, 1]`` of RGB ``[N, 3, H, W]`` in [0, 1]."""
        return self.combine(torch.cat([branch(pixels) for branch in self.branches], dim=1))  # type: ignore[no-any-return]


def load_ensemble(ensemble: EnsembleSpec) -> tuple[EnsembleNetwork, tuple[str, ...]]:
    """Load an ensemble in eval mode, float32, on the CPU; and notes about what was read, as sentences.

    Raises:
        SpecError: a member's architecture is wrong.
        CheckpointError: a member's checkpoint cannot be read safely or does not fit.
    """
    branches, notes = [], []
    for index, member in enumerate(ensemble.members):
        try:
            network, reading = load_checkpoint(member.checkpoint, member.spec, in_channels=member.in_channels)
        except (CheckpointError, SpecError) as exc:
            raise type(exc)(f"{ensemble.path}: members[{index}] ({member.spec.name!r}): {exc}") from exc
        notes += [f"member {member.spec.name!r}: {note}" for note in reading.describe()]
        branches.append(Branch(network, member, ensemble.spec.input_size_wh))
    return EnsembleNetwork(branches, ensemble).eval(), tuple(notes)
