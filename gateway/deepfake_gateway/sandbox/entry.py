"""How a sandbox begins: it leaves the network while it has one thread, before any library starts another.

Started by `process.Sandbox` as ``python -m deepfake_gateway.sandbox.entry``, with its set-up as one argument.
"""

from __future__ import annotations

import json
import sys

from deepfake_gateway.sandbox.isolation import leave_network, make_door
from deepfake_preprocess.support.limits import end_with_parent

if __name__ == "__main__":
    setup = json.loads(sys.argv[1])
    problem = leave_network()
    if setup["has_door"]:
        make_door(setup["files_fd"])
    end_with_parent()  # not before: the kernel forgets it with every change of rights
    from deepfake_gateway.sandbox.child import main

    main(setup, problem)
