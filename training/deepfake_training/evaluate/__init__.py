"""How good a detector is: scores, metrics, calibration, robustness and reports."""
