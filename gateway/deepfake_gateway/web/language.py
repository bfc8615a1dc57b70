"""The language of a page: its texts, numbers and times.

Texts stand in English where they are used. Each other language is one file in `catalogs`, in gettext's form, which is
read as it lies there: nothing is compiled, and a text without a translation is shown in English.
"""

from __future__ import annotations

import gettext
import io
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, Final

from babel import Locale
from babel.core import negotiate_locale
from babel.dates import format_datetime
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal
from fastapi import Request

LANGUAGES: Final = {"en": "English", "de": "Deutsch"}
"""By their codes, named in themselves; the first is the one of the texts."""
DEFAULT: Final = "en"
COOKIE: Final = "language"
QUERY: Final = "lang"


class Language:
    """One language that pages are shown in."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.locale = Locale.parse(code)
        self.catalog = _catalog(code)

    def say(self, message: str, **values: Any) -> str:
        """Return a text in this language, with values at their names; a percent sign is doubled in it."""
        return self.catalog.gettext(message) % values

    def say_of(self, one: str, several: str, number: int, **values: Any) -> str:
        """Return the text for a number of things; ``%(number)s`` in it is the number."""
        return self.catalog.ngettext(one, several, number) % {"number": self.whole(number), **values}

    def number(self, value: float, digits: int = 2) -> str:
        """Return a number with so many digits behind the point."""
        return format_decimal(value, format="#,##0." + "0" * digits if digits else "#,##0", locale=self.locale)

    def whole(self, value: int) -> str:
        """Return a number of things."""
        return self.number(value, 0)

    def when(self, seconds: float) -> str:
        """Return a time, in seconds since 1970, as day and time of day in UTC."""
        return f"{format_datetime(datetime.fromtimestamp(seconds, UTC), 'medium', locale=self.locale)} UTC"

    def size(self, count: int) -> str:
        """Return a number of bytes in the unit that files of this size are told in."""
        if count < 1000:
            return f"{count} B"
        if count < 999.5 * 2**10:
            return f"{self.whole(round(count / 2**10))} kB"
        if count < 999.95 * 2**20:
            return f"{self.number(count / 2**20, 1)} MB"
        return f"{format_decimal(count / 2**30, format='0.#', locale=self.locale)} GB"

    def clock(self, seconds: float, *, tenths: bool = False) -> str:
        """Return a time in a file as minutes and seconds, from an hour on with hours."""
        ticks = round(10 * max(0.0, seconds)) if tenths else 10 * int(max(0.0, seconds))
        minutes, rest = divmod(ticks, 600)
        second = format_decimal(rest / 10, format="00.0" if tenths else "00", locale=self.locale)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{second}" if hours else f"{minutes}:{second}"

    def duration(self, seconds: float, digits: int = 1) -> str:
        """Return how long something takes: seconds with so many digits behind the point, or minutes and hours."""
        if round(seconds, digits) < 60:
            return f"{self.number(seconds, digits)} s"
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _catalog(code: str) -> gettext.NullTranslations:
    if code == DEFAULT:
        return gettext.NullTranslations()
    text = (resources.files("deepfake_gateway.web") / "catalogs" / f"{code}.po").read_bytes()
    compiled = io.BytesIO()
    write_mo(compiled, read_po(io.BytesIO(text), locale=code))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


language = cache(Language)
"""Returns the language of a code of `LANGUAGES`; read once."""


def language_of(request: Request) -> Language:
    """Return the language that was chosen on the page, else the first that the browser asks for and there is."""
    for chosen in (request.query_params.get(QUERY), request.cookies.get(COOKIE)):
        if chosen in LANGUAGES:
            return language(chosen)
    wanted = _accepted(request.headers.get("accept-language", ""))
    found = negotiate_locale(wanted, list(LANGUAGES), sep="-")
    return language(found or DEFAULT)


def _accepted(header: str) -> list[str]:
    """Return what an Accept-Language header names, the dearest first (RFC 9110, 12.5.4)."""
    weighed = []
    for part in header.split(",")[:20]:
        name, _, quality = part.partition(";")
        try:
            weight = float(quality.strip().removeprefix("q=") or 1)
        except ValueError:
            weight = 0.0
        if weight > 0:
            weighed.append((-weight, name.strip()))
    return [name for _, name in sorted(weighed, key=lambda item: item[0])]
