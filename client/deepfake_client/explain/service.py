"""`ServiceExplainer`: explanations from a `deepfake explain-serve` elsewhere. Needs no PyTorch and no HTTP library.

This is the only module that speaks HTTP to the service; its errors are translated here and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from deepfake_client.explain.draw import encode_png
from deepfake_client.explain.types import ExplainOptions, Explanation, ServedScores
from deepfake_client.explain.wire import NPZ_TYPE, explanation_from_npz
from deepfake_preprocess.errors import (
    DeepfakeError,
    ExplainDisagreementError,
    InferenceError,
    OptionError,
    ServerBusyError,
    ServerTimeoutError,
    ServerUnavailableError,
)

DEFAULT_SERVICE_URL = "http://127.0.0.1:8005"
DEFAULT_TIMEOUT_S = 60.0
REQUESTS_IN_FLIGHT = 4
"""Enough for the service to form batches, and far below the number it lets wait."""


class ServiceExplainer:
    """Asks an explain service over HTTP; a `deepfake_client.explain.types.Explainer`.

    Args:
        url: of the service, such as ``http://127.0.0.1:8005``.
        timeout_s: deadline of each request, in seconds.

    Raises:
        OptionError: the URL is none.
    """

    def __init__(self, url: str = DEFAULT_SERVICE_URL, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError(f"the explain service is {url!r}; allowed: a URL such as {DEFAULT_SERVICE_URL}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._parts = parts
        self._timeout_s = timeout_s

    def explain(
        self,
        crops: NDArray[np.uint8],
        options: ExplainOptions,
        *,
        landmarks_xy: Sequence[NDArray[np.float32] | None] | None = None,
        served: ServedScores | None = None,
    ) -> list[Explanation]:
        """See `Explainer.explain`; crops are sent side by side, so that the service can batch them.

        Raises:
            OptionError: the service refuses the crops, the method or the layer.
            ExplainDisagreementError: the service holds another checkpoint, or does not get the served scores.
            ServerError: it cannot be reached, is busy or failed.
        """
        landmarks = landmarks_xy or [None] * len(crops)
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="deepfake-explain") as pool:
            return list(
                pool.map(
                    lambda index: self._explain_one(crops[index], options, landmarks[index], served, index),
                    range(len(crops)),
                )
            )

    def close(self) -> None:
        """See `Explainer.close`; no connection is kept."""

    def _explain_one(
        self,
        crop: NDArray[np.uint8],
        options: ExplainOptions,
        landmarks_xy: NDArray[np.float32] | None,
        served: ServedScores | None,
        index: int,
    ) -> Explanation:
        fields = {"method": options.method}
        if options.layer is not None:
            fields["layer"] = options.layer
        fields |= {name: "true" for name in ("faithfulness", "sanity") if getattr(options, name)}
        if landmarks_xy is not None:
            fields["landmarks"] = ",".join(f"{value:.3f}" for value in landmarks_xy.ravel())
        if served is not None:
            fields |= {
                "served_probability": repr(float(served.probabilities[index])),
                "served_checkpoint_sha256": served.checkpoint_sha256 or "",
                "served_precision": served.precision,
                "served_tensorrt": str(served.tensorrt).lower(),
            }
        return explanation_from_npz(self._post(fields, encode_png(crop)))

    def _post(self, fields: Mapping[str, str], png: bytes) -> bytes:
        boundary = f"deepfake-{secrets.token_hex(16)}"
        body = _multipart(fields, png, boundary)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Accept": NPZ_TYPE}
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        host, port = str(self._parts.hostname), self._parts.port
        connection = kind(host, port, timeout=self._timeout_s)
        try:
            connection.request("POST", f"{self._parts.path.rstrip('/')}/v1/explain", body, headers)
            response = connection.getresponse()
            data = response.read()
        except TimeoutError as exc:
            raise ServerTimeoutError(
                f"the explain service at {self.url} gave no answer within {self._timeout_s:g} s; look at its load"
            ) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise ServerUnavailableError(
                f"no explain service answers at {self.url}; start one with `deepfake explain-serve CHECKPOINT`, name "
                "another with --service, or explain here with --checkpoint"
            ) from exc
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise _error_of(response.status, data, self.url)
        return data


def _multipart(fields: Mapping[str, str], png: bytes, boundary: str) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="crop"; filename="crop.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    return b"".join([*parts, head.encode(), png, f"\r\n--{boundary}--\r\n".encode()])


def _error_of(status: int, data: bytes, url: str) -> DeepfakeError:
    """Return the error that a problem+json answer stands for; see docs/explain.md for the statuses."""
    try:
        detail = str(json.loads(data)["detail"])
    except (ValueError, KeyError, TypeError):
        return InferenceError(f"{url} answered with status {status}; is it an explain service?")
    if status == http.HTTPStatus.CONFLICT:
        return ExplainDisagreementError(detail)
    if status in (http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE):
        return ServerBusyError(detail)
    if status in (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.GATEWAY_TIMEOUT):
        return ServerTimeoutError(detail)
    if status < http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return OptionError(detail)
    return InferenceError(f"the explain service at {url} failed: {detail}")
