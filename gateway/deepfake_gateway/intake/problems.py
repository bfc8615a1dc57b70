"""`Problem`: a request that is refused, and its answer as problem+json (RFC 9457)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from deepfake_gateway.store.analysis import Analysis, Filters, Status

PROBLEM_TYPE: Final = "application/problem+json"


class ProblemDocument(BaseModel):
    """Why a request was refused."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="one sentence: what was received and what to do")


class Problem(Exception):  # noqa: N818 - RFC 9457 calls it so
    """A request that is refused with a status; `detail` says in one sentence what to do.

    `reason` is what it is counted under: the setting that bounds it, or in short what was wrong.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, *, reason: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})
        self.reason = reason or HTTPStatus(status).name.lower()

    @property
    def title(self) -> str:
        """The status in words."""
        return HTTPStatus(self.status).phrase

    def document(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return ProblemDocument(title=self.title, status=self.status, detail=self.detail).model_dump()


def repeated(where: str, name: str) -> Problem:
    """Return the refusal of a request that says the same thing twice: which one is meant, nobody can know."""
    return Problem(422, f"{where} has `{name[:80]}` more than once; give it once")


def without_verdict(analysis: Analysis) -> Problem:
    """Return the refusal of what is made of a verdict, for an analysis that has none yet, or will have none."""
    status = analysis.status
    state, advice = f"is {status.value}", "ask again once it is done"
    if status is Status.FAILED:
        state, advice = "failed", "its `error` says why"
    elif status is Status.CANCELED:
        state, advice = "was canceled", "send the file again"
    return Problem(409, f"the analysis {state} and has no verdict; {advice}")


def without_medium() -> Problem:
    """Return the refusal of what is made of a medium, for an analysis whose medium was removed."""
    return Problem(404, "the medium of this analysis was removed; send the file again")


def check_span(filters: Filters) -> None:
    """Raise Problem 422 for a list whose time ends before it begins: nothing is ever in it."""
    if filters.since is not None and filters.until is not None and filters.since > filters.until:
        raise Problem(422, "`since` is later than `until`; give the earlier one as `since`")


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that is there more than once; None where all differ."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def json_of(body: bytes | str) -> Any:
    """Return the data of a JSON text; ValueError where it is none, Problem 422 where an object repeats a name."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if (name := first_repeated(name for name, _ in pairs)) is not None:
            raise repeated("the JSON", name)
        return dict(pairs)

    return json.loads(body, object_pairs_hook=once)


def problem_answer(problem: Problem) -> JSONResponse:
    """Return the answer to a program."""
    return JSONResponse(problem.document(), problem.status, problem.headers, media_type=PROBLEM_TYPE)


OF_BODIES: Final = (400, 408, 413, 415)
"""How a route that takes a body may refuse: broken, too slow, too large, compressed."""


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return how a route may refuse, for OpenAPI: besides what any may, such as a query that says a thing twice."""
    schema = ProblemDocument.model_json_schema()
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {PROBLEM_TYPE: {"schema": schema}}}
        for status in sorted({*statuses, 401, 403, 422, 429, 503})
    }
