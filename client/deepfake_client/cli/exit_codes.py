"""Exit codes of commands that no error stands for; errors have theirs (`DeepfakeError.exit_code`)."""

from __future__ import annotations

from typing import Final

EXIT_FAKE: Final = 1
"""With ``--exit-code`` alone: something is FAKE."""
EXIT_INCONCLUSIVE: Final = 3
EXIT_SOME_INPUTS_FAILED: Final = 5
"""Some of several inputs have no verdict; all that have one are printed and written."""
EXIT_INTERRUPTED: Final = 130
"""As a shell reports a program that Ctrl-C ended: 128 + SIGINT."""
