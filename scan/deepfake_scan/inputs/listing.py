"""From what a person names to inputs: folders, patterns, prefixes of buckets, manifests, files and addresses.

Nothing is held: a bucket of ten million objects is listed as its inputs are taken.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

from deepfake_preprocess.errors import MediaNotFoundError
from deepfake_preprocess.media.remote import is_url
from deepfake_preprocess.media.suffixes import MEDIA_SUFFIXES
from deepfake_scan.inputs.ids import ScanInput
from deepfake_scan.inputs.manifest import is_manifest, manifest_inputs
from deepfake_scan.storage import bucket_of, is_bucket, list_objects


def each_input(sources: Sequence[str], column: str | None = None) -> Iterator[ScanInput]:
    """Return an iterator of the inputs that `sources` stand for; `column` holds the addresses of manifests.

    Each source is looked at by this call, so that one that is missing is found before any work is done.

    Raises:
        MediaNotFoundError: a source does not exist, holds no media, or matches nothing.
        OptionError: a manifest cannot be read, or a bucket not be reached.
    """
    return itertools.chain.from_iterable([_checked(source, _inputs(source, column)) for source in sources])


def _checked(source: str, inputs: Iterator[ScanInput]) -> Iterable[ScanInput]:
    first = next(inputs, None)
    if first is None:
        raise MediaNotFoundError(f"{source}: there is no video or image; check the address")
    return itertools.chain([first], inputs)


def _inputs(source: str, column: str | None) -> Iterator[ScanInput]:
    if is_manifest(source):
        return manifest_inputs(source, column)
    if is_bucket(source):
        return _in_bucket(source)
    if is_url(source):
        return iter([ScanInput(source)])
    if os.path.isdir(source):  # noqa: PTH112 - `Path` takes an empty name for the current folder
        return _in_folder(os.path.abspath(source))  # noqa: PTH100 - links are kept as they are
    if not os.path.exists(source) and glob.has_magic(source):  # noqa: PTH110
        matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - the pattern may be absolute
        return (_of_file(os.path.abspath(match), os.stat(match)) for match in matches if os.path.isfile(match))  # noqa: PTH100,PTH113,PTH116
    try:
        return iter([_of_file(os.path.abspath(source), os.stat(source))])  # noqa: PTH100,PTH116
    except OSError as exc:
        raise MediaNotFoundError(f"there is no {source!r}; check the path") from exc


def _in_folder(folder: str) -> Iterator[ScanInput]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _in_folder(entry.path)
        elif entry.is_file() and _is_media(entry.name):
            yield _of_file(entry.path, entry.stat())


def _of_file(path: str, state: os.stat_result) -> ScanInput:
    return ScanInput(path, f"{state.st_size}:{state.st_mtime_ns}")


def _in_bucket(source: str) -> Iterator[ScanInput]:
    """Yield the objects below a prefix, or those that match a pattern; one that is named in full, whatever it is."""
    bucket = bucket_of(source)
    path = source.removeprefix(bucket).lstrip("/")
    named = not glob.has_magic(path) and _is_media(path)
    prefix = path if not glob.has_magic(path) else path[: next(i for i, c in enumerate(path) if c in "*?[")]
    # Object stores list whole path segments only.
    listed = prefix.rpartition("/")[0] if named or glob.has_magic(path) else prefix.rstrip("/")
    for entry in list_objects(f"{bucket}/{listed}"):
        wanted = entry.path == path if named else _is_media(entry.path)
        if glob.has_magic(path):
            wanted = fnmatch.fnmatchcase(entry.path, path) and _is_media(entry.path)
        if wanted:
            yield ScanInput(f"{bucket}/{entry.path}", f"{entry.size}:{entry.version}")
            if named:
                return


def _is_media(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES  # noqa: PTH122 - also of addresses
