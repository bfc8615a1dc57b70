"""Requests that Schemathesis makes from the interface's own description: no answer differs from what it says."""

from concurrent.futures import ThreadPoolExecutor

import gateways
import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from deepfake_gateway.store.keys import Keys

ENDS = ("DELETE", "/cancel")
"""Operations after which what they are about is not what it was."""
ANSWER_S = 120
"""How long an answer may take: Schemathesis gives up after 10 s, which a machine with more to do can need."""


@pytest.fixture(scope="module")
def service(tmp_path_factory, clip):
    settings = {"explain_url": "http://127.0.0.1:1", "url_intake": True, "allowed_networks": ("127.0.0.0/8",)}
    with (
        gateways.listening_gateway(tmp_path_factory.mktemp("data"), **settings) as (address, _),
        httpx.Client(base_url=address, headers={"Prefer": "wait=60"}, timeout=ANSWER_S) as client,
    ):
        analysis = client.post("/v1/analyses", content=clip).json()
        explanation = client.post(f"{analysis['links']['self']}/explanations").json()
        yield (
            address,
            {
                "analysis_id": analysis["id"],
                "explanation_id": explanation["id"],
                "name": explanation["faces"][0]["name"],
                "batch_id": client.post("/v1/batches", files={"file": ("a.mp4", clip)}).json()["id"],
                "watch_id": client.post("/v1/watches", json={"url": "http://127.0.0.1/live.ts"}).json()["id"],
                "webhook_id": client.post("/v1/webhooks", json={"url": "http://127.0.0.1/"}).json()["id"],
            },
        )


def asking(operation, examples, known, headers=None, seen=None):
    """Return a function that asks for an operation in many ways, also about what is known, by names in its path.

    `seen` gets the statuses of the answers.
    """
    # That a file is no video, or that options exclude each other, a description of types cannot say.
    left_out = [positive_data_acceptance]
    if operation.path == "/v1/health/ready":  # 503 is its way to say no
        left_out.append(not_a_server_error)
    may_ask_for_known = not any(name in operation.label for name in ENDS)

    @hypothesis.given(case=operation.as_strategy(), is_known=st.booleans())
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def ask(case, is_known):
        if is_known and may_ask_for_known:
            case.path_parameters.update({name: known[name] for name in known.keys() & case.path_parameters.keys()})
        answer = case.call_and_validate(excluded_checks=left_out, headers=headers, timeout=ANSWER_S)
        if seen is not None:
            seen.add(answer.status_code)

    return ask


# What hangs is found by ANSWER_S; all the thousands of requests take as long as the machine has for them.
@pytest.mark.parametrize("examples", [4, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(4 * 3600)])])
def test_every_answer_is_as_described(service, examples):
    address, known = service
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", timeout=ANSWER_S)
    for result in schema.get_all_operations():
        asking(result.ok(), examples, known)()


def test_every_refusal_for_want_of_a_key_or_a_scope_is_as_described(tmp_path):
    with gateways.listening_gateway(tmp_path, requests_per_minute=0) as (address, queue):
        keys = Keys(queue.store.engine)
        texts = {scope: keys.create(scope, [scope])[1] for scope in ("read", "analyze")}
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json", timeout=ANSWER_S)
        for text, expected in ((None, {401}), (texts["read"], {200, 403, 404}), (texts["analyze"], {200, 404})):
            seen = set()
            headers = {} if text is None else {"Authorization": f"Bearer {text}"}
            for result in schema.get_all_operations():
                asking(result.ok(), 1, {}, headers, seen)()
            assert expected <= seen


def test_what_any_request_may_be_refused_for_is_described(gateway):
    for path, operations in gateway.get("/openapi.json").json()["paths"].items():
        if path.endswith("/health") or path.startswith("/v1/health/"):
            continue  # these say whether it lives
        for method, operation in operations.items():
            refusals = [(gateway.request(method, f"{path}?a=1&a=2"), 422)]
            if "requestBody" in operation:
                zipped = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
                refusals.append((gateway.request(method, path, content=b"{}", headers=zipped), 415))
                assert "408" in operation["responses"], "where it comes too slowly"
            for answer, status in refusals:
                assert (answer.status_code, path) == (status, path)
                assert list(operation["responses"][str(status)]["content"]) == [answer.headers["content-type"]]


def test_an_analysis_that_is_deleted_while_it_is_waited_for_is_404_as_described(gateway, clip):
    gateway.queue.slow = True
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.post, "/v1/analyses", content=clip, headers={"Prefer": "wait=60"})
        assert gateway.queue.working.wait(60)
        (item,) = gateway.get("/v1/analyses").json()["items"]
        gateway.desk.store.delete(item["id"])  # as DELETE does, but for the cancellation, which may be seen first
        answer = waiting.result()
    assert (answer.status_code, "it was deleted" in answer.json()["detail"]) == (404, True)
    described = gateway.get("/openapi.json").json()["paths"]["/v1/analyses"]["post"]["responses"]
    assert "404" in described
