"""Pictures and heatmaps as files in memory, and as JSON without loss: `Picture` and `Heatmap`, for pydantic."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.media.image import read_image

if TYPE_CHECKING:  # only who writes or reads the JSON needs it
    from pydantic_core import CoreSchema


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return a uint8 ``[H, W, 3]`` RGB picture as the bytes of a PNG file."""
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return bytes(data)


def _encode_npy(array: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _decode_npy(data: bytes) -> NDArray[np.float32]:
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False), np.float32)


@dataclass(frozen=True, slots=True)
class _Base64:
    """Says how pydantic writes an array: as a file in base64."""

    write: Callable[[Any], bytes]
    read: Callable[[bytes], Any]
    media_type: str

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            lambda text: self.read(base64.b64decode(text, validate=True)),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda array: base64.b64encode(self.write(array)).decode("ascii"), when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: Any) -> dict[str, Any]:
        return {"type": "string", "contentEncoding": "base64", "contentMediaType": self.media_type}


Picture: TypeAlias = Annotated[NDArray[np.uint8], _Base64(encode_png, partial(read_image, name="it"), "image/png")]
"""uint8 ``[H, W, 3]`` RGB; in JSON a PNG file in base64."""

Heatmap: TypeAlias = Annotated[NDArray[np.float32], _Base64(_encode_npy, _decode_npy, "application/x-npy")]
"""float32 ``[H, W]``; in JSON a file of NumPy's (``np.load``) in base64."""
