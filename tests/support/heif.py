"""Writes HEIC pictures made of tiles, like those of phones, from tiles that PyAV encodes: ISO/IEC 23008-12."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import av
import media
import numpy as np
from numpy.typing import NDArray


def box(kind: str, *content: bytes) -> bytes:
    """A box with its size and type."""
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + kind.encode() + data


def full_box(kind: str, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    """A box with a version and flags."""
    return box(kind, bytes([version]) + flags.to_bytes(3), *content)


def _coded(tile: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Encode a tile as HEVC; return its configuration record and its data."""
    file = io.BytesIO()
    options = {"crf": "8", "x265-params": "log-level=none:pools=1:frame-threads=1:info=0"}
    media.write_video(file, [tile], fps=25, codec="libx265", b_frames=0, container_format="mp4", options=options)
    data = file.getvalue()
    start = data.index(b"hvcC") + 4
    record = data[start : start + struct.unpack(">I", data[start - 8 : start - 4])[0] - 8]
    file.seek(0)
    with av.open(file) as container:
        packet = next(packet for packet in container.demux(video=0) if packet.size)
        return record, bytes(packet)


def write_grid(
    image: NDArray[np.uint8],
    tile_px: int,
    *,
    properties: Sequence[bytes] = (),
    kind: str = "grid",
    tiles_left_out: int = 0,
) -> bytes:
    """A HEIC file of a uint8 ``[H, W, 3]`` picture, cut into square tiles; `properties` are those of the whole."""
    height, width = image.shape[:2]
    rows, columns = -(-height // tile_px), -(-width // tile_px)
    padded = np.pad(image, ((0, rows * tile_px - height), (0, columns * tile_px - width), (0, 0)), mode="edge")
    tiles = [
        padded[row * tile_px :, column * tile_px :][:tile_px, :tile_px]
        for row in range(rows)
        for column in range(columns)
    ]
    coded = [_coded(np.ascontiguousarray(tile)) for tile in tiles]
    coded = coded[: len(coded) - tiles_left_out]
    ids = range(2, 2 + len(coded))
    known = [
        full_box("ispe", struct.pack(">II", tile_px, tile_px)),
        full_box("ispe", struct.pack(">II", width, height)),
        *properties,
        *(box("hvcC", record) for record, _ in coded),
    ]
    first_record = 3 + len(properties)
    associations = [
        (1, list(range(2, first_record))),
        *((item, [1, first_record + number]) for number, item in enumerate(ids)),
    ]
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    infos = [full_box("infe", struct.pack(">HH4s", item, 0, b"hvc1"), b"\0", version=2) for item in ids]
    infos.insert(0, full_box("infe", struct.pack(">HH4s", 1, 0, kind.encode()), b"\0", version=2))

    def meta(first: int) -> bytes:
        places = [struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))]
        for item, (_, data) in zip(ids, coded, strict=True):
            places.append(struct.pack(">HHHHII", item, 0, 0, 1, first, len(data)))
            first += len(data)
        return full_box(
            "meta",
            full_box("hdlr", bytes(4), b"pict", bytes(13)),
            full_box("pitm", struct.pack(">H", 1)),
            full_box("iloc", bytes([0x44, 0x00]), struct.pack(">H", len(places)), *places, version=1),
            full_box("iinf", struct.pack(">H", len(infos)), *infos),
            full_box("iref", box("dimg", struct.pack(f">HH{len(coded)}H", 1, len(coded), *ids))),
            box(
                "iprp",
                box("ipco", *known),
                full_box(
                    "ipma",
                    struct.pack(">I", len(associations)),
                    *(struct.pack(f">HB{len(found)}B", item, len(found), *found) for item, found in associations),
                ),
            ),
            box("idat", grid),
        )

    head = box("ftyp", b"heic", bytes(4), b"mif1", b"heic")
    data = b"".join(content for _, content in coded)
    return head + meta(len(head) + len(meta(0)) + 8) + box("mdat", data)
