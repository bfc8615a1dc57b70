"""What to do about a checkpoint that does not fit its spec: changes of the spec that were tried and do fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from deepfake_export.checkpoint.architectures import build_light, build_network, build_renaming
from deepfake_export.checkpoint.checks import SIZES, first_names
from deepfake_export.checkpoint.fingerprints import recognize
from deepfake_export.checkpoint.readings import Reading, SeveralFitError, best_reading, weight_sets
from deepfake_preprocess.contract.spec import Head, ModelSpec
from deepfake_preprocess.errors import DeepfakeError

MAX_PROBE_TENSORS = 4
"""A file with no more tensors is a last layer, or a small head."""
MAX_LEFT_OUT = 0.25
"""With a larger share of the file's tensors in the way, it is another network, not one with something beside it."""


def why_unfit(path: Path, data: Any, found: Reading, spec: ModelSpec, expected: Mapping[str, Tensor]) -> str:
    """Return the message about a file whose best reading has problems."""
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
    return f"{path} does not fit {spec.architecture}: {what}. {_hint(path, data, found, spec)}"


def describe_content(data: Any) -> str:
    """Return what a file without weights holds instead."""
    if not isinstance(data, Mapping):
        return f"it holds a {type(data).__name__}, and a mapping from names to tensors is needed"
    keys = first_names(tuple(str(key) for key in data)) or "none"
    return f"its keys are {keys}, and under none of them are tensors with the names of layers"


def describe_probe(tensors: Mapping[str, Tensor]) -> str | None:
    """Return a sentence about a file that holds a last layer alone; None for any other."""
    linear = [value for value in tensors.values() if value.ndim == 2]
    if len(tensors) > MAX_PROBE_TENSORS or not linear or any(value.ndim > 2 for value in tensors.values()):
        return None
    features, outputs = linear[0].shape[1], linear[-1].shape[0]
    return (
        f"It holds a last layer alone ({first_names(tuple(tensors))}), which makes {outputs} value(s) of {features} "
        "features: a linear probe. The network that gives these features is in another file; save both in one, as "
        "torch.save({**{'body.' + k: v for k, v in body.items()}, **{'head.' + k: v for k, v in head.items()}}, "
        "'whole.pt') with their two state dicts"
    )


def left_out_by(names: Collection[str], used: Collection[str]) -> list[str]:
    """Return patterns for `ModelSpec.ignore_keys` that take these names and none of those in use."""
    patterns: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        prefixes = (".".join(parts[:count]) + "." for count in range(1, len(parts)))
        prefix = next((item for item in prefixes if not any(other.startswith(item) for other in used)), None)
        patterns[f"{prefix}*" if prefix else name] = None
    return list(patterns)


def leaves_little_out(found: Reading) -> bool:
    """Return whether a reading fits once what is in its way is left out, and that is a small part of the file."""
    return not found.missing and not found.wrong_shape and len(found.unexpected) <= MAX_LEFT_OUT * len(found.tensors)


def repaired(spec: ModelSpec, found: Reading, data: Any) -> ModelSpec:
    """Return the spec with `ignore_keys` for what is in the way of a reading that `leaves_little_out`."""
    if not found.in_the_way:
        return spec
    every = dict(weight_sets(data)).get(found.weights_key, {})
    used = [name for name in every if name not in found.in_the_way]
    return dataclasses.replace(spec, ignore_keys=(*spec.ignore_keys, *left_out_by(found.in_the_way, used)))


def read_on_meta(path: Path, data: Any, spec: ModelSpec) -> Reading | None:
    """Read a file for a spec without memory for the network; None where that cannot be built or is ambiguous."""
    try:
        return _read_light(path, data, spec)
    except (DeepfakeError, RuntimeError):
        return None


def read_choosing(path: Path, data: Any, spec: ModelSpec) -> tuple[ModelSpec, Reading | None]:
    """Read as `read_on_meta`, of several networks that fit the first; with the spec that leaves the others out."""
    try:
        return spec, _read_light(path, data, spec)
    except SeveralFitError as several:
        others = tuple(f"{place}*" for place in several.places[1:])
        spec = dataclasses.replace(spec, ignore_keys=(*spec.ignore_keys, *others))
        return spec, read_on_meta(path, data, spec)
    except (DeepfakeError, RuntimeError):
        return spec, None


def _read_light(path: Path, data: Any, spec: ModelSpec) -> Reading | None:
    network = build_light(lambda: build_network(spec, code_dir=path.absolute().parent))
    return best_reading(path, data, network, spec.ignore_keys, build_renaming(spec))


def _hint(path: Path, data: Any, found: Reading, spec: ModelSpec) -> str:
    tensors = next((tensors for key, tensors in weight_sets(data) if key == found.weights_key), {})
    if probe := describe_probe(tensors):
        return probe
    near: list[tuple[ModelSpec, Reading]] = []
    for changed in _alternatives(tensors, found, spec):
        reading = found if changed == spec else read_on_meta(path, data, changed)
        if reading is not None and not reading.problems:
            return _in_words(spec, changed, reading)
        if reading is not None and leaves_little_out(reading):
            near.append((changed, reading))
    if near:
        changed, reading = min(near, key=lambda item: item[1].problems)
        return _in_words(spec, repaired(changed, reading, data), reading)
    outputs = _wrong_outputs(found, spec)
    if outputs in (1, 2):
        kind = "sigmoid" if outputs == 1 else "softmax"
        return f"Its last layer has {outputs} output(s): set 'head: {{kind: {kind}}}', and build the network so"
    if outputs:
        return f"Its last layer has {outputs} outputs, and a detector has 1 or 2"
    return (
        "Name the architecture and the input size that this checkpoint was trained with in the spec; "
        f"`deepfake init-spec {path}` looks for the one that fits"
    )


def _alternatives(tensors: Mapping[str, Tensor], found: Reading, spec: ModelSpec) -> Iterator[ModelSpec]:
    """Yield specs that may fit instead, the nearest first."""
    yield spec
    heads = [Head(kind, spec.head.fake_index) for kind in ("sigmoid", "softmax") if kind != spec.head.kind]
    if spec.architecture_family in ("timm", "torchvision"):
        heads += head_layers(tensors, spec.head.fake_index)
    if spec.architecture_family == "published" or spec.architecture_family == "python":
        heads = [] if spec.architecture_family == "python" else heads[:1]
    yield from (dataclasses.replace(spec, head=head) for head in heads)
    if found.wrong_shape and spec.architecture_family in ("timm", "torchvision"):
        yield from (dataclasses.replace(spec, input_height_px=size, input_width_px=size) for size in SIZES)
    known = ("timm", "torchvision")
    namesakes = [f"{family}:{spec.architecture_name}" for family in known if spec.architecture_family in known]
    for name in dict.fromkeys([*namesakes, *recognize(tensors)[:3]]):
        if name != spec.architecture:
            for head in (spec.head, *heads):
                yield dataclasses.replace(spec, architecture=name, head=head)


def _in_words(spec: ModelSpec, changed: ModelSpec, reading: Reading) -> str:
    """Say what to change in the spec."""
    parts = []
    if changed.architecture != spec.architecture:
        where = {"torchvision": "torchvision's", "timm": "timm's"}.get(changed.architecture_family, "that of")
        parts.append(f"These are {where} names and shapes: set 'architecture: {changed.architecture}'")
    if changed.head != spec.head:
        layers = f", layers: [{', '.join(changed.head.layers)}]" if changed.head.layers else ""
        outputs = changed.head.num_logits
        about = "Its head has several layers" if layers else f"Its last layer has {outputs} output(s)"
        caution = " (layers without weights are a guess: see the training code)" if layers else ""
        parts.append(f"{about}: set 'head: {{kind: {changed.head.kind}{layers}}}'{caution}")
    if changed.input_size_wh != spec.input_size_wh:
        width, height = changed.input_size_wh
        parts.append(f"It is for another input size: set 'input_height_px: {height}' and 'input_width_px: {width}'")
    if changed.ignore_keys != spec.ignore_keys:
        names = first_names(reading.in_the_way)
        patterns = ", ".join(f"'{pattern}'" for pattern in changed.ignore_keys)
        parts.append(f"The network does not use {names}: leave them out with ignore_keys: [{patterns}]")
    return "; ".join(parts)


def _wrong_outputs(found: Reading, spec: ModelSpec) -> int:
    """Return the number of outputs of a last layer that alone does not fit; 0 where that is not the cause."""
    shapes = [found.tensors[name].shape for name in found.wrong_shape]
    if found.missing or found.unexpected or not shapes or len({shape[0] for shape in shapes}) != 1:
        return 0
    return int(shapes[0][0]) if len(shapes) <= 2 and shapes[0][0] != spec.head.num_logits else 0


def head_layers(tensors: Mapping[str, Tensor], fake_index: Any = 1) -> list[Head]:
    """Return heads of several layers that the names and shapes of a file may mean, likeliest first.

    Layers without weights cannot be known from a file: between two with weights an activation is usual, and dropout
    before the last one.
    """
    groups: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(?:(.*?)\.)?(\d+)\.(weight|bias|running_mean|running_var)", name)
        if match:
            groups.setdefault(match[1] or "", {}).setdefault(int(match[2]), {})[match[3]] = value
    found = []
    for layers in groups.values():
        entries = {index: _entry(parts) for index, parts in layers.items()}
        linear = [index for index, entry in entries.items() if entry.startswith("linear")]
        if not linear or "" in entries.values() or len(entries) + max(entries) < 2:
            continue
        last = entries[max(entries)]
        kind = {"linear:1": "sigmoid", "linear:2": "softmax"}.get(last)
        if kind is not None:
            filled = _filled(entries)
            found.append(Head(kind, fake_index, layers=tuple(filled)))  # type: ignore[arg-type]
    return found


def _entry(parts: Mapping[str, Tensor]) -> str:
    """Return the entry of `Head.layers` for the tensors of one layer; empty where there is none."""
    weight = parts.get("weight")
    if weight is None:
        return ""
    if "running_mean" in parts:
        return "batchnorm"
    if weight.ndim == 2 and "bias" in parts:
        return f"linear:{weight.shape[0]}"
    return "layernorm" if weight.ndim == 1 and "bias" in parts else ""


def _filled(entries: Mapping[int, str]) -> Sequence[str]:
    result: list[str] = []
    for index in range(max(entries) + 1):
        if index in entries:
            result.append(entries[index])
        else:
            # An activation stands behind a linear layer or its norm, and not before the first one.
            active = any(entry.startswith("linear") for entry in result) and result[-1] not in ("relu", "dropout")
            result.append("relu" if active else "dropout")
    return result
