"""The form in which an `Explanation` crosses a network: one NPZ file without pickles. Used by both sides."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np

from deepfake_client.explain.types import Explanation, MemberHeatmap, Region
from deepfake_preprocess.errors import InferenceError

NPZ_TYPE = "application/x-npz"
PROBLEM_TYPE = "application/problem+json"
"""Errors, as RFC 9457 describes them."""


def explanation_to_npz(explanation: Explanation, **extra: Any) -> bytes:
    """Return the explanation's pictures and JSON data, and further arrays, as the bytes of an NPZ file."""
    arrays: dict[str, Any] = {
        "heatmap": explanation.heatmap,
        "overlay": explanation.overlay,
        "json": np.array(json.dumps(explanation.to_dict())),
        **{f"member_{index}": member.heatmap for index, member in enumerate(explanation.members)},
        **extra,
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def explanation_from_npz(data: bytes) -> Explanation:
    """Return what `explanation_to_npz` wrote.

    Raises:
        InferenceError: the data is damaged or of another version.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["json"]))
            regions = tuple(
                Region((box[0], box[1], box[2], box[3]), item["share"], item["part"])
                for item in facts.pop("regions")
                for box in [item["box_xyxy"]]
            )
            members = tuple(
                MemberHeatmap(heatmap=arrays[f"member_{index}"], **item)
                for index, item in enumerate(facts.pop("members"))
            )
            return Explanation(arrays["heatmap"], arrays["overlay"], regions=regions, members=members, **facts)
    except (KeyError, IndexError, TypeError, ValueError, OSError, zipfile.BadZipFile) as exc:
        raise InferenceError(
            f"the explain service answered with something else than an explanation ({exc}); is it of this version?"
        ) from exc
