"""What the supervisor runs, and the files in a server's temporary folder through which it and its caller communicate.

Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
"""The server listens on the loopback interface only."""
SHARED_MEMORY = Path("/dev/shm")
INPUT_NAME = "faces"
"""As in `contract.spec`, which needs more than the standard library."""
RESTARTS_VARIABLE = "DEEPFAKE_SERVER_RESTARTS"
"""Tells the backend how often Triton was started again, for the metrics."""
STOP_TIMEOUT_S = 10.0
"""How long requests in flight may take to finish before the server is killed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, as `EmbeddedTriton` writes it into a file.

    Attributes:
        command: tritonserver's command line.
        parent_pid: the caller; the server ends with it.
        http_port: where the models are asked.
        shm_prefix: of the names that Triton's shared memory has.
        run_dir: the server's temporary folder.
        start_timeout_s: how long the models may take to answer after a start.
        notify: whether standard error is another place than the log, and gets what the supervisor does as well.
    """

    command: list[str]
    parent_pid: int
    http_port: int
    shm_prefix: str
    run_dir: str
    start_timeout_s: float
    notify: bool

    @property
    def pulses(self) -> Path:
        """Folder of the backend processes' signs of life."""
        return Path(self.run_dir) / "pulses"

    @property
    def serving(self) -> Path:
        """A file that is there while every model answers."""
        return Path(self.run_dir) / "serving"

    def write(self, path: Path) -> None:
        """Write it into a file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read it from a file."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def set_questions(self, crop_shapes: Mapping[str, Sequence[int]]) -> None:
        """Have these models asked from now on: shape of a crop by the model's name.

        A question is an inference request with one black crop, of any version.
        """
        questions = []
        for model, shape in crop_shapes.items():
            num_bytes = math.prod(shape)
            tensor = {"name": INPUT_NAME, "shape": [1, *shape], "datatype": "UINT8"}
            head = {"inputs": [{**tensor, "parameters": {"binary_data_size": num_bytes}}]}
            questions.append({"model": model, "head": json.dumps(head), "num_bytes": num_bytes})
        partial = self._questions.with_suffix(".partial")
        partial.write_text(json.dumps(questions), encoding="utf-8")
        partial.replace(self._questions)

    def questions(self) -> list[dict[str, Any]]:
        """Return what is asked now."""
        found: list[dict[str, Any]] = json.loads(self._questions.read_text(encoding="utf-8"))
        return found

    @property
    def _questions(self) -> Path:
        return Path(self.run_dir) / "questions.json"
