"""The clips a benchmark is given on the command line: files, folders and patterns, each opened before the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepfake_client.sources.inputs import expand
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.remote import is_url


def find_clips(sources: Sequence[str]) -> list[Path]:
    """Return the files that `sources` stand for, each checked to open as a video.

    Args:
        sources: files, directories and glob patterns, as `deepfake analyze` takes them.

    Raises:
        MediaNotFoundError: there is no such file, no media in a directory, or nothing that matches.
        MediaOpenError: a file is not media.
        OptionError: it is an image or an address.
    """
    clips = []
    for name in expand(sources):
        if is_url(name):
            raise OptionError(
                f"{name} is an address, and a network is not what is measured; fetch it and give the file"
            )
        with open_media(name, name=name) as media:
            if media.kind != "video":
                raise OptionError(f"{name} is an image; benchmarks of clips take videos")
        clips.append(Path(name))
    return clips
