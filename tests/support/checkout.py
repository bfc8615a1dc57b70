"""Where this project is checked out, for tests that read its documents and configurations."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
