"""`ServedDetector`: a network with everything around it that the wire contract puts inside the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepfake_preprocess.contract.spec import ModelSpec


class ServedDetector(nn.Module):
    """From UINT8 RGB crops to the probability of "fake".

    The input is uint8 ``[N, H, W, 3]`` RGB in [0, 255]. The outputs are `fake_probability`, FP32 ``[N, 1]`` in
    [0, 1], and `logit`, FP32 ``[N, 1]``, of which the probability is the sigmoid: the network's own logit for a
    ``sigmoid`` head (negated where a positive one means real), ``z_fake - z_real`` for a ``softmax`` head (whose
    two-class softmax is exactly that difference's sigmoid), divided by the spec's `temperature`.

    Attributes:
        network: takes FP32 ``[N, 3, H, W]`` in the spec's color order, gives ``[N, num_logits]``.
    """

    scale: Tensor
    offset: Tensor
    channel_order: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        self._kind = spec.head.kind
        self._fake_index = spec.head.fake_index
        self._temperature = spec.temperature
        # (x / 255 - mean) / std as one multiply-add; computed in double, to be rounded once.
        mean = torch.tensor(spec.mean, dtype=torch.float64)
        std = torch.tensor(spec.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", (-mean / std).float().view(1, -1, 1, 1), persistent=False)
        self._reorder = spec.color_order == "BGR"
        self.register_buffer("channel_order", torch.tensor([2, 1, 0]), persistent=False)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return `fake_probability` and `logit`, each FP32 ``[N, 1]``, of uint8 ``[N, H, W, 3]`` RGB crops."""
        logit = self.logit_of(self.network(self.normalize(faces)))
        return torch.sigmoid(logit), logit

    def normalize(self, faces: Tensor) -> Tensor:
        """Return FP32 ``[N, 3, H, W]``, as the network was trained with, of uint8 ``[N, H, W, 3]`` RGB crops."""
        # The cast comes first: NVIDIA's parser refuses Transpose and Gather on UINT8. Planes come next: ONNX Runtime
        # multiplies and adds plane by plane several times as fast as pixel by pixel. A permuted NHWC tensor counts
        # as channels-last, and then the exporter writes global average pooling with an `as_strided` (Range, Add,
        # Gather over the batch) behind it.
        pixels = faces.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        if self._reorder:
            pixels = torch.index_select(pixels, 1, self.channel_order)
        return pixels * self.scale + self.offset

    def logit_of(self, outputs: Tensor) -> Tensor:
        """Return the `logit` ``[N, 1]`` of the network's own outputs, ``[N, num_logits]`` (or ``[N]`` for one)."""
        if self._kind == "softmax":
            fake, real = self._fake_index, 1 - self._fake_index
            logit = outputs[:, fake : fake + 1] - outputs[:, real : real + 1]
        else:
            # `squeeze()` at the end of a network leaves no dimension of a batch of one.
            logit = outputs.reshape(-1, 1) if outputs.ndim < 2 else outputs
            logit = logit if self._fake_index == 1 else -logit
        return logit if self._temperature == 1.0 else logit / self._temperature
