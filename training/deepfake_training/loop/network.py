"""The network that a run trains: built, given its first weights, and frozen where the configuration says so."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.checkpoint.layers import head_path
from deepfake_preprocess.errors import OptionError
from deepfake_training.loop.config import TrainConfig
from deepfake_training.loop.folding import fold_frozen_norms
from deepfake_training.loop.initial import load_initial


def prepare_network(config: TrainConfig) -> tuple[nn.Module, list[nn.Module], str]:
    """Return a network to train, those of its modules that must stay in eval mode, and where its weights are from."""
    network = build_network(config.spec)
    origin = "random weights" if config.initial_weights is None else load_initial(network, config.initial_weights)
    _set_drop_path(network, config.drop_path)
    if config.patch_drop:
        _set_patch_drop(network, config.patch_drop)
    if config.trained != "all":
        _train_only(network, norms=config.trained == "norms_and_head")
    in_eval_mode = _freeze(network, config)
    if config.freeze_statistics:
        fold_frozen_norms(network)
    return network, in_eval_mode, origin


def weight_groups(network: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return what is trained, as an optimizer's groups: biases and norms do not decay, the head may learn faster."""
    head = {id(weight) for weight in network.get_submodule(head_path(network)).parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for weight in network.parameters():
        if weight.requires_grad:
            decay = config.weight_decay if weight.ndim > 1 else 0.0
            rate = config.learning_rate * (config.head_rate if id(weight) in head else 1.0)
            groups.setdefault((decay, rate), []).append(weight)
    return [{"params": group, "weight_decay": decay, "lr": rate} for (decay, rate), group in groups.items()]


def _train_only(network: nn.Module, *, norms: bool) -> None:
    """Freeze all weights but those of the head, and of the norms where they are asked for."""
    network.requires_grad_(False)
    network.get_submodule(head_path(network)).requires_grad_(True)
    for module in network.modules():
        if norms and isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(True)


def _set_drop_path(network: nn.Module, share: float) -> None:
    """Set the share of residual branches that are left out, rising with depth, as timm does."""
    from timm.layers.drop import DropPath

    branches = [
        module for module in network.modules() if hasattr(module, "drop_path") and hasattr(module, "has_skip")
    ]
    for index, module in enumerate(branches):
        rate = share * index / max(1, len(branches) - 1)
        if module.has_skip and rate:
            module.drop_path = DropPath(rate)


def _set_patch_drop(network: nn.Module, share: float) -> None:
    """Leave out a share of the patches in training."""
    from timm.layers.patch_dropout import PatchDropout
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(network, VisionTransformer):
        raise OptionError("only vision transformers of timm can leave out patches; set 'patch_drop' to 0")
    network.patch_drop = PatchDropout(share, network.num_prefix_tokens)


def _freeze(network: nn.Module, config: TrainConfig) -> list[nn.Module]:
    """Freeze what the configuration says; return the modules that must stay in eval mode."""
    known = dict(network.named_modules())
    still: list[nn.Module] = []
    for name in config.freeze:
        if not name or name not in known:
            raise OptionError(
                f"{name!r} cannot be frozen: the network has no such module; it has "
                f"{', '.join(dict(network.named_children()))} and what they hold"
            )
        known[name].requires_grad_(False)
        still.append(known[name])
    if config.freeze_statistics:
        still += [module for module in known.values() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return still
