"""Ways to read a checkpoint's tensors as those of a network: under which key, without which prefix, with which head.

Nothing is skipped silently: what does not fit is part of the reading.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepfake_export.checkpoint.checks import SHOWN
from deepfake_export.checkpoint.inert import ModuleTensors
from deepfake_export.checkpoint.layers import head_path
from deepfake_preprocess.errors import CheckpointError

WEIGHTS_KEYS = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Where training scripts put the weights, in the order they are tried; what they call otherwise is tried last."""
AVERAGED_KEY = re.compile(r"(?i)(^|_)(ema|swa|averaged|shadow)(_|$)")
"""Where they put averaged weights. These come first, as in timm: where a script keeps them, they are what it
validates and publishes."""
TRAINING_KEY = re.compile(r"(?i)optim|sched|scaler")
"""Where a script puts tensors that are no weights, by the shape of weights."""

WRAPPER_PREFIXES = ("module.", "model.", "ema_model.", "network.", "net.")
"""What DataParallel, Lightning and other wrappers put before every name."""
COMPILED_MARK = "_orig_mod."
"""What `torch.compile` puts into names, at any depth."""


class SeveralFitError(CheckpointError):
    """Several networks or heads in a file fit; `places` are their prefixes."""

    def __init__(self, message: str, places: tuple[str, ...]) -> None:
        super().__init__(message)
        self.places = places


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a file: which of its tensors are the network's, and under which names.

    Attributes:
        weights_key: key path of the weights in the file, such as ``state_dict``; empty for the top level.
        prefix: wrapper prefix that was taken off every name; mostly empty.
        tensors: the network's, by its own names.
        ignored: names outside of that prefix, which belong to the training script and not to the network.
        missing: names of the network that are not in the file; `unexpected` ones are the other way round.
        in_the_way: the unexpected ones by their names in the file.
        renamed_head: where the file keeps the head, if not where the network does; with its dot, like `prefix`.
        wrapper: where the network keeps what the file holds, if it is a module around that; with its dot.
        remark: what the file says that the spec contradicts, as a sentence without a full stop.
    """

    weights_key: str = ""
    prefix: str = ""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    in_the_way: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    renamed_head: str = ""
    wrapper: str = ""
    remark: str = ""

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
        if self.remark:
            found.append(self.remark)
        return found


def best_reading(
    path: Path,
    data: Any,
    network: nn.Module,
    ignore: Collection[str] = (),
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> Reading | None:
    """Return the first reading of a file that fits a network, or the one with the fewest problems; None without any.

    Args:
        path: the file, for messages.
        data: what `read_checkpoint` returned.
        network: with the names and shapes that are wanted.
        ignore: `ModelSpec.ignore_keys`.
        rename: from the names of the published network to those of `network`, whatever stands before them.

    Raises:
        SeveralFitError: several networks or heads in the file fit, and any choice would be a guess.
    """
    expected = network.state_dict()
    readings: list[Reading] = []
    for key, found in weight_sets(data):
        ignored = {name for name in found if any(fnmatchcase(name, pattern) for pattern in ignore)}
        tensors = rename({name: value for name, value in found.items() if name not in ignored})
        places = itertools.product(_wrappers(expected), _prefixes(tensors))
        candidates = [_compare(key, prefix, tensors, expected, wrapper) for wrapper, prefix in places]
        if all(item.problems for item in candidates):
            candidates += _elsewhere(path, key, tensors, expected, head_path(network))
        readings += [dataclasses.replace(item, ignored=(*item.ignored, *sorted(ignored))) for item in candidates]
        if not all(item.problems for item in readings):
            break
    return min(readings, key=lambda item: item.problems, default=None)


def _elsewhere(
    path: Path, key: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], head: str
) -> list[Reading]:
    """Return the reading that fits with prefixes that no wrapper of `WRAPPER_PREFIXES` puts there, or nearly does.

    Training code often keeps body and head side by side in a module of its own (``backbone.conv_stem.weight``,
    ``classifier.weight``), where the architecture has the head inside; or the network next to other ones.

    Raises:
        SeveralFitError: several networks or heads in the file fit, and any choice would be a guess.
    """
    inside = f"{head}." if head else "\n"
    head_names = [name for name in expected if name.startswith(inside)]
    body_names = [name for name in expected if not name.startswith(inside)]
    fitting: dict[tuple[str, str], Reading] = {}
    hindered: list[Reading] = []
    bodies = _prefixes_of("", body_names[:1], tensors, expected)
    heads = _prefixes_of(inside, head_names[:1], tensors, expected)
    for body, head_prefix in itertools.product(bodies, heads):
        old_names = {name: body + name for name in body_names}
        old_names |= {name: head_prefix + name.removeprefix(inside) for name in head_names}
        old_names = {new: old for new, old in old_names.items() if old in tensors}
        found = _compare(key, "", {new: tensors[old] for new, old in old_names.items()}, expected)
        if found.problems:
            continue
        taken = set(old_names.values())
        others = [name for name in tensors if name not in taken]
        if _is_layer_among(head_prefix, others):
            continue
        # What lies under the same prefixes belongs to the same modules, and may not be left out.
        if beside := tuple(name for name in others if name.startswith((body, head_prefix))):
            hindered.append(dataclasses.replace(found, unexpected=beside, in_the_way=beside))
            continue
        fitting[body, head_prefix] = dataclasses.replace(
            found,
            prefix=body,
            ignored=tuple(others),
            renamed_head=head_prefix if head_prefix != body + inside else "",
        )
    if len(fitting) > 1:
        fitting_bodies, fitting_heads = ({pair[index] for pair in fitting} for index in (0, 1))
        places = sorted(fitting_bodies if len(fitting_bodies) > 1 else fitting_heads)
        ignore = ", ".join(f"'{place}*'" for place in places[1:])
        raise SeveralFitError(
            f"{path} holds several networks or heads that fit ({', '.join(map(repr, places))}), and which is meant "
            f"cannot be known; leave the others out in the spec, for example with ignore_keys: [{ignore}]",
            tuple(places),
        )
    return list(fitting.values()) or hindered


def _is_layer_among(head_prefix: str, others: Sequence[str]) -> bool:
    """Return whether a head ends in a number, and so is one layer of a head that has others."""
    numbered = re.fullmatch(r"(.*?)\d+\.", head_prefix)
    return numbered is not None and any(re.match(rf"{re.escape(numbered[1])}\d+\.", name) for name in others)


def _prefixes_of(
    inside: str, names: list[str], tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> list[str]:
    """Return what stands before a name less `inside`, where a tensor of its shape has it; without a name, nothing."""
    if not names:
        return [""]
    (name,) = names
    part, shape = name.removeprefix(inside), expected[name].shape
    return [
        old.removesuffix(part)
        for old, value in tensors.items()
        if (old == part or old.endswith(f".{part}")) and value.shape == shape
    ]


def weight_sets(data: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every set of named tensors in the file with its key path, likeliest first.

    The last one, with an empty key path, holds the file's own tensors; in a file without any, those of all its
    mappings, whose keys become part of the names (``backbone.conv_stem.weight``).
    """
    sets = list(_sets_under_known_keys(data))
    yield from sets
    if all(key for key, _ in sets):
        spread = dict(_spread(data))
        if any("." in name for name in spread):
            yield "", spread


def _sets_under_known_keys(data: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(data, Mapping):
        return
    if isinstance(data, ModuleTensors):
        key += f"{' ' if key else ''}(a module {data.class_name}, whose code was not run)"
    averaged = [name for name in data if isinstance(name, str) and AVERAGED_KEY.search(name)]
    for inner in (*averaged, *WEIGHTS_KEYS):
        yield from _sets_under_known_keys(data.get(inner), f"{key}.{inner}" if key else inner)
    tensors = {
        str(name).replace(COMPILED_MARK, ""): value for name, value in data.items() if isinstance(value, Tensor)
    }
    if tensors:
        yield key, tensors


def _spread(data: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in all mappings of a file, and in lists of mappings, with their key paths as names."""
    listed = {} if not isinstance(data, list | tuple) else {str(n): item for n, item in enumerate(data)}
    for name, value in (data if isinstance(data, Mapping) else listed).items():
        if TRAINING_KEY.search(str(name)):
            continue
        if not isinstance(value, Tensor):
            yield from _spread(value, f"{prefix}{name}.")
        elif not listed:
            yield f"{prefix}{name}".replace(COMPILED_MARK, ""), value


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
        in_the_way=tuple(prefix + name.removeprefix(wrapper) for name in inside if name not in expected),
        wrong_shape=tuple(
            name for name, value in inside.items() if name in expected and value.shape != expected[name].shape
        ),
        wrapper=wrapper,
    )
