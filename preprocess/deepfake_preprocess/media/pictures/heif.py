"""Still pictures in ISO files (HEIC, AVIF), whole: PyAV hands on their tiles one by one, as streams.

Which items make up the picture, and how it is cropped and turned, is read from the file's boxes: ISO/IEC 23008-12
(HEIF), with the item boxes of ISO/IEC 14496-12, 8.11.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, Final

import av
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.media.image import check_size
from deepfake_preprocess.media.packets.decoder import DecodeStats
from deepfake_preprocess.media.pictures.boxes import Box, boxes, content, find
from deepfake_preprocess.media.pictures.shown import Crop, Shown

_MAX_DEPTH: Final = 4
_BRANDS: Final = frozenset({b"mif1", b"mif2", b"heic", b"heix", b"heim", b"heis", b"avif", b"jpeg", b"avci", b"vvic"})
_CODED: Final = frozenset({"hvc1", "av01", "avc1", "vvc1", "jpeg"})


@dataclass(frozen=True, slots=True)
class Still:
    """What a file says about its picture: items by their number, and what is made of them."""

    primary: int
    kinds: dict[int, str]
    parts: dict[int, list[int]]
    properties: dict[int, list[tuple[str, bytes]]]
    grids: dict[int, bytes]


def find_still(file: BinaryIO) -> Still | None:
    """Return what a file's primary picture is made of; None where it is no such file, or holds a sequence."""
    head = next(boxes(file), None)
    if head is None or head.kind != "ftyp":
        return None
    brands = content(file, head)
    if _BRANDS.isdisjoint(brands[at : at + 4] for at in range(0, len(brands), 4)):
        return None
    top = list(boxes(file))
    if any(box.kind == "moov" for box in top):
        return None
    meta = next((box for box in top if box.kind == "meta"), None)
    if meta is None:
        return None
    parts = {box.kind: box for box in boxes(file, meta.start + 4, meta.stop)}
    if "pitm" not in parts or "iinf" not in parts:
        return None
    version, primary = _versioned(file, parts["pitm"])
    kinds = dict(_kinds(file, parts["iinf"]))
    return Still(
        primary=int.from_bytes(primary[: 4 if version else 2]),
        kinds=kinds,
        parts=dict(_references(file, parts["iref"])) if "iref" in parts else {},
        properties=_properties(file, parts["iprp"]) if "iprp" in parts else {},
        grids=dict(_contents(file, parts["iloc"], parts.get("idat"), kinds)) if "iloc" in parts else {},
    )


def read_still(
    container: av.container.InputContainer, still: Still, name: str, stats: DecodeStats
) -> NDArray[np.uint8]:
    """Decode a picture to uint8 ``[H, W, 3]`` RGB, cropped and upright.

    Raises:
        MediaOpenError: a part is missing or damaged, or it is made in a way that is not read.
    """
    wanted = set(_coded_items(still, still.primary, name))
    tiles: dict[int, NDArray[np.uint8]] = {}
    streams = {stream.index: stream for stream in container.streams.video if stream.id in wanted}
    for stream in streams.values():
        check_size(stream.codec_context.width, stream.codec_context.height, name)
    for packet in container.demux(list(streams.values())):
        stream = streams[packet.stream.index]
        try:
            pictures = stream.decode(packet)
        except av.error.FFmpegError:
            continue  # the part is missed below
        for picture in pictures:
            # How the picture is turned is a property of the item, which is applied to the whole.
            shown = Shown(stats, name, turns=False)
            check_size(picture.width, picture.height, name)
            tiles.setdefault(stream.id, shown.frame(picture, index=0, pts_seconds=0.0).to_rgb())
    if missing := wanted - tiles.keys():
        raise MediaOpenError(
            f"{name}: {len(missing)} of {len(wanted)} parts of the picture are missing or damaged; copy or download "
            "it again"
        )
    return np.ascontiguousarray(_assembled(still, still.primary, tiles, name))


def _coded_items(still: Still, item: int, name: str, depth: int = 0) -> Iterator[int]:
    """Yield the coded items that `item` is made of."""
    kind = still.kinds.get(item, "")
    if kind in _CODED:
        yield item
    elif kind in {"grid", "iden"} and still.parts.get(item) and depth < _MAX_DEPTH:
        for part in still.parts[item]:
            yield from _coded_items(still, part, name, depth + 1)
    else:
        raise MediaOpenError(
            f"{name} is a picture of a kind that is not read ({kind.strip() or 'unknown'!r} item); save it as JPEG "
            "or PNG"
        )


def _assembled(still: Still, item: int, tiles: dict[int, NDArray[np.uint8]], name: str) -> NDArray[np.uint8]:
    kind = still.kinds[item]
    if kind in _CODED:
        image = tiles[item]
    elif kind == "iden":
        image = _assembled(still, still.parts[item][0], tiles, name)
    else:
        image = _grid(still, item, tiles, name)
    for what, data in still.properties.get(item, []):
        if what == "clap":
            left, top, right, bottom = clean_aperture(data, image.shape[1], image.shape[0])
            image = image[top : image.shape[0] - bottom, left : image.shape[1] - right]
        elif what == "irot":
            image = np.rot90(image, data[0] & 3)
        elif what == "imir":
            image = image[:, ::-1] if data[0] & 1 else image[::-1]
    return image


def _grid(still: Still, item: int, tiles: dict[int, NDArray[np.uint8]], name: str) -> NDArray[np.uint8]:
    """Put tiles next to each other, row by row, and cut off what is too much: ISO/IEC 23008-12, 6.6.2.3."""
    data = still.grids.get(item, b"")
    if len(data) < 8:
        raise MediaOpenError(f"{name} does not say how its picture is put together; save it as JPEG or PNG")
    rows, columns = data[2] + 1, data[3] + 1
    width, height = struct.unpack_from(">II" if data[1] & 1 else ">HH", data.ljust(12, b"\0"), 4)
    check_size(width, height, name)
    parts = [_assembled(still, part, tiles, name) for part in still.parts[item][: rows * columns]]
    if len(parts) < rows * columns or len({part.shape for part in parts}) > 1:
        raise MediaOpenError(f"{name}: the tiles of the picture do not fit together; save it as JPEG or PNG")
    image = np.concatenate([np.concatenate(parts[row * columns :][:columns], axis=1) for row in range(rows)])
    if image.shape[0] < height or image.shape[1] < width:
        raise MediaOpenError(f"{name}: the tiles of the picture do not fill it; save it as JPEG or PNG")
    return image[:height, :width]


def clean_aperture(data: bytes, width: int, height: int) -> Crop:
    """Return what a ``clap`` box leaves out of a picture (ISO/IEC 14496-12, 12.1.4), if it makes sense."""
    numbers = struct.unpack(">8i", data[:32]) if len(data) >= 32 else ()
    if not numbers or not all(numbers[1::2]):
        return 0, 0, 0, 0
    clean_w, clean_h, off_x, off_y = (Fraction(numbers[at], numbers[at + 1]) for at in (0, 2, 4, 6))
    left, top = round((width - clean_w) / 2 + off_x), round((height - clean_h) / 2 + off_y)
    right, bottom = width - left - round(clean_w), height - top - round(clean_h)
    if min(left, top, right, bottom) < 0 or clean_w < 1 or clean_h < 1:
        return 0, 0, 0, 0
    return left, top, right, bottom


def _versioned(file: BinaryIO, box: Box) -> tuple[int, bytes]:
    """Return the version of a box that has one, and what follows it."""
    data = content(file, box)
    return (data[0] if data else 0), data[4:]


def _kinds(file: BinaryIO, iinf: Box) -> Iterator[tuple[int, str]]:
    version, _ = _versioned(file, iinf)
    for box in boxes(file, iinf.start + (8 if version else 6), iinf.stop):
        entry_version, data = _versioned(file, box)
        id_bytes = 4 if entry_version == 3 else 2
        yield int.from_bytes(data[:id_bytes]), data[id_bytes + 2 : id_bytes + 6].decode("latin-1")


def _references(file: BinaryIO, iref: Box) -> Iterator[tuple[int, list[int]]]:
    """Yield the items that are derived, and what from."""
    version, _ = _versioned(file, iref)
    id_bytes = 4 if version else 2
    for box in boxes(file, iref.start + 4, iref.stop):
        if box.kind == "dimg":
            data = content(file, box)
            ids = data[id_bytes + 2 :]
            number = int.from_bytes(data[id_bytes : id_bytes + 2])
            starts = range(0, min(number * id_bytes, len(ids)), id_bytes)
            yield int.from_bytes(data[:id_bytes]), [int.from_bytes(ids[at : at + id_bytes]) for at in starts]


def _properties(file: BinaryIO, iprp: Box) -> dict[int, list[tuple[str, bytes]]]:
    """Return the properties of each item, in the order in which they apply."""
    known = [box for ipco in find(file, "ipco", iprp.start, iprp.stop) for box in boxes(file, ipco.start, ipco.stop)]
    found: dict[int, list[tuple[str, bytes]]] = {}
    for ipma in find(file, "ipma", iprp.start, iprp.stop):
        file.seek(ipma.start)
        version, wide = file.read(1)[0], int.from_bytes(file.read(3)) & 1
        for _ in range(int.from_bytes(file.read(4))):
            item = int.from_bytes(head := file.read(4 if version else 2))
            count = file.read(1)
            if not head or not count:
                break
            numbers = [int.from_bytes(file.read(1 + wide)) & (0x7FFF if wide else 0x7F) for _ in range(count[0])]
            place = file.tell()
            found[item] = [
                (known[number - 1].kind, content(file, known[number - 1]))
                for number in numbers
                if 0 < number <= len(known) and known[number - 1].kind in {"clap", "irot", "imir"}
            ]
            file.seek(place)
    return found


def _contents(file: BinaryIO, iloc: Box, idat: Box | None, kinds: dict[int, str]) -> Iterator[tuple[int, bytes]]:
    """Yield the content of the items that describe grids: ISO/IEC 14496-12, 8.11.3."""
    version, data = _versioned(file, iloc)
    sizes = (data[0] >> 4, data[0] & 15, data[1] >> 4, data[1] & 15 if version else 0)
    offset_bytes, length_bytes, base_bytes, index_bytes = sizes
    position = 2

    def number(size: int) -> int:
        nonlocal position
        position += size
        return int.from_bytes(data[position - size : position])

    for _ in range(number(4 if version == 2 else 2)):
        item = number(4 if version == 2 else 2)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(base_bytes)
        for _ in range(number(2)):
            number(index_bytes)
            offset, length = base + number(offset_bytes), number(length_bytes)
            if kinds.get(item) == "grid":
                start = offset + (idat.start if method == 1 and idat is not None else 0)
                yield item, content(file, Box("grid", start, start + min(length, 64)))
        if position > len(data):
            return
