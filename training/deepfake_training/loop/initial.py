"""Puts published weights into a fresh network: those of the backbone, and the head only of the very same network.

Layers are matched by name, and where the names differ by order, since two libraries that implement one architecture
list its layers in the same order. Where a vision transformer takes pictures of another size, the
positions of its patches are laid out anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from torch import Tensor, nn

from deepfake_export.checkpoint.layers import last_linear
from deepfake_export.checkpoint.reading import read_checkpoint
from deepfake_preprocess.errors import CheckpointError

_POSITIONS: Final = "pos_embed"


def load_initial(network: nn.Module, path: str | Path) -> str:
    """Put the weights of a ``.safetensors`` or `torch.save` file into a fresh network; return what was taken.

    The last layer is left out, unless every name and every shape agrees, as with the result of an earlier run.
    """
    path = Path(path)
    wanted = network.state_dict()
    given = with_positions(_read(path), network)
    same = given.keys() == wanted.keys() and all(given[name].shape == wanted[name].shape for name in wanted)
    head = "nothing" if same else f"{last_linear(network)[0]}."
    without_head = [name for name in wanted if not name.startswith(head)]
    for names in (list(wanted), without_head):
        by_name = {name: given[name] for name in names if name in given}
        if len(by_name) == len(names):
            matched, how = by_name, "by name"
        elif len(given) == len(names):
            matched, how = dict(zip(names, given.values(), strict=True)), "by order"
        else:
            continue
        body = {name: value for name, value in matched.items() if not name.startswith(head)}
        if all(value.shape == wanted[name].shape for name, value in body.items()):
            network.load_state_dict(body, strict=False)
            if not same:
                # timm's EfficientNets begin with weights up to 1 for a single logit, which is then 10 or 20.
                last_linear(network)[1].reset_parameters()
            return f"{len(body)} tensors of {path.name} were taken {how}"
    raise CheckpointError(
        f"{path}: {len(given)} tensors, which do not fit the {len(wanted)} of {type(network).__name__}; "
        "name initial weights of the architecture that is trained, or train it from random ones"
    )


def with_positions(given: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return weights with the positions that a network's input size asks for, by bicubic resampling."""
    from timm.layers.pos_embed import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(network, VisionTransformer) or network.pos_embed is None or _POSITIONS not in given:
        return given
    if given[_POSITIONS].shape == network.pos_embed.shape:
        return given
    grid = network.patch_embed.grid_size
    resampled = resample_abs_pos_embed(given[_POSITIONS], list(grid), num_prefix_tokens=network.num_prefix_tokens)
    return given | {_POSITIONS: resampled}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file of initial weights; check 'initial_weights'")
    given = read_checkpoint(path)
    if not isinstance(given, dict) or not all(isinstance(value, Tensor) for value in given.values()):
        raise CheckpointError(f"{path} is not a plain state dict; save network.state_dict() alone")
    return given
