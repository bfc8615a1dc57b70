"""Times in a form that people read."""

from __future__ import annotations

from datetime import UTC, datetime


def clock(seconds: float, digits: int = 2) -> str:
    """Return a time in a file: in seconds, from a minute on with minutes and hours before them."""
    minutes, ticks = divmod(round(max(0.0, seconds) * 10**digits), 60 * 10**digits)
    rest = ticks / 10**digits
    if not minutes:
        return f"{rest:.{digits}f} s"
    hours, minutes = divmod(minutes, 60)
    second = f"{rest:0{digits + 3 if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02d}:{second}" if hours else f"{minutes}:{second}"


def stretch(first_s: float, last_s: float) -> str:
    """Return from when to when in a file something lasts; the unit stands once."""
    first, last = clock(first_s), clock(last_s)
    return f"{first.removesuffix(' s') if last.endswith(' s') else first} to {last}"


def duration(seconds: float) -> str:
    """Return how long something takes: seconds with two digits, from a minute on minutes and hours in full."""
    if round(seconds, 2) < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def day_and_time(moment: datetime) -> str:
    """Return a moment as day and time of day in UTC."""
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
