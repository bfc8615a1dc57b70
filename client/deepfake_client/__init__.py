"""The client library of deepfake-serving: from a video or an image to a verdict, with the help of Triton.

::

    from deepfake_client import DeepfakeClient

    with DeepfakeClient("localhost:8001") as client:
        verdict = client.analyze("clip.mp4")
    print(verdict.label, verdict.fake_probability)

Works without torch. Errors are in `deepfake_preprocess.errors` and can be imported from here as well. Public names
are listed in ``__init__.pyi`` and loaded on first use.
"""

from deepfake_preprocess.support.lazy import attach_stub

__getattr__, __all__ = attach_stub(__name__, __file__)
