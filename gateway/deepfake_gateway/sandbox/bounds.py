"""What a medium may be at most: told from its header, before its frames are decoded, and while they are."""

from __future__ import annotations

from deepfake_gateway.sandbox.limits import Limits
from deepfake_preprocess.errors import MediaLimitError
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.sampling import Sampling


def check_media(media: Media, sampling: Sampling, limits: Limits) -> None:
    """Refuse a medium that is larger or longer than it may be, or of which too many frames are asked for.

    A length that is not stated is bounded by `check_frames`, as far as frames are looked at.

    Raises:
        MediaLimitError: it is beyond a bound; the message names what was sent, the bound, and what to send instead.
    """
    pixels = media.width_px * media.height_px
    if pixels > limits.max_pixels:
        raise MediaLimitError(
            f"{media.name} has {media.width_px}x{media.height_px} pixels, and at most {limits.max_pixels} are "
            "accepted; send it scaled down"
        )
    if media.duration_s is None:
        return
    if media.duration_s > limits.max_duration_s:
        raise MediaLimitError(
            f"{media.name} is {media.duration_s:.0f} s long, and at most {limits.max_duration_s:g} s are accepted; "
            "send a shorter part of it"
        )
    if sampling.fps is not None:
        rate = min(sampling.fps, media.frame_rate or sampling.fps)
        check_frames(media.name, int(rate * media.duration_s), limits)


def check_frames(name: str, num_frames: int, limits: Limits) -> None:
    """Raise MediaLimitError for more frames than may be looked at."""
    if num_frames > limits.max_frames:
        raise MediaLimitError(
            f"{name} would be looked at in {num_frames} frames or more, and at most {limits.max_frames} are; give a "
            "lower `fps`, or send a shorter part of it"
        )
