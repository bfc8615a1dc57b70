"""The explain service that a gateway starts beside its Triton: `deepfake explain-serve`, ended with its parent.

It is quiet: the last address that is printed is that of the page.
"""

from __future__ import annotations

import sys

from deepfake_client.cli.main import main
from deepfake_preprocess.support.limits import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    main(["explain-serve", "--quiet", *sys.argv[1:]])
