"""The languages of the page: which one is shown, and that none lacks a text."""

import re
from itertools import chain

import gateways
import pytest
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.pofile import read_po
from checkout import ROOT

from deepfake_gateway.web.language import LANGUAGES, language

WEB = ROOT / "gateway/deepfake_gateway/web"
FOLDERS = (WEB, ROOT / "client/deepfake_client/result")
KEYWORDS = DEFAULT_KEYWORDS | {"mark": None, "say": None, "say_of": (1, 2)}
METHODS = [("**.py", "python"), ("templates/**.j2", "jinja2")]


def texts():
    options = {"templates/**.j2": {"silent": "false"}}
    found = (extract_from_dir(str(folder), METHODS, options, KEYWORDS) for folder in FOLDERS)
    return {message for _, _, message, _, _ in chain.from_iterable(found)}


@pytest.mark.parametrize("code", [code for code in LANGUAGES if code != "en"])
def test_a_language_has_every_text_and_no_other(code):
    with (WEB / f"catalogs/{code}.po").open("rb") as file:
        translated = {message.id: message for message in read_po(file, locale=code) if message.id}
    assert set(translated) == texts()
    for text, message in translated.items():
        assert all([message.string] if isinstance(message.string, str) else message.string), text
        assert not message.fuzzy
        for one in [text] if isinstance(text, str) else text:
            for words in [message.string] if isinstance(message.string, str) else message.string:
                assert set(re.findall(r"%\(\w+\)s", words)) <= set(re.findall(r"%\(\w+\)s", " ".join(text) + one))


@pytest.mark.parametrize(
    ("accepted", "shown"),
    [
        ("", "en"),
        ("de-AT,de;q=0.9,en;q=0.5", "de"),
        ("fr, de;q=0.3, en;q=0.8", "en"),
        ("de;q=0, en;q=x, *", "en"),
    ],
)
def test_the_browser_s_first_language_that_there_is(gateway, accepted, shown):
    page = gateway.get("/", headers={"Accept-Language": accepted})
    assert (page.headers["content-language"], f'<html lang="{shown}">' in page.text) == (shown, True)


def test_a_chosen_language_stays(tmp_path):
    with gateways.gateway(tmp_path / "data") as client:
        assert 'href="?name=x&amp;lang=de"' in client.get("/history?name=x").text
        assert client.get("/history?name=x&lang=de").headers["content-language"] == "de"
        assert client.get("/").headers["content-language"] == "de"
        assert client.get("/?lang=en").headers["content-language"] == "en"
        assert client.get("/?lang=xx").headers["content-language"] == "en"


def test_numbers_are_written_as_people_of_the_language_do():
    german, english = language("de"), language("en")
    assert (german.number(1234.5), english.number(1234.5)) == ("1.234,50", "1,234.50")
    assert (german.clock(59.96, tenths=True), english.clock(61.24, tenths=True)) == ("1:00,0", "1:01.2")
    assert german.say_of("%(number)s frame", "%(number)s frames", 1) == "1 Bild"


@pytest.mark.parametrize(
    ("seconds", "clock", "exact", "duration"),
    [
        (0.0, "0:00", "0:00.0", "0.0 s"),
        (59.96, "0:59", "1:00.0", "1 min 0 s"),
        (401.5, "6:41", "6:41.5", "6 min 42 s"),
        (3599.96, "59:59", "1:00:00.0", "1 h 0 min"),
        (3725.24, "1:02:05", "1:02:05.2", "1 h 2 min"),
        (36_061.0, "10:01:01", "10:01:01.0", "10 h 1 min"),
    ],
)
def test_times_have_hours_where_they_reach_them(seconds, clock, exact, duration):
    english = language("en")
    assert english.clock(seconds) == clock
    assert english.clock(seconds, tenths=True) == exact
    assert english.duration(seconds) == duration
    assert english.duration(3.4, 0) == "3 s"


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (5, "5 B"), (6929, "7 kB"), (2**20 - 1, "1.0 MB"), (41_999, "41 kB"), (7_718_488, "7.4 MB"),
        (2**30 - 1, "1 GB"), (5 * 2**29, "2.5 GB"),
    ],
)  # fmt: skip
def test_a_file_s_size_is_never_nothing(count, size):
    assert language("en").size(count) == size
