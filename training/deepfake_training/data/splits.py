r"""Which faces must stay together, and splits in training and validation that keep them together.

Faces of one video, of one person, or of one shot must not be on both sides: a network that knows the person or the
background by heart would be praised for it. Groups are joined from everything that is known:

- All faces of one video.
- All faces whose file names hold the same identity, where a pattern says how to read it. ``004_982.mp4`` of
  FaceForensics++ holds two, so the pattern ``(\d{3})(?:_(\d{3}))?`` joins it with ``004.mp4`` and with ``982.mp4``.
- Stills that look alike: neighbors in the order of names, and near duplicates anywhere in one folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from deepfake_preprocess.errors import OptionError

ALIKE_NEIGHBORS = 0.12
"""Mean difference of 16 px thumbnails (colors in [0, 1]) below which consecutive stills are of one shot."""
ALIKE_ANYWHERE = 0.05
"""The same for stills that are not neighbors: near duplicates only."""


def find_groups(
    sources: Sequence[str], thumbnails: NDArray[np.float32], *, identity_pattern: str | None = None
) -> tuple[str, ...]:
    """Return the group of each face, named after the first file in it.

    Each face has its file, as ``folder/path``, and a thumbnail, float32 ``[S, S, 3]`` in [0, 1]. The pattern is
    searched in the name of each file (without its suffix), and every group it captures is an identity.
    """
    pairs = _with_equal(enumerate(sources))
    if identity_pattern is not None:
        pairs += _with_equal(_identities(sources, identity_pattern))
    flat = thumbnails.reshape(len(sources), -1)
    folders = np.array([PurePosixPath(source).parts[0] for source in sources])
    for index in range(1, len(sources)):
        same_folder = folders[index] == folders[index - 1]
        if same_folder and np.abs(flat[index] - flat[index - 1]).mean() < ALIKE_NEIGHBORS:
            pairs.append((index - 1, index))
    for folder in np.unique(folders):
        members = np.flatnonzero(folders == folder)
        for position, member in enumerate(members.tolist()):
            rest = members[position + 1 :]
            alike = rest[np.abs(flat[rest] - flat[member]).mean(axis=1) < ALIKE_ANYWHERE]
            pairs += [(member, other) for other in alike.tolist()]
    rows, columns = zip(*pairs, strict=True)
    joined = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(sources),) * 2)
    _, parts = connected_components(joined, directed=False)
    _, first = np.unique(parts, return_index=True)
    return tuple(sources[first[part]] for part in parts)


def _with_equal(keys: Iterable[tuple[int, str]]) -> list[tuple[int, int]]:
    """Pair each face with the first one that has the same key."""
    first: dict[str, int] = {}
    return [(first.setdefault(key, index), index) for index, key in keys]


def _identities(sources: Sequence[str], pattern: str) -> list[tuple[int, str]]:
    """Return each face with each of the identities in its file's name."""
    try:
        compiled = re.compile(pattern)
    except re.error as exc:
        raise OptionError(f"the identity pattern {pattern!r} is not a regular expression ({exc})") from exc
    if not compiled.groups:
        raise OptionError(f"the identity pattern {pattern!r} captures nothing; put the identity in parentheses")
    found = [
        (index, identity)
        for index, source in enumerate(sources)
        if (match := compiled.search(PurePosixPath(source).stem))
        for identity in match.groups()
        if identity is not None
    ]
    if not found:
        raise OptionError(f"the identity pattern {pattern!r} matches none of the files, such as {sources[0]!r}")
    return found


def split_by_group(groups: Sequence[str], validation_share: float, *, seed: int) -> NDArray[np.bool_]:
    """Return which faces are for validation: whole groups, until they hold about the share that was asked for.

    Groups are taken in the order of a hash of seed and name: a set that grows keeps its split. A group larger than
    what is left is passed over; at least one group is taken.
    """
    names, counts = np.unique(np.array(groups), return_counts=True)
    if len(names) < 2:
        raise OptionError(
            f"all {len(groups)} faces belong to one video, person or shot ({names[0]!r}), and none can be "
            "held out; add others"
        )
    order = sorted(range(len(names)), key=lambda item: hashlib.sha256(f"{seed}/{names[item]}".encode()).digest())
    wanted = validation_share * len(groups)
    chosen: set[str] = set()
    held = 0
    for item in order:
        if held + counts[item] <= wanted:
            chosen.add(str(names[item]))
            held += int(counts[item])
    if not chosen:
        chosen.add(str(names[int(counts.argmin())]))
    return np.array([group in chosen for group in groups], dtype=np.bool_)
