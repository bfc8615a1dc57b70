"""Detectors that come with the package: the trained demo, and untrained ones for tests and measurements."""
