"""Fits the last layer of a network of which nothing else is trained, to labels or to what a teacher says.

Each crop passes through the network once. The best weights for all crops so far are then computed at once, which
takes seconds and needs no learning rate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepfake_preprocess.errors import OptionError
from deepfake_training.loop.distilling import seen_and_logit
from deepfake_training.loop.ridge import FEWEST, regress

MAX_STEPS = 500
"""Limit of L-BFGS's steps; about ten suffice."""


class HeadFit(ABC):
    """Collects what reaches the last layer with what it shall say, and fits the layer to it.

    Args:
        detector: called with crops.
        layer: the linear layer of it that gives the logit.

    Raises:
        OptionError: the layer does not give a single logit.
    """

    def __init__(self, detector: nn.Module, layer: nn.Linear) -> None:
        if layer.out_features != 1:
            raise OptionError("only a head that ends in one logit can be trained alone; train 'norms_and_head'")
        self._detector, self._layer = detector, layer
        self.features = torch.zeros(0, layer.in_features)
        self.wanted = torch.zeros(0, 1)

    def collect(self, crops: Tensor, labels: Tensor, *answers: Tensor) -> float:
        """Add the features of a batch; return the mean loss of the layer as it is."""
        with torch.no_grad():
            features, logit = seen_and_logit(self._detector, self._layer, crops)
        wanted = self._wanted(labels, *answers).cpu()
        self.features = torch.cat([self.features, features.float().cpu()])
        self.wanted = torch.cat([self.wanted, wanted])
        return float(self._losses(logit.float().cpu(), wanted).mean())

    def fit(self) -> float:
        """Set the layer to the best weights for all that was collected; return the mean loss, without penalty."""
        features, wanted = self.features.double(), self.wanted.double()
        weight, bias = self._best(features, wanted)
        with torch.no_grad():
            self._layer.weight.copy_(weight[None])
            if self._layer.bias is not None:
                self._layer.bias.copy_(bias)
        return float(self._losses((features @ weight + bias)[:, None], wanted).mean())

    @staticmethod
    @abstractmethod
    def _wanted(labels: Tensor, *answers: Tensor) -> Tensor:
        """Return what the layer shall say of a batch, ``[N, 1]``."""

    @staticmethod
    @abstractmethod
    def _losses(logit: Tensor, wanted: Tensor) -> Tensor:
        """Return the loss of each crop."""

    @abstractmethod
    def _best(self, features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights ``[F]`` and the bias ``[1]`` for features ``[N, F]``."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {"features": self.features, "wanted": self.wanted}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        self.features, self.wanted = state["features"], state["wanted"]


class LabelFit(HeadFit):
    """Logistic regression on the labels.

    Args:
        detector: called with crops.
        layer: the linear layer of it that gives the logit.
        penalty: factor of half the squared weights that is added to the sum of the losses.
    """

    def __init__(self, detector: nn.Module, layer: nn.Linear, penalty: float) -> None:
        super().__init__(detector, layer)
        self._penalty = penalty

    @staticmethod
    def _wanted(labels: Tensor, *_: Tensor) -> Tensor:
        return labels

    @staticmethod
    def _losses(logit: Tensor, wanted: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logit, wanted, reduction="none")

    def _best(self, features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

        def objective() -> float:
            solver.zero_grad()
            losses = self._losses((features @ weight + bias)[:, None], wanted)
            value = losses.sum() + self._penalty / 2 * weight.square().sum()
            torch.autograd.backward(value)
            return float(value.detach())

        solver.step(objective)  # type: ignore[no-untyped-call]
        return weight.detach(), bias.detach()


class TaughtFit(HeadFit):
    """Ridge regression on a teacher's logits, which draws the weights to those that the run began with.

    A network that has learned from the same teacher before, or is the teacher with smaller crops, says nearly what it
    shall already. Few crops suffice for the rest, and the penalty is the one that predicts those best that the
    regression was not fitted to.
    """

    def __init__(self, detector: nn.Module, layer: nn.Linear) -> None:
        super().__init__(detector, layer)
        bias = torch.zeros(1) if layer.bias is None else layer.bias
        self._start = torch.cat([layer.weight[0], bias]).detach().double().cpu()

    @staticmethod
    def _wanted(labels: Tensor, *answers: Tensor) -> Tensor:
        _, logit = answers
        return logit

    @staticmethod
    def _losses(logit: Tensor, wanted: Tensor) -> Tensor:
        return (logit - wanted).square()

    def _best(self, features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        if len(features) < FEWEST:
            raise OptionError(f"{len(features)} taught crops are too few for a regression; it takes {FEWEST}")
        weight, bias = self._start[:-1], self._start[-1:]
        missing = wanted[:, 0] - features @ weight - bias
        found = regress(features.numpy(), missing.numpy())
        return weight + torch.from_numpy(found.weights), bias + found.bias
