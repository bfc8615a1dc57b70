"""`deepfake train`, `evaluate` and their helpers."""
