"""`ExplanationDesk`: takes requests for heatmaps of finished analyses, and says what became of them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import sqlalchemy as sa

from deepfake_gateway.intake.news import once_over
from deepfake_gateway.intake.options import ExplanationForm
from deepfake_gateway.intake.problems import Problem, without_medium, without_verdict
from deepfake_gateway.intake.room import Room
from deepfake_gateway.jobs.evidence import listed_faces
from deepfake_gateway.jobs.queue import Job, Priority, Queue
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.store.explanations import Explanations, StoredExplanation
from deepfake_gateway.store.media import Media

LOOK_S: Final = 0.05
"""How often somebody who waits for heatmaps looks for them."""
DEFAULT_FACES: Final = 3
"""Faces that are explained where none are named."""


class ExplanationDesk:
    """Where explanations begin, of analyses that their caller found."""

    def __init__(self, engine: sa.Engine, media: Media, queue: Queue, room: Room, settings: Settings) -> None:
        self.store = Explanations(engine)
        self._media, self._queue, self._room = media, queue, room
        self._is_on = settings.explain_url is not None

    def begin(self, analysis: Analysis, form: ExplanationForm) -> StoredExplanation:
        """Ask for heatmaps of a finished analysis; the same request is answered by what it gave before.

        Raises:
            Problem: 404 where its medium was removed, 409 where it has no verdict, 422 for faces that it lacks,
                429 while too many wait, 503 where there is no explain service.
        """
        if analysis.verdict is None:
            raise without_verdict(analysis)
        if self._media.size(analysis.id) is None:
            raise without_medium()
        if not self._is_on:
            raise Problem(
                503, "there is no explain service; whoever runs this one starts `deepfake explain-serve CHECKPOINT` "
                "and sets `explain_url`, or sets `checkpoint` where the gateway starts Triton itself"
            )  # fmt: skip
        names = [face["name"] for face in listed_faces(analysis.verdict)]
        if not names:
            raise Problem(409, "no face was scored, so there is nothing to explain")
        wanted = names[:DEFAULT_FACES] if form.crops is None else form.crops
        if unknown := [name for name in wanted if name not in names]:
            raise Problem(422, f"`crops` has {unknown[0][:40]!r}; there are {', '.join(names)}")
        self._room.check_explanations()
        request = {**form.model_dump(), "crops": [name for name in names if name in wanted]}
        return self.store.begin(analysis.id, request, self._enqueue)

    def _enqueue(self, connection: sa.Connection, explanation_id: str) -> None:
        self._queue.enqueue(connection, Job.EXPLAIN, explanation_id, Priority.INTERACTIVE)

    def find(self, analysis_id: str, explanation_id: str) -> StoredExplanation:
        """Return an explanation; Problem 404 where the analysis has none of this id."""
        explanation = self.store.get(explanation_id)
        if explanation is None or explanation.analysis_id != analysis_id:
            raise Problem(404, f"the analysis has no explanation {explanation_id[:64]!r}; ask for it again")
        return explanation

    async def finished(self, explanation: StoredExplanation, within_s: float) -> StoredExplanation:
        """Return an explanation once it is over, or as it is after `within_s` seconds."""
        find = partial(self.find, explanation.analysis_id, explanation.id)
        return await once_over(find, within_s, lambda left_s: asyncio.sleep(min(left_s, LOOK_S)))
