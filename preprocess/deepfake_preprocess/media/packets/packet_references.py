"""Whether other pictures of a video refer to a picture, read from its packet without decoding it.

A picture that none refers to (most B-frames) costs as much to sample as any other and is coded more coarsely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_H264_SLICES = frozenset({1, 5})
_START_CODE = b"\0\0\1"


def reference_test(codec: str, extradata: bytes | None) -> Callable[[memoryview], bool]:
    """Return a test of a packet's content: whether other pictures may refer to its picture.

    In H.264 (ITU-T H.264, 7.4.1) ``nal_ref_idc`` of the picture's slices says so, in HEVC (ITU-T H.265, 7.4.2.2)
    their type. Pictures of other codecs, and packets without a slice, count as referenced. `extradata`, the stream's
    configuration record (ISO/IEC 14496-15), says how packets are divided into units; without one, start codes do.
    """
    is_reference = {"h264": _h264_reference, "hevc": _hevc_reference}.get(codec)
    if is_reference is None:
        return lambda content: True
    length_at = {"h264": 4, "hevc": 21}[codec]
    record = extradata or b""
    length_size = (record[length_at] & 3) + 1 if len(record) > length_at and record[0] == 1 else None

    def test(content: memoryview) -> bool:
        for header in _headers(content, length_size):
            if (answer := is_reference(header)) is not None:
                return answer
        return True

    return test


def _h264_reference(header: int) -> bool | None:
    return bool(header >> 5 & 3) if header & 31 in _H264_SLICES else None


def _hevc_reference(header: int) -> bool | None:
    kind = header >> 1 & 63
    return None if kind > 31 else kind > 14 or kind % 2 == 1


def _headers(content: memoryview, length_size: int | None) -> Iterator[int]:
    """Yield the first byte of each unit (NAL unit) of a packet."""
    if length_size is None:
        # A start code ends the unit before it; what the last unit holds does not matter here.
        for unit in bytes(content).split(_START_CODE)[1:]:
            yield from unit[:1]
        return
    position = 0
    while position + length_size < len(content):
        yield content[position + length_size]
        position += length_size + int.from_bytes(content[position : position + length_size])
