"""Puts published weights into a fresh network: those of the backbone, and the head only of the very same network.

Layers are matched by name, and where the names differ by order, since two libraries that implement one architecture
list its layers in the same order. EfficientNet-Lite weights fit EfficientNet, too: Lite is the same network without
squeeze-and-excitation, whose gates then start fully open.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from deepfake_export.checkpoint.reading import read_checkpoint
from deepfake_preprocess.errors import CheckpointError

OPEN_GATE = 4.0
"""Bias of a squeeze-and-excitation gate that starts open: sigmoid(4) = 0.98."""
_GATE = ".se."


def load_initial(network: nn.Module, path: str | Path) -> str:
    """Put the weights of a ``.safetensors`` or `torch.save` file into a fresh network; return what was taken.

    The last layer is left out, unless every name and every shape agrees, as with the result of an earlier run.
    """
    path = Path(path)
    given = _read(path)
    wanted = network.state_dict()
    same = given.keys() == wanted.keys() and all(given[name].shape == wanted[name].shape for name in wanted)
    head = "nothing" if same else _head_of(network)
    without_gates = [name for name in wanted if _GATE not in name]
    without_head = [name for name in wanted if not name.startswith(head)]
    for names, how in (
        (list(wanted), "by order"),
        (without_head, "by order"),
        (without_gates, "by order, with open squeeze-and-excitation gates"),
    ):
        by_name = {name: given[name] for name in names if name in given}
        if len(by_name) == len(names):
            matched, how = by_name, how.replace("by order", "by name")
        elif len(given) == len(names):
            matched = dict(zip(names, given.values(), strict=True))
        else:
            continue
        body = {name: value for name, value in matched.items() if not name.startswith(head)}
        if all(value.shape == wanted[name].shape for name, value in body.items()):
            network.load_state_dict(body, strict=False)
            if names is without_gates:
                _open_gates(network)
            return f"{len(body)} tensors of {path.name} were taken {how}"
    raise CheckpointError(
        f"{path}: {len(given)} tensors, which do not fit the {len(wanted)} of {type(network).__name__}; "
        "name initial weights of the architecture that is trained, or train it from random ones"
    )


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file of initial weights; check 'initial_weights'")
    given = read_checkpoint(path)
    if not isinstance(given, dict) or not all(isinstance(value, Tensor) for value in given.values()):
        raise CheckpointError(f"{path} is not a plain state dict; save network.state_dict() alone")
    return given


def _head_of(network: nn.Module) -> str:
    """Return the name of the last linear layer, with its dot."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise CheckpointError(f"{type(network).__name__} has no linear layer to train; leave initial weights out")
    return f"{linear[-1]}."


def _open_gates(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if name.endswith("se.conv_expand") and isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            assert module.bias is not None
            nn.init.constant_(module.bias, OPEN_GATE)
