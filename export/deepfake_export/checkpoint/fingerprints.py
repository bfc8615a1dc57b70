"""Which networks of timm and torchvision have the tensors of a checkpoint, without building any of them.

A fingerprint is a sum over tensors (of hashes of name and shape), so that a head that may be another one is taken off
by subtraction. ``architectures.json`` has the sum of every network's body; `scripts/index_architectures.py` makes it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files

from torch import Tensor

INDEX_NAME = "architectures.json"
MODULUS = 2**64
MAX_HEAD_DEPTH = 3
"""How deep in a network its head may lie (``head.fc``)."""
MAX_PARTS = 400
"""Modules that are tried as the head; a network has hundreds, and pairs of them are tried."""
VARIABLE = re.compile(
    r"(^|\.)(pos_embed\w*|abs_pos\w*|pos_block|rel_pos\w*|relative_position\w*|relative_coords\w*|attn_mask|"
    r"position_bias|pos_embedding|attention_bias\w*|num_batches_tracked|rope\w*|mask|freqs\w*)(\.|$)"
)
"""Tensors whose shape depends on the input size, or that older files lack; they are not in a fingerprint."""


def tensor_hash(name: str, shape: Sequence[int]) -> int:
    """Return what one tensor adds to a fingerprint."""
    if VARIABLE.search(name):
        return 0
    text = f"{name}:{'x'.join(map(str, shape))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def fingerprint(shapes: Iterable[tuple[str, Sequence[int]]]) -> int:
    """Return the fingerprint of named shapes."""
    return sum(tensor_hash(name, shape) for name, shape in shapes) % MODULUS


@cache
def index() -> Mapping[int, tuple[str, ...]]:
    """Return the names of architectures by the fingerprint of their bodies."""
    data = json.loads((files("deepfake_export.checkpoint") / INDEX_NAME).read_text(encoding="utf-8"))
    return {int(key, 16): tuple(names) for key, names in data.items()}


def recognize(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the architectures whose body is among these tensors, under whatever prefix and beside whatever head."""
    found: dict[str, None] = {}
    for prefix in _prefixes(tensors):
        inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        total = fingerprint((name, value.shape) for name, value in inside.items())
        # What may be a head, or stand beside the network: small modules of linear layers.
        parts: dict[str, int] = {}
        for name, value in inside.items():
            modules = name.split(".")[:-1] or [name]
            for depth in range(1, min(len(modules), MAX_HEAD_DEPTH) + 1):
                module = ".".join(modules[:depth])
                parts[module] = (parts.get(module, 0) + tensor_hash(name, value.shape)) % MODULUS
        choices = [0, *parts.values()]
        for first, second in itertools.combinations_with_replacement(choices[:MAX_PARTS], 2):
            for name in index().get((total - first - (second if second != first else 0)) % MODULUS, ()):
                found[name] = None
    return list(found)


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of names that hold at least half of the tensors, the empty one first."""
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
    return ["", *(prefix for prefix, count in counts.items() if count >= len(tensors) / 3)]
