"""What the explain service answers: an `ExplainAnswer` or an `ExplainProblem`. Needs pydantic."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, Field

from deepfake_client.explain.types import Explanation

EXPLAIN_PATH: Final = "/v1/explain"
PROBLEM_TYPE: Final = "application/problem+json"


class ExplainAnswer(BaseModel):
    """An explanation, and for a face in a frame where its crop is in it."""

    explanation: Explanation
    crop_to_frame: list[list[float]] | None = Field(
        None, description="affine matrix, two rows of three, from pixels of the crop to those of the frame"
    )


class ExplainProblem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="one sentence: what was received, what is allowed, how to fix it")
