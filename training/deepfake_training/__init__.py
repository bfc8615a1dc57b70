"""Trains, evaluates and calibrates detectors: from faces to published weights, and from labeled files to figures.

::

    from deepfake_training import TrainConfig, TrainingRun

    config = TrainConfig.from_file("train.yaml")
    best = TrainingRun(config.load_faces(), config, "runs/first").train()

Folders: `data` (faces, and what happens to them), `loop` (a run), `evaluate` (scores, figures, reports). Measuring a
server needs no PyTorch. Public names are listed in ``__init__.pyi`` and loaded on first use.
"""

from deepfake_preprocess.support.lazy import attach_stub

__getattr__, __all__ = attach_stub(__name__, __file__)
