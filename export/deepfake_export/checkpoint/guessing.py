"""From a checkpoint to a first spec: what its names and shapes prove, and what only the training code can say.

Nothing is downloaded, and no code of the file is run. Whatever is proposed was read with the spec that is written.
"""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deepfake_export.checkpoint.checks import SIZES, first_names
from deepfake_export.checkpoint.file import check_file
from deepfake_export.checkpoint.fingerprints import recognize
from deepfake_export.checkpoint.hints import (
    describe_content,
    describe_probe,
    head_layers,
    leaves_little_out,
    read_choosing,
    read_on_meta,
    repaired,
)
from deepfake_export.checkpoint.reading import read_checkpoint
from deepfake_export.checkpoint.readings import Reading, weight_sets
from deepfake_export.checkpoint.remarks import find_fake_index, find_strings, with_metadata
from deepfake_export.published.networks import PUBLISHED
from deepfake_export.published.recipes import RECIPES, Recipe
from deepfake_preprocess.contract.spec import IMAGENET_MEAN, IMAGENET_STD, Head, ModelSpec
from deepfake_preprocess.errors import CheckpointError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.json_data import JsonData

SURE, GUESS = "sure", "guess"
OWN_CODE = "python:for_export:detector"
"""The architecture of a spec whose network was not recognized."""
MAX_SHOWN = 6
TRAINING_CODE = "the file cannot say; take it from the training code"
FAKE_IS_ONE = f"that class 1, or a positive value, means fake; {TRAINING_CODE}"


@dataclass(frozen=True, slots=True)
class SpecGuess(JsonData):
    """A first spec of a checkpoint.

    Attributes:
        spec: the contract, with guesses where the file cannot say.
        recognized: whether the network was found; else `spec` names one that must be written.
        certainty: by field, ``sure`` or ``guess``, with the reason.
        notes: what was found, as sentences without a full stop.
        recipe: name of the published detector that it is; empty for others.
    """

    spec: ModelSpec
    recognized: bool
    certainty: dict[str, str]
    notes: tuple[str, ...]
    recipe: str = ""

    def to_yaml(self) -> str:
        """Return the spec as YAML, with what is sure and what is a guess as comments."""
        return annotated_yaml(self.spec, self.certainty, self.notes)


def guess_spec(checkpoint: str | Path) -> SpecGuess:
    """Guess the spec of a checkpoint from its names and shapes.

    Raises:
        CheckpointError: the file cannot be read, holds no weights, a last layer alone, or no detector.
    """
    path = Path(checkpoint)
    check_file(path)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem).lstrip("_.-")[:64] or "detector"
    if _is_torchscript(path):
        why = {"architecture": f"{SURE}: the file brings its network along", **_guesses("head", "size", "pixels")}
        why["head"] = f"{GUESS}: one output, two are softmax; and {FAKE_IS_ONE}"
        return SpecGuess(ModelSpec(name, "torchscript"), True, why, ("it is a TorchScript file",))
    data = read_checkpoint(path)
    remarks = with_metadata(path, data)
    sets = list(weight_sets(data))
    if not sets:
        raise CheckpointError(f"{path} holds no weights; {describe_content(data)}")
    tensors = sets[0][1]
    if probe := describe_probe(tensors):
        raise CheckpointError(f"{path} is no whole detector. {probe}")
    marked = {key: recipe for key, recipe in RECIPES.items() if any(recipe.mark in item for item in tensors)}
    for key, recipe in marked.items():
        found = read_on_meta(path, data, recipe.spec)
        if found is not None and not found.problems:
            return _of_recipe(key, recipe, found)
    for recipe in marked.values():
        near = _near_recipe(path, data, name, recipe)
        if near is not None:
            return _with_remarks(near, remarks)
    for candidate in _candidates(name, tensors, find_strings(remarks)):
        spec, found = read_choosing(path, data, candidate)
        if found is not None and leaves_little_out(found):
            return _with_remarks(_recognized(repaired(spec, found, data), found, tensors), remarks)
    outputs = {value.shape[0] for item, value in list(tensors.items())[-2:] if value.ndim <= 2}
    if recognize(tensors) and len(outputs) == 1 and (count := outputs.pop()) > 2:
        raise CheckpointError(
            f"{path} is {recognize(tensors)[0]} with {count} outputs, and a detector has 1 or 2; train one from it"
        )
    return _with_remarks(_unknown(name, tensors), remarks)


def recipe_guess(name: str) -> SpecGuess:
    """Return the ready spec of a published detector; KeyError for a name that is not in `RECIPES`."""
    return _of_recipe(name, RECIPES[name], None)


def annotated_yaml(spec: ModelSpec, certainty: Mapping[str, str], notes: tuple[str, ...]) -> str:
    """Return a spec as YAML with comments: notes above, and what is known of a field above it."""
    values = spec.to_dict()
    shown = [
        *("name", "architecture", "head", "input_height_px", "input_width_px", "color_order", "mean", "std", "crop"),
        *("threshold", *(["ignore_keys"] if spec.ignore_keys else [])),
    ]
    lines = [f"# {note}." for note in notes]
    for key in shown:
        if key in certainty:
            lines.append(f"# {certainty[key]}")
        lines.append(f"{key}: {_flow(values[key])}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items() if item != []) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return f"'{value}'" if isinstance(value, str) and re.search(r"[*?&#,\[\]{}]", value) else str(value)


def _guesses(*which: str) -> dict[str, str]:
    every = {
        "head": {"head": f"{GUESS}: {FAKE_IS_ONE}"},
        "size": {"input_height_px": f"{GUESS}: {TRAINING_CODE}"},
        "pixels": {
            "color_order": f"{GUESS}: BGR where they read with OpenCV and do not convert",
            "mean": f"{GUESS}: {TRAINING_CODE}",
            "crop": f"{GUESS}: how much around the face box they cut out, as a share of its longer side",
        },
    }
    return {key: text for name in which for key, text in every[name].items()}


def _of_recipe(name: str, recipe: Recipe, found: Reading | None) -> SpecGuess:
    notes: tuple[str, ...] = (recipe.title, f"Source: {recipe.source}", f"File: {recipe.file}")
    notes += tuple(found.describe()) if found is not None else ()
    return SpecGuess(recipe.spec, True, {key: str(text) for key, text in recipe.remarks.items()}, notes, name)


def _near_recipe(path: Path, data: Any, name: str, recipe: Recipe) -> SpecGuess | None:
    """Return the guess for a network of ours that others trained, with another head or something beside it."""
    if recipe.spec.architecture_family != "published":
        return None
    other = Head("softmax" if recipe.spec.head.kind == "sigmoid" else "sigmoid")
    for head in (recipe.spec.head, other):
        spec = dataclasses.replace(recipe.spec, name=name, head=head)
        found = read_on_meta(path, data, spec)
        if found is not None and leaves_little_out(found):
            certainty = _guesses("head", "size", "pixels")
            certainty["architecture"] = (
                f"{SURE}: every name and shape fits; values below are those of {recipe.source}"
            )
            return SpecGuess(repaired(spec, found, data), True, certainty, tuple(found.describe()))
    return None


def _candidates(name: str, tensors: Mapping[str, Tensor], mentioned: Collection[str]) -> Iterator[ModelSpec]:
    """Yield specs whose networks may have these tensors, first those that the file mentions by name."""
    heads = [Head("sigmoid"), Head("softmax"), *head_layers(tensors)]
    if any("_blocks." in item for item in tensors):
        names = [item for item in PUBLISHED if item.startswith("efficientnet_pytorch_")]
        for item in names:
            native = int(require_extra("deepfake_export.published.efficientnet", extra="export").NATIVE_PX[item[-2:]])
            for head in heads[:2]:
                yield ModelSpec(name, f"published:{item}", head=head, input_height_px=native, input_width_px=native)
    for architecture in sorted(recognize(tensors), key=lambda item: item.partition(":")[2] not in mentioned):
        fixed, size, mean, std = _defaults(architecture)
        for head in heads:
            for px in dict.fromkeys((size, *SIZES) if fixed else (size,)):
                yield ModelSpec(
                    name, architecture, head=head, input_height_px=px, input_width_px=px, mean=mean, std=std
                )


def _defaults(architecture: str) -> tuple[bool, int, Any, Any]:
    """Return whether a network has one input size; and the size, mean and deviation that it was published with."""
    family, _, name = architecture.partition(":")
    if family == "timm":
        config = require_extra("timm", extra="export").get_pretrained_cfg(name)
        if config is not None:
            return bool(config.fixed_input_size), int(config.input_size[-1]), tuple(config.mean), tuple(config.std)
    return name.startswith("vit_"), 299 if name == "inception_v3" else 224, IMAGENET_MEAN, IMAGENET_STD


def _recognized(spec: ModelSpec, found: Reading, tensors: Mapping[str, Tensor]) -> SpecGuess:
    others = [name for name in recognize(tensors) if name != spec.architecture]
    certainty = _guesses("head", "size", "pixels")
    certainty["architecture"] = f"{SURE}: every name and shape fits"
    if others and spec.architecture_family != "published":
        more = f", and {len(others) - MAX_SHOWN} more" if len(others) > MAX_SHOWN else ""
        certainty["architecture"] = (
            f"{GUESS} between networks of these names and shapes, which differ in padding, activations, or the mean "
            f"and input size that they were published with: {', '.join(others[:MAX_SHOWN])}{more}"
        )
    kind = f"{SURE}: {spec.head.num_logits} output(s)"
    certainty["head"] = f"{kind}; {certainty['head']}"
    if spec.head.layers:
        certainty["head"] += "; of the layers, those without weights (relu, dropout) are a guess"
    fixed = spec.architecture_family in ("timm", "torchvision") and _defaults(spec.architecture)[0]
    if fixed:
        certainty["input_height_px"] = f"{SURE}: the position embedding is of this size"
    if spec.ignore_keys:
        certainty["ignore_keys"] = (
            f"{GUESS}: the network has no place for {first_names(found.in_the_way)}"
            if found.in_the_way
            else f"{GUESS}: what it leaves out fits as well, and only the training code can say which is meant"
        )
    return SpecGuess(spec, True, certainty, tuple(found.describe()))


def _with_remarks(guess: SpecGuess, remarks: Mapping[str, Any]) -> SpecGuess:
    """Return the guess with what the file says in words: which class is fake, and which network it is."""
    spec, certainty = guess.spec, dict(guess.certainty)
    if spec.architecture_name in find_strings(remarks) and certainty["architecture"].startswith(GUESS):
        certainty["architecture"] = f"{SURE}: every name and shape fits, and the file names it"
    if (found := find_fake_index(remarks)) is not None:
        index, where = found
        spec = dataclasses.replace(spec, head=dataclasses.replace(spec.head, fake_index=index))
        certainty["head"] = certainty["head"].replace(f"{GUESS}: {FAKE_IS_ONE}", f"{SURE}: in the file, {where}")
    return dataclasses.replace(guess, spec=spec, certainty=certainty)


def _unknown(name: str, tensors: Mapping[str, Tensor]) -> SpecGuess:
    counts = Counter(item.split(".")[0] for item in tensors)
    modules = ", ".join(f"{module} ({count})" for module, count in counts.most_common(MAX_SHOWN))
    shapes = [f"{item} {list(value.shape)}" for item, value in tensors.items() if value.ndim > 1]
    notes = (
        f"No network of timm, torchvision or of the published detectors has these {len(tensors)} tensors",
        f"Modules: {modules}",
        f"First: {first_names(tuple(shapes[:2]))}; last: {first_names(tuple(shapes[-2:]))}",
        "Write for_export.py with a function detector() that returns the authors' network, beside the checkpoint; "
        "docs/export.md shows one",
    )
    certainty = {"architecture": f"{GUESS}: to be written", **_guesses("head", "size", "pixels")}
    return SpecGuess(ModelSpec(name, OWN_CODE), False, certainty, notes)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(item.endswith("/constants.pkl") for item in archive.namelist())
