"""What explaining a face yields: `Explanation` and its parts. Plain data and NumPy; PyTorch is not needed to hold it.

Made by `deepfake_explain` (in this process, or behind its service) and drawn by `deepfake_client.explain.sheet`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.encoding import Heatmap, Picture
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.json_data import JsonData

METHODS = ("grad-cam", "grad-cam++", "eigen-cam", "layer-cam", "hires-cam")
"""Names of the methods; see `deepfake_explain._cam`."""
DEFAULT_METHOD = "grad-cam"

DEFAULT_SERVICE_URL = "http://127.0.0.1:8005"
"""Where `deepfake explain-serve` listens."""


@dataclass(frozen=True, slots=True)
class Region(JsonData):
    """One connected area of a heatmap that matters.

    Attributes:
        box_xyxy: left, top, right, bottom in pixels of the crop; right and bottom are exclusive.
        share: of the heatmap's total, in [0, 1].
        part: of the face, that holds most of the area's heat (see `deepfake_explain.regions.PARTS`); None without
            landmarks.
    """

    box_xyxy: tuple[int, int, int, int]
    share: float
    part: str | None


@dataclass(frozen=True, slots=True, eq=False)
class MemberHeatmap(JsonData):
    """What one member of an ensemble looked at.

    Attributes:
        name: of the member.
        heatmap: float32 ``[H, W]`` in [0, 1], over the crop; for ``frequencies`` over the shifted spectrum (zero
            frequency in the middle), resized to the crop's size.
        domain: ``pixels`` or ``frequencies``.
        layer: target layer inside the member.
        fake_probability: of the member alone, in [0, 1].
        weight: share of the member in the ensemble's heatmap, in [0, 1].
    """

    name: str
    heatmap: Heatmap
    domain: str
    layer: str
    fake_probability: float
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation(JsonData):
    """Where a detector saw the fake in one crop.

    Attributes:
        heatmap: float32 ``[H, W]`` in [0, 1] in the crop's pixels; all 0 where nothing in the layer speaks for fake.
        overlay: uint8 ``[H, W, 3]`` RGB, the heatmap over the crop.
        fake_probability: that PyTorch gives for this crop, in [0, 1].
        served_probability: what the server gave for it; None where it was not compared.
        tolerance: how far the two may be apart; None where it was not compared.
        method: one of `METHODS`.
        layer: target layer; for an ensemble the members' layers, with commas.
        checkpoint_sha256: of the checkpoint that was explained.
        regions: areas that matter, the largest share first.
        part_shares: share of the heat on each part of the face, adding up to 1; empty without landmarks or heat.
        members: one per member of an ensemble; empty for a single network.
        checks: faithfulness and sanity, as far as they were asked for (plain JSON data).
    """

    heatmap: Heatmap
    overlay: Picture
    fake_probability: float
    served_probability: float | None
    tolerance: float | None
    method: str
    layer: str
    checkpoint_sha256: str
    regions: tuple[Region, ...] = ()
    part_shares: Mapping[str, float] = field(default_factory=dict)
    members: tuple[MemberHeatmap, ...] = ()
    checks: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        height, width = self.heatmap.shape
        return f"Explanation({self.method} on {self.layer}, {width}x{height} px, {self.fake_probability:.4f})"

    def facts(self) -> dict[str, Any]:
        """Return plain JSON data for people: without the pictures, and with shares of four decimals."""
        data = self.to_dict(exclude={"heatmap": True, "overlay": True, "members": {"__all__": {"heatmap"}}})
        for part in data["regions"]:
            part["share"] = round(part["share"], 4)
        for part in data["members"]:
            part["weight"] = round(part["weight"], 4)
        data["part_shares"] = {part: round(share, 4) for part, share in data["part_shares"].items()}
        return data


@dataclass(frozen=True, slots=True, eq=False)
class ServedScores:
    """What a server said about crops, for the comparison with PyTorch.

    Attributes:
        probabilities: float32 ``[N]`` fake probabilities, one per crop.
        checkpoint_sha256: hash of the checkpoint that the served model reports; None where it reports none.
        precision: of the served model: ``fp32``, ``fp16``, ``bf16`` or ``int8``. Decides how far scores may be apart.
        tensorrt: whether a TensorRT plan is served.
    """

    probabilities: NDArray[np.float32]
    checkpoint_sha256: str | None
    precision: str = "fp32"
    tensorrt: bool = False


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """How crops are explained.

    Attributes:
        method: one of `METHODS`.
        layer: target layer by its name in PyTorch; found from the architecture when None. For an ensemble
            ``MEMBER:LAYER``, which leaves the other members' as they are.
        faithfulness: also compute deletion and insertion curves (dozens of forward passes per crop).
        sanity: also compare with randomized weights.

    Raises:
        OptionError: the method is unknown.
    """

    method: str = DEFAULT_METHOD
    layer: str | None = None
    faithfulness: bool = False
    sanity: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"`method` is {self.method!r}; allowed: {', '.join(METHODS)}")


class Explainer(Protocol):
    """Explains crops: `deepfake_explain.CheckpointExplainer`, or `explain.service.ServiceExplainer` from afar."""

    def explain(
        self,
        crops: NDArray[np.uint8],
        options: ExplainOptions,
        *,
        landmarks_xy: Sequence[NDArray[np.float32] | None] | None = None,
        served: ServedScores | None = None,
    ) -> list[Explanation]:
        """Return one `Explanation` per crop.

        Args:
            crops: uint8 ``[N, H, W, 3]`` RGB of the model's input size.
            options: method, layer and extra checks.
            landmarks_xy: per crop float32 ``[5, 2]`` in its pixels, or None; face parts are named after them.
            served: what the server gave for these crops; compared before anything is returned.

        Raises:
            OptionError: crops of another size, an unknown method or layer.
            ExplainDisagreementError: the checkpoint is not the one served, or does not give the served scores.
            ServerError: the service cannot be reached or failed.
        """
        ...

    def close(self) -> None:
        """Release what the explainer holds."""
        ...
