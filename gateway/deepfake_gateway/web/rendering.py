"""Templates become pages: in the language of the request, with everything escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup, escape
from starlette.datastructures import URL

from deepfake_client.result.words import sentence
from deepfake_gateway.web.language import COOKIE, LANGUAGES, QUERY, Language, language, language_of
from deepfake_gateway.web.words import label_words, problem_words, state_words, watch_state_words

SYMBOLS: Final = {"FAKE": "\u25b2", "REAL": "\u25cf", "INCONCLUSIVE": "\u25a0"}
KINDS: Final = {"FAKE": "fake", "REAL": "real", "INCONCLUSIVE": "inc"}
YEAR_S: Final = 365 * 24 * 3600


def _coded(text: str) -> Markup:
    """Return a text of the API's description with its names set as code."""
    return Markup(re.sub(r"``?([^`]+)``?", r"<code>\1</code>", str(escape(text))))


@cache
def _environment(code: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deepfake_gateway.web"),
        extensions=["jinja2.ext.i18n"],
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    say = language(code)
    environment.install_gettext_translations(say.catalog, newstyle=True)  # type: ignore[attr-defined]
    environment.filters |= {
        "num": say.number,
        "whole": say.whole,
        "clock": say.clock,
        "when": say.when,
        "size": say.size,
        "iso": lambda seconds: datetime.fromtimestamp(seconds, UTC).isoformat(),
        "label": lambda label: label_words(say, label),
        "state": lambda status: state_words(say, status),
        "watch_state": lambda status: watch_state_words(say, status),
        "problem": lambda status: problem_words(say, status),
        "sentence": sentence,
        "coded": _coded,
    }
    environment.globals |= {"symbols": SYMBOLS, "kinds": KINDS, "languages": LANGUAGES, "language": code}
    return environment


def render(
    template: str,
    request: Request,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> HTMLResponse:
    """Return a page; a language that its address asks for is kept for the next ones."""
    say = language_of(request)
    template_values = {
        "path": request.url.path,
        "signed_in": getattr(request.state, "key", None) is not None,
        "switches": _switches(request, say),
        **values,
    }
    page = _environment(say.code).get_template(template).render(template_values)
    response = HTMLResponse(page, status, headers)
    response.headers.update(
        {
            "Content-Language": say.code,
            "Cache-Control": "no-store",
            "Vary": "Accept-Language, Cookie, HX-Request",
        }
    )
    if request.query_params.get(QUERY) == say.code:
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, say.code, max_age=YEAR_S, httponly=True, samesite="lax", secure=secure)
    return response


def _switches(request: Request, say: Language) -> list[tuple[str, str, str]]:
    """Return code, name and address of this page in each other language; of the start where a page was posted."""
    path, query = ("", request.url) if request.method == "GET" else ("/", URL())
    return [
        (code, name, f"{path}?{query.include_query_params(**{QUERY: code}).query}")
        for code, name in LANGUAGES.items()
        if code != say.code
    ]
