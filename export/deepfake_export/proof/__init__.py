"""The proof that an artifact gives the checkpoint's verdicts: faces, figures, tolerances, gate and report."""
