"""The public names of `deepfake_training`, and the modules that they are loaded from on first use."""

from deepfake_training.data.augment import Augmentation
from deepfake_training.data.dataset import FaceDataset, Mixture
from deepfake_training.data.packed_faces import PackedFaces
from deepfake_training.data.packing import FaceFolders, pack_faces
from deepfake_training.data.taught import TaughtCrops, TaughtFolder
from deepfake_training.evaluate.calibration import find_temperature, find_threshold
from deepfake_training.evaluate.checkpoint import CheckpointTransport
from deepfake_training.evaluate.clips import LabeledFile, labeled_files, read_table, split_files
from deepfake_training.evaluate.drift import drift_of_verdicts, read_verdicts
from deepfake_training.evaluate.evaluation import (
    Abstaining,
    EvaluateOptions,
    Evaluation,
    LabeledScores,
    RobustnessPoint,
    calibrated_spec,
    evaluate_apart,
    evaluate_files,
    robustness_point,
    save_spec,
)
from deepfake_training.evaluate.held_out import score_held_out
from deepfake_training.evaluate.metrics import Confusion, DetectionMetrics, Estimate, measure
from deepfake_training.evaluate.operating_point import OperatingPoint, find_operating_point
from deepfake_training.evaluate.recalibrating import CalibrationResult, LeftOut, calibrate_model
from deepfake_training.evaluate.report import as_markdown, write_report
from deepfake_training.evaluate.robustness import DEGRADATIONS, Degradation, view_of
from deepfake_training.evaluate.scoring import ScoredFile, score_files
from deepfake_training.evaluate.usual import Drift, FigureDrift, drift_of
from deepfake_training.loop.averaging import average_runs
from deepfake_training.loop.checkpointing import publish
from deepfake_training.loop.config import TrainConfig
from deepfake_training.loop.discounting import Discount, discount_blur
from deepfake_training.loop.distilling import teach
from deepfake_training.loop.run import EpochResult, TrainingRun

__all__ = [
    "DEGRADATIONS",
    "Abstaining",
    "Augmentation",
    "CalibrationResult",
    "CheckpointTransport",
    "Confusion",
    "Degradation",
    "DetectionMetrics",
    "Discount",
    "Drift",
    "EpochResult",
    "Estimate",
    "EvaluateOptions",
    "Evaluation",
    "FaceDataset",
    "FaceFolders",
    "FigureDrift",
    "LabeledFile",
    "LabeledScores",
    "LeftOut",
    "Mixture",
    "OperatingPoint",
    "PackedFaces",
    "RobustnessPoint",
    "ScoredFile",
    "TaughtCrops",
    "TaughtFolder",
    "TrainConfig",
    "TrainingRun",
    "as_markdown",
    "average_runs",
    "calibrate_model",
    "calibrated_spec",
    "discount_blur",
    "drift_of",
    "drift_of_verdicts",
    "evaluate_apart",
    "evaluate_files",
    "find_operating_point",
    "find_temperature",
    "find_threshold",
    "labeled_files",
    "measure",
    "pack_faces",
    "publish",
    "read_table",
    "read_verdicts",
    "robustness_point",
    "save_spec",
    "score_files",
    "score_held_out",
    "split_files",
    "teach",
    "view_of",
    "write_report",
]
