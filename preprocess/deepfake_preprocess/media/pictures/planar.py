"""`PlanarFrame`: a decoded video picture, kept as the decoder left it and converted to RGB on request.

Color: matrix (BT.601, BT.709, BT.2020) and range are those that the stream names. Where it names none, FFmpeg's rule
applies (BT.601, limited range), whatever the size, because the readers that training sets are made with follow it.
HDR is not its concern (see `pictures.shown`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import av
import cv2
import numpy as np
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from deepfake_preprocess.media.foreign import foreign_errors
from deepfake_preprocess.media.frame import Frame

# Formats that a region can be cut out of: bytes per sample, and whether both chroma channels share a plane.
_CUTTABLE = {
    **dict.fromkeys(("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"), (1, False)),
    **dict.fromkeys(("yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le"), (2, False)),
    "nv12": (1, True),
    "p010le": (2, True),
}
# swscale interpolates chroma over up to 4 chroma samples; what it extrapolates at the edge of the cut is cut off.
_CUT_PADDING_PX = 16
# Above this share of the picture, converting all of it is as cheap as cutting first.
_CUT_MAX_SHARE = 0.5

_per_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture is made upright: transposed first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, picture: av.VideoFrame) -> Orientation:
        """Read the display matrix of a decoded picture (quarter turns and mirroring; others are rounded)."""
        # PyAV's type annotations cover only one kind of side data.
        matrix = cast("Mapping[SideDataType, SideData]", picture.side_data).get(SideDataType.DISPLAYMATRIX)
        if matrix is None:
            return cls()
        # ISO/IEC 14496-12 (tkhd): x' = a x + c y, y' = b x + d y, stored as a b u c d v x y w.
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32, count=5).tolist()
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def size_wh(self, width: int, height: int) -> tuple[int, int]:
        """Convert a stored size to the upright one, or back."""
        return (height, width) if self.transpose else (width, height)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Make a stored ``[H, W, 3]`` image upright; the result is C-contiguous."""
        if self.transpose:
            image = np.asarray(cv2.transpose(image), dtype=np.uint8)
        if self.flip_x or self.flip_y:
            code = -1 if self.flip_x and self.flip_y else int(self.flip_x)
            image = np.asarray(cv2.flip(image, code), dtype=np.uint8)
        return np.ascontiguousarray(image)

    def stored_region(
        self, region: tuple[int, int, int, int], upright_wh: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Return where an upright region (left, top, right, bottom) is in the stored picture."""
        left, top, right, bottom = region
        width, height = upright_wh
        if self.flip_x:
            left, right = width - right, width - left
        if self.flip_y:
            top, bottom = height - bottom, height - top
        return (top, left, bottom, right) if self.transpose else (left, top, right, bottom)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PlanarFrame(Frame):
    """A picture of a video as decoded (for example YUV 4:2:0), in a third to a half of the memory of RGB.

    All methods may be called from any thread; the conversion runs without the interpreter lock.
    """

    picture: av.VideoFrame
    orientation: Orientation
    name: str = "the picture"

    @classmethod
    def of(
        cls,
        picture: av.VideoFrame,
        *,
        index: int,
        pts_seconds: float,
        orientation: Orientation,
        name: str = "the picture",
    ) -> PlanarFrame:
        """Wrap a decoded picture of a stream with this orientation; `name` is the input's, for messages."""
        width, height = orientation.size_wh(picture.width, picture.height)
        return cls(index, pts_seconds, width, height, picture, orientation, name)

    def to_rgb(self, size_wh: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """See `Frame.to_rgb`; conversion and scaling are one pass of swscale, which averages areas."""
        width, height = self.orientation.size_wh(*(size_wh or (self.width_px, self.height_px)))
        with foreign_errors(self.name):
            return self.orientation.apply(_convert(self.picture, width, height))

    def region_rgb(self, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """See `Frame.region_rgb`; converts little more than the region, to the same pixels as `to_rgb`."""
        self._check_region(left, top, right, bottom)
        upright_wh = (self.width_px, self.height_px)
        region = self.orientation.stored_region((left, top, right, bottom), upright_wh)
        with foreign_errors(self.name):
            return self.orientation.apply(_convert_region(self.picture, region))


def _scaler(use: str) -> VideoReformatter:
    """Return this thread's scaler for one use; it keeps its tables while formats and sizes stay the same."""
    scaler: VideoReformatter | None = getattr(_per_thread, use, None)
    if scaler is None:
        scaler = VideoReformatter()
        setattr(_per_thread, use, scaler)
    return scaler


def _convert(picture: av.VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    """Return `picture` as ``[height, width, 3]`` RGB; a view of a buffer with padded rows."""
    # The scaler's own threads would only compete with ours. It changes tags of the picture and restores them, always
    # the same ones, so two threads may convert one picture.
    # Each use has its own scaler, because alternating between uses would rebuild the tables. Area averaging is
    # cheaper than swscale's default, a widened bilinear filter, and the face detector finds more faces after it.
    if (width, height) == (picture.width, picture.height):
        return rgb_rows(_scaler("rgb").reformat(picture, width=width, height=height, format="rgb24", threads=1))
    # To an odd width swscale interpolates chroma for every pixel, which it does much faster into planes: 1.0 instead
    # of 2.0 ms from 1080p to 455x256, and the same pixels (tested) where more than two lines make one.
    in_planes = width % 2 == 1 and 2 * height < picture.height
    scaled = _scaler("scaled").reformat(
        picture,
        width=width,
        height=height,
        format="gbrp" if in_planes else "rgb24",
        interpolation="AREA",
        threads=1,
    )
    if not in_planes:
        return rgb_rows(scaled)
    green, blue, red = (_plane_rows(plane)[:height, :width] for plane in scaled.planes)
    return np.asarray(cv2.merge((red, green, blue)), dtype=np.uint8)


def _convert_region(picture: av.VideoFrame, region: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    left, top, right, bottom = region
    # The cut keeps the picture's right and bottom edges in phase: chroma samples cover 2 x 2 pixels.
    x0, y0 = max(0, left - _CUT_PADDING_PX) & ~1, max(0, top - _CUT_PADDING_PX) & ~1
    x1 = min(picture.width, (right + _CUT_PADDING_PX + 1) & ~1)
    y1 = min(picture.height, (bottom + _CUT_PADDING_PX + 1) & ~1)
    layout = _CUTTABLE.get(picture.format.name)
    # With an odd side swscale stretches the chroma slightly, which a cut cannot reproduce.
    if picture.width % 2 or picture.height % 2:
        layout = None
    if layout is None or (x1 - x0) * (y1 - y0) > _CUT_MAX_SHARE * picture.width * picture.height:
        return _convert(picture, picture.width, picture.height)[top:bottom, left:right]

    sample_bytes, shared_chroma = layout
    if layout == (1, False):
        cut = av.VideoFrame(x1 - x0, y1 - y0, picture.format.name)
        cut.colorspace, cut.color_range = picture.colorspace, picture.color_range
    else:
        # Shrinking is only a way to get a new frame with all tags of this one: PyAV cannot set the chroma location,
        # which these conversions depend on. The pixels are overwritten below.
        cut = _scaler("cut").reformat(picture, width=x1 - x0, height=y1 - y0, interpolation="POINT", threads=1)
    shift_x = int(picture.format.chroma_width(4) == 2)
    shift_y = int(picture.format.chroma_height(4) == 2)
    for number, (source, target) in enumerate(zip(picture.planes, cut.planes, strict=True)):
        dx, dy = (shift_x, shift_y) if number else (0, 0)
        step = sample_bytes * (2 if shared_chroma and number else 1)
        columns = slice((x0 >> dx) * step, -(-x1 >> dx) * step)
        rows = slice(y0 >> dy, -(-y1 >> dy))
        part = _plane_rows(source)[rows, columns]
        _plane_rows(target)[: part.shape[0], : part.shape[1]] = part
    rgb = _convert(cut, cut.width, cut.height)
    return rgb[top - y0 : bottom - y0, left - x0 : right - x0]


def rgb_rows(picture: av.VideoFrame, pixel_bytes: int = 3) -> NDArray[np.uint8]:
    """Return the bytes of a picture with one plane as ``[H, W, bytes of a pixel]``; a view without its padding."""
    width, height = picture.width, picture.height
    rows = _plane_rows(picture.planes[0])[:height, : pixel_bytes * width]
    return rows.reshape(height, width, pixel_bytes)


def _plane_rows(plane: VideoPlane) -> NDArray[np.uint8]:
    """Return the bytes of a plane as ``[rows, line_size]``; writable where the plane is."""
    rows = plane.buffer_size // plane.line_size
    return np.frombuffer(memoryview(plane), dtype=np.uint8, count=rows * plane.line_size).reshape(
        rows, plane.line_size
    )
