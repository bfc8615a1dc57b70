"""How a process that opens media begins: it leaves the cores to others before it loads anything.

Started by `process.Process` as ``python -m deepfake_scan.work.entry``.
"""

from __future__ import annotations

from typing import Final

from deepfake_preprocess.support.limits import end_with_parent, yield_cores

NICE: Final = 19
"""Niceness of each thread. With 10, threads of the server waited for those that decode, some ms for each request."""
SESSION_NICE: Final = 10
"""Niceness of all threads together, where sessions count: beside a busy program a tenth of a core is left."""

if __name__ == "__main__":
    end_with_parent()
    yield_cores(NICE, session=SESSION_NICE)
    from deepfake_scan.work.child import main

    main()
