"""Loads one training checkpoint into its network, without ever running code from the file.

What does not fit is reported; nothing is skipped silently.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.checkpoint.checks import SHOWN, check_finite, check_outputs, first_names
from deepfake_export.checkpoint.layers import head_path
from deepfake_export.checkpoint.reading import read_checkpoint
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import CheckpointError

EMA_KEYS = ("state_dict_ema", "ema_state_dict", "model_ema", "ema")
WEIGHTS_KEYS = (*EMA_KEYS, "state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Where training scripts put the weights, in the order they are tried. Averaged (EMA) weights come first, as in
timm: where a script keeps them, they are what it validates and publishes."""

WRAPPER_PREFIXES = ("module.", "model.", "ema_model.", "network.", "net.")
"""What DataParallel, Lightning and other wrappers put before every name."""
COMPILED_MARK = "_orig_mod."
"""What `torch.compile` puts into names, at any depth."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a file: which of its tensors are the network's, and under which names.

    Attributes:
        weights_key: key path of the weights in the file, such as ``state_dict``; empty for the top level.
        prefix: wrapper prefix that was taken off every name; mostly empty.
        tensors: the network's, by its own names.
        ignored: names outside of that prefix, which belong to the training script and not to the network.
        missing: names of the network that are not in the file; `unexpected` ones are the other way round.
        renamed_head: where the file keeps the head, if not where the network does; with its dot, like `prefix`.
        wrapper: where the network keeps what the file holds, if it is a module around that; with its dot.
    """

    weights_key: str = ""
    prefix: str = ""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    renamed_head: str = ""
    wrapper: str = ""

    @property
    def problems(self) -> int:
        """How many tensors do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.wrong_shape)

    def describe(self) -> list[str]:
        """Return what was taken from the file and what was left out, as sentences."""
        found = []
        if self.weights_key or self.prefix:
            under = f" under {self.weights_key!r}" if self.weights_key else ""
            without = f", without the prefix {self.prefix!r}" if self.prefix else ""
            found.append(f"the weights were taken from the checkpoint{under}{without}")
        if self.wrapper:
            found.append(f"the weights were put under {self.wrapper!r} of the network")
        if self.renamed_head:
            found.append(f"the head was taken from {self.renamed_head!r}")
        if self.ignored:
            names = ", ".join(self.ignored[:SHOWN])
            found.append(f"{len(self.ignored)} tensor(s) outside of the network were left out ({names})")
        return found


def load_checkpoint(path: Path, spec: ModelSpec, *, in_channels: int = 3) -> tuple[nn.Module, Reading]:
    """Load one checkpoint file, whose hash is checked already, into the network of its spec; see `load_network`.

    Returns:
        The network in eval mode, float32, on the CPU, FP32 ``[N, in_channels, H, W]`` -> ``[N, num_logits]``; and
        where in the file its weights were.

    Raises:
        CheckpointError: the file is damaged, refused as unsafe, holds NaN or Inf, or does not fit the architecture.
        SpecError: the architecture is unknown or cannot be built.
    """
    if spec.architecture_family == "torchscript":
        network, reading = _load_torchscript(path), Reading()
    else:
        network = build_network(spec, in_channels=in_channels, code_dir=path.absolute().parent)
        reading = _fit(path, network, spec)
    network.float().eval()
    check_finite(path, network)
    check_outputs(path, network, spec, in_channels)
    return network, reading


def _load_torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # PyTorch deprecates TorchScript as a whole; people who hold such a file know what it is.
            warnings.filterwarnings("ignore", message=r"`torch\.jit", category=FutureWarning)
            return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-any-return, no-untyped-call]
    except (RuntimeError, ValueError) as exc:
        raise CheckpointError(
            f"{path} is not a TorchScript file; for a plain state dict name the network in the spec, for example "
            "'architecture: timm:efficientnet_b0'"
        ) from exc


def _fit(path: Path, network: nn.Module, spec: ModelSpec) -> Reading:
    """Put the weights of the first reading of the file that fits into `network`."""
    expected = network.state_dict()
    readings: list[Reading] = []
    data = read_checkpoint(path)
    for key, tensors in _weight_sets(data):
        places = itertools.product(_wrappers(expected), _prefixes(tensors))
        readings += [_compare(key, prefix, tensors, expected, wrapper) for wrapper, prefix in places]
        if all(item.problems for item in readings):
            readings += _elsewhere(path, key, tensors, expected, head_path(network))
        if not all(item.problems for item in readings):
            break
    if not readings:
        raise CheckpointError(f"{path} holds no weights; {_describe(data)}")
    best = min(readings, key=lambda item: item.problems)
    if best.problems:
        raise CheckpointError(_why_unfit(path, best, spec, expected))
    # Not strict, only because the counters of `_compare` may be missing; everything else is known to fit.
    network.load_state_dict(dict(best.tensors), strict=False)
    return best


def _elsewhere(
    path: Path, key: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str
) -> list[Reading]:
    """Return the one reading that fits with prefixes that no wrapper of `WRAPPER_PREFIXES` puts there, if any.

    Training code often keeps body and head side by side in a module of its own (``backbone.conv_stem.weight``,
    ``classifier.weight``), where the architecture has the head inside; or the network next to other ones.

    Raises:
        CheckpointError: several networks or heads in the file fit, and any choice would be a guess.
    """
    inside = f"{head}." if head else "\n"
    head_names = [name for name in expected if name.startswith(inside)]
    body_names = [name for name in expected if not name.startswith(inside)]
    fitting: dict[tuple[str, str], Reading] = {}
    for body_prefix in _prefixes_of(body_names[:1], tensors):
        for head_prefix in _prefixes_of([name.removeprefix(inside) for name in head_names[:1]], tensors):
            old_names = {name: body_prefix + name for name in body_names} | {
                name: head_prefix + name.removeprefix(inside) for name in head_names
            }
            old_names = {new: old for new, old in old_names.items() if old in tensors}
            taken = set(old_names.values())
            # What lies under the same prefixes belongs to the same modules, and may not be left out.
            others = [name for name in tensors if name not in taken]
            if any(name.startswith(prefix) for name in others for prefix in (body_prefix, head_prefix)):
                continue
            found = _compare(key, "", {new: tensors[old] for new, old in old_names.items()}, expected)
            if not found.problems:
                fitting[body_prefix, head_prefix] = dataclasses.replace(
                    found,
                    prefix=body_prefix,
                    ignored=tuple(others),
                    renamed_head=head_prefix if head_prefix != body_prefix + inside else "",
                )
    if len(fitting) > 1:
        found_at = ", ".join(sorted({repr(body or head) for body, head in fitting}))
        raise CheckpointError(
            f"{path} holds several networks or heads that fit ({found_at}), and which one is meant cannot be known; "
            "save the weights of one"
        )
    return list(fitting.values())


def _prefixes_of(names: list[str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what stands before a name in those that end with it; without a name, that nothing does."""
    if not names:
        return [""]
    (part,) = names
    return [name.removesuffix(part) for name in tensors if name == part or name.endswith(f".{part}")]


def _weight_sets(data: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every set of named tensors in the file with its key path, likeliest first."""
    if not isinstance(data, Mapping):
        return
    for inner in WEIGHTS_KEYS:
        yield from _weight_sets(data.get(inner), f"{key}.{inner}" if key else inner)
    tensors = {
        str(name).replace(COMPILED_MARK, ""): value for name, value in data.items() if isinstance(value, Tensor)
    }
    if tensors:
        yield key, tensors


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes worth a try, the empty one first; wrappers may be nested."""
    found = [""]
    for prefix in found:
        found += [
            prefix + wrapper
            for wrapper in WRAPPER_PREFIXES
            if any(name.startswith(prefix + wrapper) for name in tensors)
        ]
    return found


def _wrappers(expected: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes that all names of the network share, the empty one first.

    A factory may put a module around the published network, to pick its logits out of what that returns.
    """
    found = [""]
    for part in next(iter(expected), "").split(".")[:-1]:
        longer = f"{found[-1]}{part}."
        if not all(name.startswith(longer) for name in expected):
            break
        found.append(longer)
    return found


def _compare(
    key: str, prefix: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], wrapper: str = ""
) -> Reading:
    inside = {
        wrapper + name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
    }
    return Reading(
        weights_key=key,
        prefix=prefix,
        tensors=inside,
        ignored=tuple(name for name in tensors if not name.startswith(prefix)),
        # Batch norm's step counter is used in training only, and files from before PyTorch 0.4.1 lack it.
        missing=tuple(name for name in expected if name not in inside and not name.endswith(".num_batches_tracked")),
        unexpected=tuple(name for name in inside if name not in expected),
        wrong_shape=tuple(
            name for name, value in inside.items() if name in expected and value.shape != expected[name].shape
        ),
        wrapper=wrapper,
    )


def _why_unfit(path: Path, found: Reading, spec: ModelSpec, expected: Mapping[str, Tensor]) -> str:
    shapes = [
        f"{name} is {list(found.tensors[name].shape)} and should be {list(expected[name].shape)}"
        for name in found.wrong_shape
    ]
    parts = [
        f"{len(names)} {what} ({first_names(names)})"
        for what, names in (
            ("missing", found.missing),
            ("unexpected", found.unexpected),
            ("of another shape", tuple(shapes)),
        )
        if names
    ]
    where = f" under {found.weights_key!r}" if found.weights_key else ""
    what = f"of its weights{where} {'; '.join(parts)}"
    return f"{path} does not fit {spec.architecture}: {what}. {_hint(found, spec, expected)}"


def _hint(found: Reading, spec: ModelSpec, expected: Mapping[str, Tensor]) -> str:
    """Return what to do about a checkpoint that does not fit."""
    pairs = [(found.tensors[name].shape, expected[name].shape) for name in found.wrong_shape]
    only_last_layer = found.problems == len(pairs) and all(
        given[1:] == wanted[1:] and wanted[0] == spec.head.num_logits for given, wanted in pairs
    )
    path, entries = _head_layers(found, spec)
    if entries:
        outputs = int(entries[-1].partition(":")[2])
    elif only_last_layer:
        outputs = pairs[0][0][0]
    else:
        return "Name the architecture and the input size that this checkpoint was trained with in the spec"
    kind = {1: "sigmoid", 2: "softmax"}.get(outputs)
    if kind is None:
        return f"Its last layer has {outputs} outputs, and a detector has 1 or 2"
    if not entries:
        return f"Its last layer has {outputs} output(s): set 'head: {{kind: {kind}}}'"
    return (
        f"Its head has several layers (under {path!r}): state them as in the training code, for example "
        f"'head: {{kind: {kind}, layers: [{', '.join(entries)}]}}'"
    )


def _head_layers(found: Reading, spec: ModelSpec) -> tuple[str, list[str]]:
    """Return where a head of several layers lies, and how to state it, where that is what does not fit."""
    if spec.head.layers or spec.architecture_family not in ("timm", "torchvision"):
        return "", []
    numbered: dict[str, dict[int, Tensor]] = {}
    for name in (*found.unexpected, *found.wrong_shape):
        match = re.fullmatch(r"(.*?)\.?(\d+)\.weight", name)
        if match and found.tensors[name].ndim == 2:
            numbered.setdefault(match[1], {})[int(match[2])] = found.tensors[name]
    heads = [(path, layers) for path, layers in numbered.items() if len(layers) > 1]
    # All but the usual head's weight and bias must be there, under whatever prefix: else the body is another one.
    starts = _prefixes_of(list(found.missing[:1]), found.tensors) or [""]
    body_fits = any(sum(start + name not in found.tensors for name in found.missing) <= 2 for start in starts)
    if len(heads) != 1 or not body_fits:
        return "", []
    path, layers = heads[0]
    entries = [f"linear:{layers[index].shape[0]}" if index in layers else "?" for index in range(max(layers) + 1)]
    # What stands between two linear layers has no weights, so the file cannot tell; this is what is usual.
    for index, entry in enumerate(entries):
        if entry == "?":
            entries[index] = "relu" if index and entries[index - 1].startswith("linear") else "dropout"
    return path, entries


def _describe(data: Any) -> str:
    if not isinstance(data, Mapping):
        return f"it holds a {type(data).__name__}, and a mapping from names to tensors is needed"
    keys = first_names(tuple(str(key) for key in data)) or "none"
    return f"its keys are {keys}; looked under {', '.join(WEIGHTS_KEYS)}"
