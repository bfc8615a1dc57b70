"""How the pictures of a stream are shown: from a decoded picture to an upright `Frame` with square pixels.

A picture that is stored as it is shown (but for quarter turns) stays as the decoder left it, at no cost. Any other is
converted here: crop, fields, HDR, pixels that are not square, unusual colors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, TypeAlias

import av
import cv2
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.media.foreign import foreign_errors
from deepfake_preprocess.media.frame import ArrayFrame, Frame
from deepfake_preprocess.media.image import check_size
from deepfake_preprocess.media.packets.decoder import DecodeStats
from deepfake_preprocess.media.pictures.planar import Orientation, PlanarFrame, rgb_rows
from deepfake_preprocess.media.pictures.tone import TRANSFER_NAMES, to_sdr

Crop: TypeAlias = tuple[int, int, int, int]
"""Columns and rows to leave out at the left, top, right and bottom of a stored picture."""
NO_CROP: Final = (0, 0, 0, 0)

# Pixels that are less than 2% longer than wide come from sizes that encoders round; nobody sees them.
_SQUARE: Final = Fraction(2, 100)
_MAX_ASPECT: Final = 8
# Matrix coefficients, ITU-T H.273, table 4: those that FFmpeg converts from, and those with another matrix's numbers.
_YCGCO: Final = 8
_CONVERTED: Final = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
_UNSPECIFIED: Final = 2
_FULL_RANGE: Final = 2
_REFUSED: Final = {
    10: "BT.2020 constant luminance", 11: "ST 2085", 13: "chromaticity-derived constant luminance", 14: "ICtCp",
    15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip
_CHROMA_DERIVED: Final = 12
# Kinds of side data that PyAV has no name for, of which a picture with one cannot be asked for any.
_UNKNOWN_SIDE_DATA: Final = sorted(set(range(64)) - {kind.value for kind in SideDataType})


@dataclass(slots=True)
class Shown:
    """How the pictures of one stream are shown.

    Attributes:
        stats: takes notes on what was converted.
        name: the input's name in messages.
        orientation: how they are made upright.
        aspect: width of a pixel by its height.
        crop: what to leave out of the stored picture.
        turns: whether pictures say how they are made upright.
    """

    stats: DecodeStats
    name: str
    orientation: Orientation = field(default_factory=Orientation)
    aspect: Fraction = Fraction(1)
    crop: Crop = NO_CROP
    turns: bool = True
    _rotation: int | None = None

    def set_aspect(self, aspect: Fraction | None) -> None:
        """Take the shape of a pixel, as width by height, where it makes sense and is not square."""
        if aspect and abs(aspect - 1) > _SQUARE and 1 / Fraction(_MAX_ASPECT) <= aspect <= _MAX_ASPECT:
            self.aspect = aspect

    def size_wh(self, width: int, height: int) -> tuple[int, int]:
        """Return the upright size of a stored picture of some size."""
        width, height = self._square_wh(width, height)
        return self.orientation.size_wh(width, height)

    def look(self, picture: av.VideoFrame) -> None:
        """Learn the orientation from a picture; those between keyframes may not state it.

        Reading a picture's side data makes PyAV build a reference cycle, after which only the garbage collector frees
        its memory, which is megabytes (seen with PyAV 18.1). So they are read only where the rotation has changed.
        """
        is_new = self._rotation is None or (picture.key_frame and picture.rotation not in (0, self._rotation))
        if self.turns and is_new:
            self._rotation = picture.rotation
            self.orientation = Orientation.of(_known_side_data(picture))

    def frame(self, picture: av.VideoFrame, *, index: int, pts_seconds: float) -> Frame:
        """Return a picture as it is shown.

        Raises:
            MediaOpenError: its colors cannot be converted, or it is too large.
        """
        with foreign_errors(self.name):
            self.look(picture)
            self._name_colors(picture)
            plain = self.aspect == 1 and not any(self.crop) and picture.colorspace != _YCGCO
            if plain and not picture.interlaced_frame and picture.color_trc not in TRANSFER_NAMES:
                return PlanarFrame.of(
                    picture, index=index, pts_seconds=pts_seconds, orientation=self.orientation, name=self.name
                )
            image = self.orientation.apply(self._converted(picture))
            return ArrayFrame.from_rgb(image, index=index, pts_seconds=pts_seconds)

    def _square_wh(self, width: int, height: int) -> tuple[int, int]:
        left, top, right, bottom = self.crop
        if left + right < width and top + bottom < height:
            width, height = width - left - right, height - top - bottom
        return max(1, round(width * self.aspect)), height

    def _name_colors(self, picture: av.VideoFrame) -> None:
        """Give a picture the name of a matrix that FFmpeg converts from; refuse where there is none."""
        matrix = picture.colorspace
        if matrix in _CONVERTED or matrix == _YCGCO:
            return
        if matrix in _REFUSED:
            raise MediaOpenError(
                f"the colors of {self.name} are coded as {_REFUSED[matrix]}, which cannot be read; convert it to MP4 "
                "with H.264 and BT.709 colors"
            )
        # Reserved numbers count as none, as players have it.
        picture.colorspace = picture.color_primaries if matrix == _CHROMA_DERIVED else _UNSPECIFIED
        if picture.colorspace not in _CONVERTED:
            picture.colorspace = _UNSPECIFIED

    def _converted(self, picture: av.VideoFrame) -> NDArray[np.uint8]:
        """Return a picture as ``[H, W, 3]`` RGB with square pixels, not yet upright."""
        if picture.interlaced_frame:
            self.stats.note("interlaced pictures were made whole from one field each")
            picture = _one_field(picture)
        transfer = picture.color_trc
        if transfer in TRANSFER_NAMES:
            self.stats.note(f"HDR ({TRANSFER_NAMES[transfer]}) was mapped to ordinary brightness and colors")
            wide = np.frombuffer(_rgb(picture, "rgb48le").tobytes(), dtype="<u2")
            image = to_sdr(wide.reshape(picture.height, picture.width, 3), transfer, picture.color_primaries)
        elif picture.colorspace == _YCGCO:
            image = _from_ycgco(picture)
        else:
            image = _rgb(picture, "rgb24")
        left, top, right, bottom = self.crop
        height, width = image.shape[:2]
        if any(self.crop) and left + right < width and top + bottom < height:
            image = image[top : height - bottom, left : width - right]
        size_wh = self._square_wh(width, height)
        if size_wh != (image.shape[1], image.shape[0]):
            check_size(*size_wh, self.name)
            shrinks = size_wh[0] < image.shape[1]
            image = np.asarray(
                cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC),
                dtype=np.uint8,
            )
        return image


def _rgb(picture: av.VideoFrame, pixel_format: str) -> NDArray[np.uint8]:
    """Convert to RGB of the same size: ``[H, W, bytes of a pixel]``."""
    pixel_bytes = 6 if pixel_format == "rgb48le" else 3
    rgb = VideoReformatter().reformat(picture, format=pixel_format, threads=1)
    return rgb_rows(rgb, pixel_bytes)


def _one_field(picture: av.VideoFrame) -> av.VideoFrame:
    """Leave out the lines of one field, and put others in between.

    Filters that use both fields need the pictures before and after, which are not decoded for a sample; FFmpeg's one
    that does not (estdif) takes 0.4 s for 1080 lines.
    """
    scaled = f"w={picture.width}:h={picture.height}:flags=bicubic"
    return filtered(picture, ("field", "type=top"), ("scale", scaled), ("setfield", "mode=prog"))


def _known_side_data(picture: av.VideoFrame) -> av.VideoFrame:
    """Return a picture whose side data PyAV can read: those that it does not know are dropped."""
    try:
        _ = picture.side_data
    except ValueError:
        return filtered(picture, *(("sidedata", f"mode=delete:type={kind}") for kind in _UNKNOWN_SIDE_DATA))
    return picture


def filtered(picture: av.VideoFrame, *filters: tuple[str, str]) -> av.VideoFrame:
    """Return a picture after FFmpeg's filters, each given by its name and its arguments."""
    graph = Graph()
    nodes = [
        graph.add(
            "buffer",
            f"video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:time_base=1/1000:"
            f"colorspace={picture.colorspace}:range={picture.color_range}",
        ),
        *(graph.add(name, arguments) for name, arguments in filters),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    graph.vpush(picture)
    graph.vpush(None)
    return graph.vpull()


def _from_ycgco(picture: av.VideoFrame) -> NDArray[np.uint8]:
    """Convert YCgCo to RGB: ITU-T H.273, equations 53 to 56."""
    full = picture.color_range == _FULL_RANGE
    picture.colorspace = _UNSPECIFIED  # only the sampling is changed
    planes = VideoReformatter().reformat(picture, format="yuv444p", threads=1).to_ndarray().astype(np.float32)
    luma = planes[0] if full else (planes[0] - 16) * (255 / 219)
    green, orange = (planes[1:] - 128) * (1 if full else 255 / 224)
    rest = luma - green
    image = np.stack([rest + orange, luma + green, rest - orange], axis=2)
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)
