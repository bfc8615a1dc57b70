"""Draws explained faces on a contact sheet that a person can read. OpenCV only; reads and writes no file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import cv2
import numpy as np

from deepfake_client.explain.findings import ExplainedFace
from deepfake_client.explain.overlay import Image, heat_colors
from deepfake_client.explain.types import Explanation, Region
from deepfake_client.result.verdict import Label, Verdict
from deepfake_preprocess.errors import OptionError

TILE_PX = 240
FRAME_TILE_PX = 427
GAP_PX = 12
HEADER_PX = 58
CAUTION_PX = 17
"""Height of one line of the caution."""
LABEL_PX = 46
CAUTION_CHARACTERS = 125
SHOWN_REGIONS = 3
PAPER, INK, FAINT, RED, GREEN = (255, 255, 255), (25, 25, 25), (120, 120, 120), (200, 30, 30), (20, 130, 60)


def contact_sheet(verdict: Verdict, faces: Sequence[ExplainedFace]) -> Image:
    """Draw one row per face: frame with box, crop, heatmap over the crop, and what is known of it."""
    if not faces:
        raise OptionError("a contact sheet needs at least one face")
    score = "" if verdict.fake_probability is None else f" {verdict.fake_probability:.4f}"
    label = verdict.label.value if verdict.label is not Label.INCONCLUSIVE else f"INCONCLUSIVE ({verdict.reason})"
    checkpoint = faces[0].explanation.checkpoint_sha256[:12]
    model = f"{verdict.model.name} version {verdict.model.version}, checkpoint {checkpoint}"
    caution = f"A heatmap explains a score, and proves no manipulation. {verdict.model.caution}"
    about = [model, *wrap(caution, CAUTION_CHARACTERS)]
    header = HEADER_PX + CAUTION_PX * (len(about) - 1)
    width = GAP_PX + FRAME_TILE_PX + 2 * (GAP_PX + TILE_PX) + GAP_PX
    height = header + len(faces) * (LABEL_PX + TILE_PX + GAP_PX) + 34
    room = width - 2 * GAP_PX
    sheet = np.full((height, width, 3), PAPER, dtype=np.uint8)
    _text(sheet, f"{Path(verdict.source).name}   {label}{score}", (GAP_PX, 26), size=0.62, bold=True, room=room)
    for line, text in enumerate(about):
        _text(sheet, text, (GAP_PX, 46 + CAUTION_PX * line), size=0.42, color=FAINT, room=room)
    for number, face in enumerate(faces):
        top = header + number * (LABEL_PX + TILE_PX + GAP_PX)
        cv2.line(sheet, (GAP_PX, top), (width - GAP_PX, top), (215, 215, 215), 1)
        probability = _score(face.explanation)
        color = RED if probability >= verdict.threshold else GREEN
        where = f"face {face.pick.face.track + 1}   {face.pick.frame.pts_seconds:.2f} s"
        title = f"{where}   fake probability {probability:.3f}"
        _text(sheet, title, (GAP_PX, top + 18), size=0.48, bold=True, color=color, room=room)
        _text(sheet, heat_in_words(face.explanation), (GAP_PX, top + 37), size=0.42, color=INK, room=room)
        left, tiles_top = GAP_PX, top + LABEL_PX
        _put(sheet, _boxed(face, color), left, tiles_top, (FRAME_TILE_PX, TILE_PX))
        left += FRAME_TILE_PX + GAP_PX
        _put(sheet, face.crop, left, tiles_top, (TILE_PX, TILE_PX))
        left += TILE_PX + GAP_PX
        _put(sheet, _with_regions(face.explanation), left, tiles_top, (TILE_PX, TILE_PX))
    _legend(sheet, width - GAP_PX - TILE_PX, height - 24, TILE_PX)
    return sheet


def _score(explanation: Explanation) -> float:
    served = explanation.served_probability
    return explanation.fake_probability if served is None else served


def heat_in_words(explanation: Explanation) -> str:
    """Say where the areas are that a picture shows, in the picture's own words."""
    if not explanation.heatmap.any():
        return "no area of this face speaks for fake"
    named = [_named(region) for region in explanation.regions[:SHOWN_REGIONS] if region.part is not None]
    if not named:
        return "red: what made the model say fake most"
    return f"red: what made the model say fake most; marked areas: {', '.join(named)} of the heat"


def _named(region: Region) -> str:
    return f"{region.part} {region.share:.0%}"


def _boxed(face: ExplainedFace, color: tuple[int, int, int]) -> Image:
    """Return the frame, scaled to its tile, with the face's box, to give the line one thickness for any frame."""
    small, scale = _fitted(face.preview, (FRAME_TILE_PX, TILE_PX))
    in_preview = [value * (face.preview.shape[1] / face.frame_wh[0]) for value in face.pick.face.box_xyxy]
    left, top, right, bottom = (round(value * scale) for value in in_preview)
    cv2.rectangle(small, (left, top), (right, bottom), PAPER, 4)
    cv2.rectangle(small, (left, top), (right, bottom), color, 2)
    return small


def _with_regions(explanation: Explanation) -> Image:
    """Return the overlay at the tile's size with the boxes of its areas."""
    picture, scale = _fitted(explanation.overlay, (TILE_PX, TILE_PX))
    for region in explanation.regions[:SHOWN_REGIONS]:
        left, top, right, bottom = (round(value * scale) for value in region.box_xyxy)
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), PAPER, 1)
        if region.part is not None:
            # Inside the picture also where the area touches its upper edge.
            at = (left + 3, max(top + 13, 13))
            _text(picture, _named(region), at, size=0.38, color=PAPER, plate=INK)
    return picture


def _put(sheet: Image, picture: Image, left: int, top: int, room_wh: tuple[int, int]) -> None:
    """Put a picture into the middle of a tile, scaled to fit."""
    picture, _ = _fitted(picture, room_wh)
    height, width = picture.shape[:2]
    sheet[top : top + room_wh[1], left : left + room_wh[0]] = (238, 238, 238)
    x, y = left + (room_wh[0] - width) // 2, top + (room_wh[1] - height) // 2
    sheet[y : y + height, x : x + width] = picture


def _fitted(picture: Image, room_wh: tuple[int, int]) -> tuple[Image, float]:
    """Return a copy of a picture that fills its room, and its scale."""
    height, width = picture.shape[:2]
    scale = min(room_wh[0] / width, room_wh[1] / height)
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size_wh == (width, height):
        return picture.copy(), scale
    interpolation = cv2.INTER_AREA if size_wh[0] < width else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, size_wh, interpolation=interpolation), dtype=np.uint8), scale


def _legend(sheet: Image, left: int, top: int, width: int) -> None:
    ramp = np.tile(np.linspace(0, 1, width - 110, dtype=np.float32), (10, 1))
    bar = heat_colors(ramp)
    sheet[top : top + 10, left + 50 : left + 50 + bar.shape[1]] = bar
    _text(sheet, "little", (left + 8, top + 9), size=0.38, color=FAINT)
    _text(sheet, "most", (left + width - 52, top + 9), size=0.38, color=FAINT)


def _text(
    picture: Image, text: str, at: tuple[int, int], *, size: float, color: tuple[int, int, int] = INK,
    bold: bool = False, room: int | None = None, plate: tuple[int, int, int] | None = None,
) -> None:  # fmt: skip
    # OpenCV's built-in font has ASCII only.
    text = text.encode("ascii", "replace").decode()
    thickness = 2 if bold else 1
    while room is not None and len(text) > 4:
        if cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)[0][0] <= room:
            break
        text = text[:-4] + "..."
    if plate is not None:
        # No outline by a second, thicker drawing: thicker letters are wider, and run away from the thin ones.
        (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, thickness)
        corners = (at[0] - 2, at[1] - height - 2), (at[0] + width + 1, at[1] + below + 1)
        cv2.rectangle(picture, *corners, plate, cv2.FILLED)
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, color, thickness, cv2.LINE_AA)
