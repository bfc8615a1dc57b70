"""Heatmaps on demand: Grad-CAM and its relatives from a served model's checkpoint, proved to explain its score.

::

    from deepfake_explain import CheckpointExplainer, ExplainOptions

    explainer = CheckpointExplainer.load("detector.safetensors")
    (explanation,) = explainer.explain(crop[None], ExplainOptions(method="hires-cam"))

A side path: it never answers the question whether a face is fake, and serving does not need it.
"""

from deepfake_client.explain.types import METHODS, ExplainOptions, Explanation, MemberHeatmap, Region, ServedScores
from deepfake_explain.explainer import CheckpointExplainer
from deepfake_explain.faithfulness import Faithfulness, Sanity
from deepfake_explain.regions import PARTS

__all__ = [
    "METHODS",
    "PARTS",
    "CheckpointExplainer",
    "ExplainOptions",
    "Explanation",
    "Faithfulness",
    "MemberHeatmap",
    "Region",
    "Sanity",
    "ServedScores",
]
