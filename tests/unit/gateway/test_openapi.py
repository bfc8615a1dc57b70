"""Requests that Schemathesis makes from the interface's own description: no answer differs from what it says."""

import time

import gateways
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with gateways.listening_gateway(tmp_path_factory.mktemp("data")) as (address, _):
        yield address


def test_probe(service):
    schema = schemathesis.openapi.from_url(f"{service}/openapi.json")
    problems = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        began = time.monotonic()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=10,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            report_multiple_bugs=True,
        )
        def run(case):
            try:
                case.call_and_validate()
            except (Exception, BaseExceptionGroup) as exc:
                problems.setdefault(operation.label, []).append(str(exc)[:1500])

        try:
            run()
        except (Exception, BaseExceptionGroup) as exc:
            problems.setdefault(operation.label, []).append(repr(exc)[:1500])
        print(operation.label, round(time.monotonic() - began, 2))
    for label, found in problems.items():
        print("=====", label, len(found))
        for text in list(dict.fromkeys(found))[:3]:
            print(text)
            print("---")
