"""Labeled clips, who is in them and where they come from; and their split into two parts that share neither.

A threshold that was chosen on the clips that it is reported for flatters. It flatters as well where the same person,
or the same camera and compression, is on both sides.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.suffixes import media_of
from deepfake_preprocess.support.text import reason_of
from deepfake_training.data.labels import LabelName

SEPARATOR = ";"
"""Between several people of one clip; a face swap shows two."""


@dataclass(frozen=True, slots=True)
class LabeledFile:
    """A file, its label, and what it must not share with clips of the other part.

    Attributes:
        path: the file.
        label: ``real`` or ``fake``.
        source: what it comes from, such as a data set or a camera; may be empty.
        people: who is in it; may be empty.
    """

    path: Path
    label: LabelName
    source: str = ""
    people: tuple[str, ...] = ()


def labeled_files(real: Iterable[str | Path], fake: Iterable[str | Path]) -> list[LabeledFile]:
    """Return all files with their labels; a folder stands for the images and videos in it.

    The source of a file is the name of its folder.

    Raises:
        OptionError: nothing was named, a folder holds no media, or a file has both labels.
    """
    labeled: tuple[tuple[Iterable[str | Path], LabelName], ...] = ((real, "real"), (fake, "fake"))
    found = [
        LabeledFile(file, label, file.parent.name)
        for places, label in labeled
        for place in map(Path, places)
        for file in ([place] if place.is_file() else media_of(place))
    ]
    if not found:
        raise OptionError("there is nothing to evaluate; name files or folders with `real` and `fake`")
    reals, fakes = ({file.path for file in found if file.label == label} for label in get_args(LabelName))
    if both := reals & fakes:
        raise OptionError(f"{min(both)} is named as real and as `fake`; a file has one label")
    return found


def read_table(table: str | Path) -> list[LabeledFile]:
    """Return the clips of a CSV table with the columns ``path`` (relative to it) and ``label``.

    ``source`` and ``people`` (`SEPARATOR` between several) may be there too; without a source it is the folder.

    Raises:
        OptionError: the table cannot be read, or a row is wrong; the message names it.
    """
    table = Path(table)
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise OptionError(
            f"{table} cannot be read as CSV ({reason_of(exc)}); give it the columns path and label"
        ) from exc
    clips = []
    for number, row in enumerate(rows, start=2):
        name, label = (row.get("path") or "").strip(), (row.get("label") or "").strip().lower()
        path = table.parent / name
        if not name or label not in get_args(LabelName):
            raise OptionError(
                f"line {number} of {table} has the path {name!r} and the label {label!r}; allowed: a file, and "
                f"{' or '.join(get_args(LabelName))}"
            )
        if not path.is_file():
            raise OptionError(f"line {number} of {table} names {name!r}, and there is no such file beside the table")
        people = tuple(sorted({who.strip() for who in (row.get("people") or "").split(SEPARATOR)} - {""}))
        source = (row.get("source") or "").strip() or path.parent.name
        clips.append(LabeledFile(path, cast(LabelName, label), source, people))
    if not clips:
        raise OptionError(f"{table} names no clip; give it one row for each, with the columns path and label")
    return clips


def split_files(clips: Sequence[LabeledFile], share: float) -> tuple[list[LabeledFile], list[LabeledFile]]:
    """Return about `share` of the clips, to choose on, and the others, to report; no person or source is in both.

    Clips that share one, directly or by way of others, stay together; a source that is called as the label is none.
    The largest such groups are placed first, each where most clips of its labels are missing. The same clips give the
    same parts.

    Raises:
        OptionError: the share is not in (0, 1), or the clips cannot be split so that both parts have both labels.
    """
    if not 0 < share < 1:
        raise OptionError(f"`split` is {share!r}; allowed: a share strictly between 0 and 1")
    parts: tuple[list[LabeledFile], list[LabeledFile]] = ([], [])
    wanted = [{label: part * _count(clips, label) for label in get_args(LabelName)} for part in (share, 1 - share)]
    groups = _groups(clips)
    for group in sorted(groups, key=lambda group: (-len(group), str(group[0].path))):

        def missing(side: int, group: Sequence[LabeledFile] = group) -> float:
            """Return how far the labels of this group are from what a side shall have, as a share of that."""
            return sum(
                _count(group, label) * (1 - _count(parts[side], label) / max(total, 1e-9))
                for label, total in wanted[side].items()
            )

        parts[0 if missing(0) > missing(1) else 1].extend(group)
    for part, name in zip(parts, ("choose on", "report"), strict=True):
        for label in get_args(LabelName):
            if not _count(part, label):
                raise OptionError(
                    f"the {len(clips)} clips are of {len(groups)} groups that share no person and no source, and no "
                    f"{label} one is left to {name}; add clips of other people and sources, or leave out `split`"
                )
    return parts


def _count(clips: Iterable[LabeledFile], label: str) -> int:
    return sum(clip.label == label for clip in clips)


def _groups(clips: Sequence[LabeledFile]) -> list[list[LabeledFile]]:
    """Return the clips in groups that share no person and no source."""
    groups: list[tuple[set[tuple[str, str]], list[LabeledFile]]] = []
    for clip in clips:
        keys = {("person", who) for who in clip.people}
        if clip.source not in ("", clip.label):  # a folder called "real" says nothing more
            keys.add(("source", clip.source))
        members = [clip]
        apart = []
        for known, others in groups:
            if known & keys:
                keys |= known
                members = [*others, *members]
            else:
                apart.append((known, others))
        groups = [*apart, (keys, members)]
    return [members for _, members in groups]
