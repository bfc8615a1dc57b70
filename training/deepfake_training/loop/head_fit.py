"""Fits the last layer of a network of which nothing else is trained: logistic regression on what reaches that layer.

Each crop passes through the network once. The best weights for all crops so far are then computed at once, which
takes seconds and needs no learning rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepfake_preprocess.errors import OptionError
from deepfake_training.loop.distilling import seen_and_logit

MAX_STEPS = 500
"""Limit of L-BFGS's steps; about ten suffice."""


class HeadFit:
    """Collects what reaches the last layer, and fits the layer to it.

    Args:
        detector: called with crops.
        layer: the linear layer of it that gives the logit.
        penalty: factor of half the squared weights that is added to the sum of the losses.

    Raises:
        OptionError: the layer does not give a single logit.
    """

    def __init__(self, detector: nn.Module, layer: nn.Linear, penalty: float) -> None:
        if layer.out_features != 1:
            raise OptionError("only a head that ends in one logit can be trained alone; train 'norms_and_head'")
        self._detector, self._layer, self._penalty = detector, layer, penalty
        self.features = torch.zeros(0, self._layer.in_features)
        self.labels = torch.zeros(0, 1)

    @torch.no_grad()
    def collect(self, crops: Tensor, labels: Tensor) -> None:
        """Add the features of a batch."""
        features, _ = seen_and_logit(self._detector, self._layer, crops)
        self.features = torch.cat([self.features, features.float().cpu()])
        self.labels = torch.cat([self.labels, labels.cpu()])

    def fit(self) -> float:
        """Set the layer to the best weights for all that was collected; return the mean loss, without penalty."""
        features, labels = self.features.double(), self.labels[:, 0].double()
        weight = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

        def losses() -> Tensor:
            return functional.binary_cross_entropy_with_logits(features @ weight + bias, labels, reduction="sum")

        def objective() -> float:
            solver.zero_grad()
            value = losses() + self._penalty / 2 * weight.square().sum()
            torch.autograd.backward(value)
            return float(value.detach())

        solver.step(objective)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._layer.weight.copy_(weight[None])
            if self._layer.bias is not None:
                self._layer.bias.copy_(bias)
            return float(losses()) / len(labels)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {"features": self.features, "labels": self.labels}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        self.features, self.labels = state["features"], state["labels"]
