"""From a verdict to pictures of what it rests on: the most suspicious faces, cut out again, scored and explained.

Needs no PyTorch: the heatmaps come from an `Explainer`, which is a service or `deepfake_explain` in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.encoding import encode_png
from deepfake_client.explain.evidence import Evidence, suspicious_faces
from deepfake_client.explain.overlay import overlay_heatmap
from deepfake_client.explain.types import DEFAULT_SERVICE_URL, Explainer, ExplainOptions, Explanation, ServedScores
from deepfake_client.result.verdict import Verdict
from deepfake_client.transport.protocol import ServedModel
from deepfake_preprocess.errors import ExplainDisagreementError, NoFaceError, OptionError
from deepfake_preprocess.support.extras import require_extra


@dataclass(frozen=True, slots=True, eq=False)
class ExplainedFace(Evidence):
    """One face of a verdict with its explanation, also where in the frame it is.

    Attributes:
        explanation: where the model saw the fake.
    """

    explanation: Explanation

    def heatmap_in_frame(self) -> NDArray[np.float32]:
        """Return the heatmap in the frame's pixels, float32 ``[frame height, frame width]``, 0 around the crop."""
        return self.geometry.heatmap_to_frame(self.explanation.heatmap, self.frame_wh)

    def overlay_in_frame(self) -> NDArray[np.uint8]:
        """Return the preview with the heatmap over it, uint8 RGB."""
        size_wh = (self.preview.shape[1], self.preview.shape[0])
        heat = cv2.resize(self.heatmap_in_frame(), size_wh, interpolation=cv2.INTER_AREA)
        return overlay_heatmap(self.preview, np.asarray(heat, dtype=np.float32))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data: the face, where its crop lies, and the explanation without its pictures."""
        return {
            "track": self.pick.face.track,
            "frame_index": self.pick.frame.index,
            "pts_seconds": round(self.pick.frame.pts_seconds, 6),
            "box_xyxy": [round(value, 2) for value in self.pick.face.box_xyxy],
            "verdict_probability": self.pick.face.fake_probability,
            "crop_to_frame": [[round(float(value), 6) for value in row] for row in self.geometry.to_frame],
            **self.explanation.facts(),
        }


def open_explainer(
    *,
    service: str | None = None,
    checkpoint: str | Path | None = None,
    spec: str | Path | None = None,
    device: str = "cpu",
) -> Explainer:
    """Return who explains: a service, or with a checkpoint PyTorch in this process.

    Args:
        service: URL of a `deepfake explain-serve`; `DEFAULT_SERVICE_URL` when None and no checkpoint is given.
        checkpoint: the served model's checkpoint, or the YAML file of an ensemble.
        spec: its spec; the one next to it when None.
        device: PyTorch's name of the device, for a checkpoint.

    Raises:
        OptionError: both a service and a checkpoint are given.
        MissingExtraError: a checkpoint needs the extra `explain`, a service the extra `http`.
        CheckpointError: the checkpoint cannot be read or does not fit the spec.
    """
    if checkpoint is not None and service is not None:
        raise OptionError("`service` and `checkpoint` exclude each other; give one of them")
    # By name: the client must work where neither PyTorch nor an HTTP library is installed.
    explainer: Explainer
    if checkpoint is None:
        there = require_extra("deepfake_client.explain.service", extra="http")
        explainer = there.ServiceExplainer(service or DEFAULT_SERVICE_URL)
    else:
        here = require_extra("deepfake_explain.explainer", extra="explain")
        explainer = here.CheckpointExplainer.load(checkpoint, spec, device=device)
    return explainer


async def explain_faces(
    verdict: Verdict,
    evidence: Sequence[Evidence],
    *,
    get_model: Callable[[], Awaitable[ServedModel]],
    score: Callable[[NDArray[np.uint8]], Awaitable[NDArray[np.float32]]],
    explainer: Explainer,
    options: ExplainOptions,
) -> tuple[ExplainedFace, ...]:
    """Explain faces of a verdict, in the order of the evidence.

    The served score is asked for again, for the very crops that are explained, and compared with PyTorch's. Raises as
    `AsyncDeepfakeClient.explain` does.
    """
    if not evidence:
        reason = "none of its frames could be decoded again; is it the same file?"
        if not suspicious_faces(verdict, per_track=1):
            reason = "the verdict holds no scored face, so there is nothing to explain"
        raise NoFaceError(f"{verdict.source}: {reason}" + (f" ({verdict.detail})" if verdict.detail else ""))
    explanations = await explain_crops(
        verdict,
        np.stack([item.crop for item in evidence]),
        [item.landmarks_xy for item in evidence],
        get_model=get_model,
        score=score,
        explainer=explainer,
        options=options,
    )
    return tuple(
        ExplainedFace(
            item.pick, item.crop, item.landmarks_xy, item.geometry, item.frame_wh, item.preview, explanation
        )
        for item, explanation in zip(evidence, explanations, strict=True)
    )


def overlays_png(faces: Sequence[ExplainedFace]) -> dict[tuple[int, int], bytes]:
    """Return each overlay as the bytes of a PNG file, by (frame index, track), for a report to embed."""
    return {(face.pick.frame.index, face.pick.face.track): encode_png(face.explanation.overlay) for face in faces}


async def explain_crops(
    verdict: Verdict,
    crops: NDArray[np.uint8],
    landmarks_xy: Sequence[NDArray[np.float32] | None],
    *,
    get_model: Callable[[], Awaitable[ServedModel]],
    score: Callable[[NDArray[np.uint8]], Awaitable[NDArray[np.float32]]],
    explainer: Explainer,
    options: ExplainOptions,
) -> list[Explanation]:
    """Explain crops of a verdict, uint8 ``[N, H, W, 3]`` RGB as the model saw them, with landmarks in their pixels.

    The served score is asked for again and compared with PyTorch's. Raises as `AsyncDeepfakeClient.explain` does.
    """
    model = await get_model()
    known = verdict.model.checkpoint_sha256
    if known is not None and known != model.spec.checkpoint_sha256:
        raise ExplainDisagreementError(
            f"{verdict.source}: the verdict is of checkpoint {known}, but the server now serves "
            f"{model.spec.checkpoint_sha256}; analyze the file again"
        )
    served = ServedScores(await score(crops), model.spec.checkpoint_sha256, model.precision, model.tensorrt)
    return await asyncio.to_thread(explainer.explain, crops, options, landmarks_xy=landmarks_xy, served=served)
