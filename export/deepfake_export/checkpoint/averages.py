"""Names for averaged weights that a script kept as a list, as torch_ema and diffusers do.

The list is in the order of `model.parameters()`, and so is the model's state dict, which has buffers in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from deepfake_export.checkpoint.readings import AVERAGED_KEY, weight_sets
from deepfake_preprocess.errors import CheckpointError

BUFFER = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
"""What batch norms keep besides their parameters."""


def with_named_averages(path: Path, data: Any) -> Any:
    """Return what a file holds with each list of averaged weights as a state dict, buffers included.

    Raises:
        CheckpointError: no state dict in the file fits such a list.
    """
    return _named(path, data, [tensors for _, tensors in weight_sets(data)])


def _named(path: Path, data: Any, sets: Iterable[Mapping[str, Tensor]], where: str = "") -> Any:
    if type(data) is not dict:
        return data
    named = {}
    for key, value in data.items():
        place = f"{where}.{key}" if where else str(key)
        is_list = AVERAGED_KEY.search(str(key)) and _is_list_of_tensors(value)
        named[key] = _state_dict(path, value, sets, place) if is_list else _named(path, value, sets, place)
    return named


def _is_list_of_tensors(value: Any) -> TypeGuard[list[Tensor] | tuple[Tensor, ...]]:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Tensor) for item in value)


def _state_dict(
    path: Path, averages: list[Tensor] | tuple[Tensor, ...], sets: Iterable[Mapping[str, Tensor]], where: str
) -> dict[str, Tensor]:
    shapes = [item.shape for item in averages]
    for tensors in sets:
        parameters = [name for name in tensors if not BUFFER.search(name)]
        if [tensors[name].shape for name in parameters] == shapes:
            return {**tensors, **dict(zip(parameters, averages, strict=True))}
    raise CheckpointError(
        f"{path} holds averaged weights without names under {where!r} ({len(averages)} tensors), and no state dict "
        "whose parameters they are, by number and shapes; load them in the training code, as with "
        "ema.copy_to(model.parameters()), and save model.state_dict() alone"
    )
