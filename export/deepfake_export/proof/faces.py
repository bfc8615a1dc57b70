"""The user's own faces for calibration and proof: crops with the file each came from, and labels where there are any.

What a file of the directory is used for:

- A **video** gives `FRAMES_PER_VIDEO` evenly spaced frames; every face in them is cut out as in service.
- An **image of exactly the model's input size** is a crop already, and is used as it is.
- Any **other image** is searched for faces, and each is cut out as in service.

So calibration sees what the server will see: our own detector, and the spec's margin and alignment.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepfake_export.proof.crops import CropSet, hash_files
from deepfake_export.proof.running import UInt8Array
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import MediaOpenError, OptionError
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import FaceDetector, faces_in
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.media.suffixes import VIDEO_SUFFIXES, media_of
from deepfake_preprocess.support.text import reason_of

FRAMES_PER_VIDEO = 16
"""Enough for the median of a verdict; neighboring frames of one clip add hardly any new range."""
MIN_CROPS = 16
"""Fewer do not show the range of a layer's activations; the export refuses them."""
RECOMMENDED_CROPS = 500
"""Below this a flip rate of 0.5% is less than three crops, and one unlucky crop decides."""
MAX_CROPS = 1024
LABEL_NAMES = {"real": 0, "fake": 1, "0": 0, "1": 1}


def hash_media(directory: str | Path) -> str:
    """Return the SHA-256 over relative path and content of all of `media_of` a directory."""
    return hash_files(media_of(directory), Path(directory))


def read_faces(directory: str | Path, spec: ModelSpec, *, labels: str | Path | None = None) -> CropSet:
    """Cut the faces out of the videos and images under a directory, by the rule of this module.

    `labels` is a CSV with ``path,label`` per line, the path relative to the directory, the label real, fake, 0 or 1;
    None takes folders called ``real`` and ``fake``. There are at most about `MAX_CROPS` crops; where there are more
    files, they are taken evenly from all of them.

    Raises:
        OptionError: no media, no face in them, fewer than `MIN_CROPS` crops, or a wrong CSV.
    """
    directory = Path(directory)
    paths = media_of(directory)
    label_of = _read_labels(Path(labels), directory) if labels is not None else None
    per_file = [FRAMES_PER_VIDEO if _is_video(path) else 1 for path in paths]
    step = max(1.0, sum(per_file) / MAX_CROPS)
    chosen = [paths[int(position * step)] for position in range(int(len(paths) / step))]

    # Loaded on use: it brings ONNX Runtime, and commands that need no faces come through this module too.
    from deepfake_preprocess.faces.mtcnn import MtcnnDetector

    detector = MtcnnDetector()
    crops: list[UInt8Array] = []
    sources: list[str] = []
    without: list[str] = []
    damaged: list[str] = []
    for path in chosen:
        name = path.relative_to(directory).as_posix()
        try:
            with open_media(path) as media:
                found = list(_crops_of(media, detector, spec))
        except MediaOpenError:
            damaged.append(name)
            continue
        crops += found
        sources += [name] * len(found)
        if not found:
            without.append(name)
    notes = _check_number(len(crops), len(chosen), directory, spec, without=without, damaged=damaged)
    return CropSet(
        np.stack(crops),
        f"{len(crops)} face crops from {len(set(sources))} files of the directory {directory.name!r}",
        tuple(sources),
        frozenset(name for name in sources if _is_video(Path(name))),
        _labels_of(sources, label_of),
        hash_files(paths, directory),
        notes,
    )


def _check_number(
    count: int, num_files: int, directory: Path, spec: ModelSpec, *, without: Sequence[str], damaged: Sequence[str]
) -> tuple[str, ...]:
    """Return what a reader should know about how few faces there are; `OptionError` where they are too few."""
    width, height = spec.input_size_wh
    hint = f"images that are crops already must be {width}x{height} px, the model's input size"
    if not count:
        raise OptionError(f"{directory}: no face was found in any of {num_files} files; {hint}")
    if count < MIN_CROPS:
        raise OptionError(
            f"{directory}: only {count} face crops were found in {num_files} files; at least {MIN_CROPS} are "
            f"needed and {RECOMMENDED_CROPS} recommended ({hint})"
        )
    notes = []
    if count < RECOMMENDED_CROPS:
        notes.append(f"{count} face crops are few for calibration and proof; {RECOMMENDED_CROPS} are recommended")
    if without:
        notes.append(f"no face was found in {len(without)} of {num_files} files ({', '.join(without[:3])}); {hint}")
    if damaged:
        notes.append(f"{len(damaged)} damaged files were left out ({', '.join(damaged[:3])})")
    return tuple(notes)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _crops_of(media: Media, detector: FaceDetector, spec: ModelSpec) -> Iterator[UInt8Array]:
    for frame in media.frames(Sampling(num_frames=FRAMES_PER_VIDEO)):
        if media.kind == "image" and (frame.width_px, frame.height_px) == spec.input_size_wh:
            yield frame.to_rgb()
            continue
        for face in faces_in(frame, detector):
            yield crop_face(frame, face, spec)


def _read_labels(path: Path, directory: Path) -> dict[str, int]:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise OptionError(
            f"{path}: the labels cannot be read ({reason_of(exc)}); write them as CSV, a line "
            "'path,real' or 'path,fake' for each file"
        ) from exc
    if rows and rows[0][1:2] == ["label"]:
        rows = rows[1:]
    found = {}
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[1].lower() not in LABEL_NAMES:
            raise OptionError(
                f"{path}: entry {number} is {','.join(row)!r}; allowed: path,real or path,fake (or 0, 1)"
            )
        if not (directory / row[0]).is_file():
            raise OptionError(f"{path}: entry {number} names {row[0]!r}, which is not in {directory}")
        found[Path(row[0]).as_posix()] = LABEL_NAMES[row[1].lower()]
    return found


def _labels_of(sources: list[str], label_of: dict[str, int] | None) -> npt.NDArray[np.int64] | None:
    """Return one label per crop; None where one is missing, or where there is one class only."""
    found = []
    for source in sources:
        if label_of is not None:
            label = label_of.get(source)
        else:
            folders = [part.lower() for part in Path(source).parts[:-1] if part.lower() in ("real", "fake")]
            label = LABEL_NAMES[folders[-1]] if folders else None
        if label is None:
            return None
        found.append(label)
    return np.array(found, dtype=np.int64) if len(set(found)) == 2 else None
