"""Starts a real Triton without Docker: the embedded default of `deepfake serve`.

::

    from deepfake_serve import EmbeddedTriton

    with EmbeddedTriton("models") as triton:
        print(triton.grpc_url)

Modules, in the order in which a start uses them: `_repository` (checks what is to be served), `_forms` (what runs on
this CPU), `_shares` (how the cores are divided), `_ports` (kept for the server), `_runtime` (brings Triton's own
binary), `_view` (the private repository that Triton reads), `server` (the life cycle), `_supervisor` (the small
process that makes sure nothing is left behind), `_backend` (the engine inside Triton), `cli`. Public names are listed
in ``__init__.pyi`` and loaded on first use: Triton imports the backend, and must not load the rest.
"""

from deepfake_preprocess.support.lazy import attach_stub

__getattr__, __all__ = attach_stub(__name__, __file__)
