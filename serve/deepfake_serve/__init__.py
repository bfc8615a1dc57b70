"""Starts a real Triton without Docker: the embedded default of `deepfake serve`.

Modules, in the order in which a start uses them: `_runtime` (brings Triton's own binary), `_repository` (checks
what is to be served and lays out a private view of it), `server` (the life cycle), `_supervisor` (the small
process that makes sure nothing is left behind), `_backend` (ONNX Runtime inside Triton), `cli`.

`EmbeddedTriton` is loaded on first use: Triton imports this package's backend where nothing else of the project is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepfake_serve.server import EmbeddedTriton

__all__ = ["EmbeddedTriton"]


def __getattr__(name: str) -> Any:
    if name == "EmbeddedTriton":
        from deepfake_serve.server import EmbeddedTriton

        return EmbeddedTriton
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
