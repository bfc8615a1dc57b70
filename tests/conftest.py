"""Lets tests import the makers of clips in this folder as ``media``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
