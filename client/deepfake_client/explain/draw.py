"""Draws heatmaps: over a crop, and on a contact sheet that a person can read. OpenCV only; reads and writes no file.

All pictures are uint8 ``[H, W, 3]`` RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.types import Explanation
from deepfake_preprocess.errors import OptionError

Image = NDArray[np.uint8]

OVERLAY_STRENGTH = 0.6
"""How much of the picture the hottest pixel covers; cold pixels cover nothing, so the face stays visible."""

TILE_PX = 240
FRAME_TILE_PX = 427
GAP_PX = 12
HEADER_PX = 58
LABEL_PX = 46
PAPER, INK, FAINT, RED, GREEN = (255, 255, 255), (25, 25, 25), (120, 120, 120), (200, 30, 30), (20, 130, 60)


@dataclass(frozen=True, slots=True, eq=False)
class SheetRow:
    """What one row of a contact sheet shows.

    Attributes:
        frame: the whole frame.
        box_xyxy: the face in it, in its pixels.
        crop: what the model saw.
        explanation: where the fake was seen in the crop.
        title: first line, such as face and time.
        suspicious: whether the face's score is at or above the threshold.
    """

    frame: Image
    box_xyxy: tuple[float, float, float, float]
    crop: Image
    explanation: Explanation
    title: str
    suspicious: bool


def overlay_heatmap(image: Image, heatmap: NDArray[np.float32]) -> Image:
    """Lay a heatmap ``[H, W]`` in [0, 1] over a picture of the same size; blue is little, red is most."""
    if image.shape[:2] != heatmap.shape:
        raise OptionError(
            f"picture and heatmap must have one size, got {list(image.shape[:2])} and {list(heatmap.shape)}"
        )
    heat = np.clip(heatmap, 0, 1)
    colors = cv2.cvtColor(_colored(heat), cv2.COLOR_BGR2RGB).astype(np.float32)
    share = (OVERLAY_STRENGTH * np.sqrt(heat))[..., None]
    return np.asarray(np.rint(image * (1 - share) + colors * share), dtype=np.uint8)


def draw_contact_sheet(rows: Sequence[SheetRow], *, title: str, subtitle: str) -> Image:
    """Draw one row per face: frame with box, crop, heatmap over the crop, and what is known of it.

    Args:
        rows: at least one.
        title: headline, such as file and verdict.
        subtitle: second line, such as model and method.
    """
    if not rows:
        raise OptionError("a contact sheet needs at least one face")
    width = GAP_PX + FRAME_TILE_PX + 2 * (GAP_PX + TILE_PX) + GAP_PX
    height = HEADER_PX + len(rows) * (LABEL_PX + TILE_PX + GAP_PX) + 34
    sheet = np.full((height, width, 3), PAPER, dtype=np.uint8)
    _text(sheet, title, (GAP_PX, 26), size=0.62, bold=True, room=width - 2 * GAP_PX)
    _text(sheet, subtitle, (GAP_PX, 46), size=0.42, color=FAINT, room=width - 2 * GAP_PX)
    for number, row in enumerate(rows):
        top = HEADER_PX + number * (LABEL_PX + TILE_PX + GAP_PX)
        cv2.line(sheet, (GAP_PX, top), (width - GAP_PX, top), (215, 215, 215), 1)
        color = RED if row.suspicious else GREEN
        _text(sheet, row.title, (GAP_PX, top + 18), size=0.48, bold=True, color=color, room=width - 2 * GAP_PX)
        _text(sheet, _facts(row.explanation), (GAP_PX, top + 37), size=0.42, color=INK, room=width - 2 * GAP_PX)
        left, tiles_top = GAP_PX, top + LABEL_PX
        _put(sheet, _boxed(row.frame, row.box_xyxy, color), left, tiles_top, (FRAME_TILE_PX, TILE_PX))
        left += FRAME_TILE_PX + GAP_PX
        _put(sheet, row.crop, left, tiles_top, (TILE_PX, TILE_PX))
        left += TILE_PX + GAP_PX
        _put(sheet, _with_regions(row.explanation), left, tiles_top, (TILE_PX, TILE_PX))
    _legend(sheet, width - GAP_PX - TILE_PX, height - 24, TILE_PX)
    return sheet


def _facts(explanation: Explanation) -> str:
    served = explanation.served_probability
    parts = [] if served is None else [f"served {served:.4f}"]
    parts.append(f"PyTorch {explanation.fake_probability:.4f}")
    heat = sorted(explanation.part_shares.items(), key=lambda item: -item[1])[:3]
    if not explanation.heatmap.any():
        parts.append("nothing in this layer speaks for fake")
    elif heat:
        parts.append("heat: " + ", ".join(f"{part} {share:.0%}" for part, share in heat))
    faithfulness = explanation.checks.get("faithfulness")
    if faithfulness:
        parts.append(f"deletion {faithfulness['deletion_auc']:.2f}, insertion {faithfulness['insertion_auc']:.2f}")
    return "   ".join(parts)


def _boxed(frame: Image, box_xyxy: tuple[float, float, float, float], color: tuple[int, int, int]) -> Image:
    """Return the frame, scaled to its tile, with the face's box, to give the line one thickness for any frame."""
    scale = min(FRAME_TILE_PX / frame.shape[1], TILE_PX / frame.shape[0])
    small = _resized(frame, (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))))
    left, top, right, bottom = (round(value * scale) for value in box_xyxy)
    cv2.rectangle(small, (left, top), (right, bottom), PAPER, 4)
    cv2.rectangle(small, (left, top), (right, bottom), color, 2)
    return small


def _with_regions(explanation: Explanation) -> Image:
    """Return the overlay at the tile's size with the boxes of its areas."""
    height, width = explanation.heatmap.shape
    scale = min(TILE_PX / width, TILE_PX / height)
    picture = _resized(explanation.overlay, (round(width * scale), round(height * scale)))
    for region in explanation.regions[:3]:
        left, top, right, bottom = (round(value * scale) for value in region.box_xyxy)
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), PAPER, 1)
        if region.part is not None:
            # Inside the picture also where the area touches its upper edge.
            at = (left + 3, max(top + 13, 13))
            _text(picture, f"{region.part} {region.share:.0%}", at, size=0.38, color=PAPER, plate=INK)
    return picture


def _put(sheet: Image, picture: Image, left: int, top: int, room_wh: tuple[int, int]) -> None:
    """Put a picture into the middle of a tile, scaled to fit."""
    scale = min(room_wh[0] / picture.shape[1], room_wh[1] / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    picture = _resized(picture, size)
    sheet[top : top + room_wh[1], left : left + room_wh[0]] = (238, 238, 238)
    x, y = left + (room_wh[0] - size[0]) // 2, top + (room_wh[1] - size[1]) // 2
    sheet[y : y + size[1], x : x + size[0]] = picture


def _resized(picture: Image, size_wh: tuple[int, int]) -> Image:
    if (picture.shape[1], picture.shape[0]) == size_wh:
        return picture.copy()
    shrinks = size_wh[0] < picture.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, size_wh, interpolation=interpolation), dtype=np.uint8)


def _legend(sheet: Image, left: int, top: int, width: int) -> None:
    ramp = np.tile(np.linspace(0, 1, width - 110, dtype=np.float32), (10, 1))
    bar = cv2.cvtColor(_colored(ramp), cv2.COLOR_BGR2RGB)
    sheet[top : top + 10, left + 50 : left + 50 + bar.shape[1]] = bar
    _text(sheet, "little", (left + 8, top + 9), size=0.38, color=FAINT)
    _text(sheet, "most", (left + width - 52, top + 9), size=0.38, color=FAINT)


def _colored(heat: NDArray[np.float32]) -> Image:
    return np.asarray(cv2.applyColorMap(np.asarray(np.rint(heat * 255), np.uint8), cv2.COLORMAP_TURBO), np.uint8)


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
