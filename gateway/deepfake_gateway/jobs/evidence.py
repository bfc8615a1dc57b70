"""`Evidence`: what can be made of a finished analysis: its report's page, and the faces that it rests on.

Made with their first use, by a sandbox that decodes the medium once more, and kept beside it.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.encoding import encode_png
from deepfake_client.explain.evidence import MAX_SHOWN, SHOWN_PER_TRACK, suspicious_faces
from deepfake_client.result.verdict import Verdict
from deepfake_gateway.sandbox.process import RunTask
from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.store.media import Media, local_file
from deepfake_gateway.store.threads import in_media
from deepfake_preprocess.media.image import read_image

_CROPS: Final = "crops/crops.json"


ReportForm: TypeAlias = Literal["html", "pdf"]
"""Kinds of reports that show pictures of the medium; ``pdf`` only where `makes_pdf`."""


def makes_pdf() -> bool:
    """Return whether the extra ``pdf`` is installed."""
    return find_spec("fpdf") is not None


class MediumGoneError(Exception):
    """The medium was removed, and nothing can be made of it any more."""


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A face as the model saw it.

    Attributes:
        name: track and number of the frame, as ``0-12``.
        png: the picture without loss.
        landmarks_xy: float32 ``[5, 2]`` in its pixels; None where they are unknown.
    """

    name: str
    png: bytes
    landmarks_xy: NDArray[np.float32] | None

    def rgb(self) -> NDArray[np.uint8]:
        """Return the picture, uint8 ``[H, W, 3]`` RGB."""
        return read_image(self.png, name=self.name)


def listed_faces(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the faces of a verdict's JSON of which there are crops, the most suspicious first, as JSON data."""
    picks = suspicious_faces(Verdict.from_dict(verdict), per_track=SHOWN_PER_TRACK, at_most=MAX_SHOWN)
    return [
        {
            "name": f"{pick.face.track}-{pick.frame.index}",
            "track": pick.face.track,
            "frame_index": pick.frame.index,
            "pts_seconds": pick.frame.pts_seconds,
            "box_xyxy": list(pick.face.box_xyxy),
            "fake_probability": pick.face.fake_probability,
        }
        for pick in picks
    ]


class Evidence:
    """Makes and keeps what belongs to analyses; two requests for the same thing make it once."""

    def __init__(self, media: Media, run: RunTask) -> None:
        self._media, self._run = media, run
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    async def report(self, analysis: Analysis, form: ReportForm, kept_until: float | None) -> bytes:
        """Return the report as a file, which says until when the medium is kept.

        Raises MediumGoneError, TaskError or SandboxError where it cannot be made.
        """
        name = f"report.{form}"
        async with self._alone(analysis.id):
            report = await in_media(self._media.read, analysis.id, name)
            if report is None:
                report = base64.b64decode(
                    (await self._made("report", analysis, format=form, kept_until=kept_until))["report"]
                )
                await in_media(self._media.put, analysis.id, name, report)
        return report

    async def crops(self, analysis: Analysis) -> dict[str, Crop]:
        """Return the crops of `listed_faces` by their names, but those that cannot be decoded again.

        Raises as `report` does.
        """
        async with self._alone(analysis.id):
            known = await in_media(self._media.read, analysis.id, _CROPS)
            if known is None:
                made = (await self._made("crops", analysis))["crops"]
                known = await in_media(self._keep, analysis.id, made)
            return await in_media(self._load, analysis.id, known)

    async def _made(self, kind: str, analysis: Analysis, **about: Any) -> dict[str, Any]:
        task = {
            "kind": kind,
            "name": analysis.file_name,
            "options": analysis.options,
            "verdict": analysis.verdict,
            "size_bytes": analysis.size_bytes,
            "sha256": analysis.sha256,
            "analyzed_at": analysis.finished_at or analysis.created_at,
            **about,
        }
        try:
            async with local_file(self._media, analysis.id) as path:
                return await self._run({**task, "path": str(path)})
        except FileNotFoundError:
            raise MediumGoneError from None

    def _keep(self, analysis_id: str, made: list[dict[str, Any]]) -> bytes:
        for crop in made:
            pixels = np.frombuffer(base64.b64decode(crop["rgb"]), np.uint8).reshape(crop["shape"])
            self._media.put(analysis_id, f"crops/{crop['name']}.png", encode_png(pixels))
        known = json.dumps({crop["name"]: crop["landmarks_xy"] for crop in made}).encode()
        self._media.put(analysis_id, _CROPS, known)  # the last, so that where it is, all are
        return known

    def _load(self, analysis_id: str, known: bytes) -> dict[str, Crop]:
        crops = {}
        for name, points in json.loads(known).items():
            png = self._media.read(analysis_id, f"crops/{name}.png")
            if png is None:  # deleted meanwhile
                raise MediumGoneError
            crops[name] = Crop(name, png, None if points is None else np.array(points, np.float32))
        return crops

    @asynccontextmanager
    async def _alone(self, analysis_id: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(analysis_id, (asyncio.Lock(), 0))
        self._locks[analysis_id] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(analysis_id)
            if users > 1:
                self._locks[analysis_id] = lock, users - 1
