"""Verdicts from a verdict service (`deepfake gateway`), which decodes, finds faces and asks Triton itself."""
