"""What the peers have in common: their options, and the network in the engine and precision that is compared."""

import json
import os
from collections.abc import Callable

import numpy as np

OPTIONS = json.loads(os.environ["PEER_OPTIONS"])
"""From the environment, because some peers start their files again in processes of their own."""

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Without one, some processors compute in bfloat16 and give other probabilities. INT8 is in the graph."""


def load(threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Load the model file with so many threads: uint8 ``[N, H, W, 3]`` crops in, probabilities ``[N, 1]`` out."""
    if OPTIONS["engine"] == "openvino":
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": HINTS[OPTIONS["precision"]],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            # Workers do not know of each other, and all would take the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        request = openvino.Core().compile_model(OPTIONS["model"], "CPU", options).create_infer_request()
        return lambda crops: request.infer([crops], share_inputs=True)["fake_probability"]
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    session = ort.InferenceSession(OPTIONS["model"], settings, providers=["CPUExecutionProvider"])
    return lambda crops: session.run(["fake_probability"], {"faces": crops})[0]
