"""What training scripts write into a file beside the weights that settles what names and shapes cannot.

Only plain data is looked at: the names of the classes, and the name of the network.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from deepfake_export.checkpoint.foreign import is_safetensors
from deepfake_preprocess.contract.spec import Head

CLASSES_KEY = re.compile(r"(?i)^(class(es)?|label(s)?|id|idx|index)(_?(to|2)_?(class|label|id|idx|index)|_?names?)?$")
"""As ``class_to_idx`` of torchvision, ``id2label`` of Hugging Face, ``classes`` and ``class_names``."""
FAKE = re.compile(r"(?i)(^|[^a-z])(fakes?|deep_?fakes?|manipulated|spoof|synthetic|generated|altered)([^a-z]|$)")
REAL = re.compile(r"(?i)(^|[^a-z])(reals?|originals?|pristine|genuine|live|bona_?fide|authentic|youtube)([^a-z]|$)")
MAX_DEPTH = 4


def with_metadata(path: Path, data: Any) -> Mapping[str, Any]:
    """Return what `read_checkpoint` returned, with what a safetensors file says beside its tensors as data."""
    held = data if isinstance(data, Mapping) else {}
    if not is_safetensors(path):
        return held
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return {**{key: _parsed(value) for key, value in metadata.items()}, **held}


def find_fake_index(data: Any) -> tuple[Literal[0, 1], str] | None:
    """Return which of two classes a file calls the fake one, and where; None where it does not, or in two ways."""
    found: dict[Literal[0, 1], str] = {
        index: f"{key} is {_shown(value)}"
        for key, value in _items(data)
        if CLASSES_KEY.match(key) and (index := _fake_index(value)) is not None
    }
    return next(iter(found.items())) if len(found) == 1 else None


def contradiction(data: Any, head: Head) -> str:
    """Return a sentence where a file names another class as the fake one than its spec does; else an empty one."""
    found = find_fake_index(data)
    if found is None or found[0] == head.fake_index:
        return ""
    return (
        f"{found[1]} in the checkpoint, so class {found[0]} would be the fake one, and the spec says 'fake_index: "
        f"{head.fake_index}': if that is wrong, every verdict is"
    )


def find_strings(data: Any) -> set[str]:
    """Return the short texts in a file, one of which may be the name of its network."""
    return {value for _, value in _items(data) if isinstance(value, str)}


def _items(data: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield what mappings and arguments hold, at any depth but the deepest."""
    data = vars(data) if isinstance(data, Namespace) else data
    if not isinstance(data, Mapping) or depth > MAX_DEPTH:
        return
    for key, value in data.items():
        if not isinstance(value, Tensor):
            yield str(key), value
            yield from _items(value, depth + 1)


def _fake_index(classes: Any) -> Literal[0, 1] | None:
    """Return the index of the fake one of two classes, as a list or a mapping in either direction names them."""
    if isinstance(classes, list | tuple):
        classes = dict(enumerate(classes))
    if not isinstance(classes, Mapping) or len(classes) != 2:
        return None
    pairs = [(key, value) if _is_index(key) else (value, key) for key, value in classes.items()]
    names = {int(index): str(name) for index, name in pairs if _is_index(index)}
    fake = {index for index, name in names.items() if FAKE.search(name) and not REAL.search(name)}
    real = {index for index, name in names.items() if REAL.search(name) and not FAKE.search(name)}
    if (fake, real) == ({0}, {1}):
        return 0
    return 1 if (fake, real) == ({1}, {0}) else None


def _is_index(value: Any) -> bool:
    return str(value) in ("0", "1") and not isinstance(value, bool)


def _shown(classes: Any) -> str:
    return str(dict(classes) if isinstance(classes, Mapping) else list(classes))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
