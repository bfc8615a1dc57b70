"""Keys: who is let in, what they see, how much they may; and `deepfake gateway keys`."""

import json
import threading
import time

import gateways
import httpx
import pytest

from deepfake_client.cli.main import main
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.usage import add_usage
from deepfake_preprocess.errors import OptionError


@pytest.fixture
def keys(gateway):
    return Keys(gateway.desk.store.engine)


def bearer(keys, *scopes, **values):
    return {"Authorization": f"Bearer {keys.create('test', scopes or ['analyze'], **values)[1]}"}


def send(gateway, clip, headers, **fields):
    headers = {**headers, "Prefer": "wait=60"}
    return gateway.post("/v1/analyses", files={"file": ("clip.mp4", clip)}, data=fields, headers=headers)


def test_from_the_first_key_on_nobody_is_served_without_one(gateway, keys, clip):
    assert gateway.get("/v1/analyses").status_code == 200
    key, text = keys.create("test", ["analyze"])
    assert text not in str(gateway.desk.store.engine.connect().exec_driver_sql("SELECT * FROM keys").all())
    refused = gateway.get("/v1/analyses")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "send it as `Authorization: Bearer KEY`" in refused.json()["detail"]
    for wrong in (text[:-1], text[:-1] + ("0" if text[-1] != "0" else "1"), text.replace("dfk", "abc"), "x"):
        assert gateway.get("/v1/analyses", headers={"Authorization": f"Bearer {wrong}"}).status_code == 401
    for headers in ({"Authorization": f"Bearer {text}"}, {"X-Api-Key": text}):
        assert gateway.get("/v1/analyses", headers=headers).status_code == 200
    for path in ("/v1/health/live", "/v1/health/ready", "/health", "/docs", "/static/app.js", "/sign-in"):
        assert gateway.get(path).status_code in (200, 503), path
    assert keys.revoke(key.id)
    assert gateway.get("/v1/analyses", headers={"X-Api-Key": text}).status_code == 401
    assert gateway.get("/v1/analyses").status_code == 401  # no key is left, and it does not open again
    late = keys.create("late", ["analyze"], expires_at=time.time() - 1)[1]
    assert gateway.get("/v1/analyses", headers={"X-Api-Key": late}).status_code == 401


def test_every_route_but_the_named_ones_wants_a_key(gateway, keys):
    keys.create("test", ["analyze"])
    public = {
        "/health",
        "/api/v1/health",
        "/v1/health/live",
        "/v1/health/ready",
        "/docs",
        "/openapi.json",
        "/sign-in",
    }
    described = gateway.get("/openapi.json").json()
    schemes = described["components"]["securitySchemes"]
    assert (schemes["bearer"]["scheme"], schemes["apiKey"]["name"]) == ("bearer", "X-Api-Key")
    assert described["security"] == [{"bearer": []}, {"apiKey": []}, {}], "an open service asks for none"
    operations = {
        (path, method): operation for path, by_method in described["paths"].items()
        for method, operation in by_method.items()
    }  # fmt: skip
    assert {path for (path, _), operation in operations.items() if operation.get("security") == []} < public
    paths = set(operations)
    paths |= {("/", "get"), ("/", "post"), ("/history", "get"), ("/analyses/{id}", "get"), ("/metrics", "get")}
    for path, method in paths:
        status = gateway.request(method, path.replace("{", "").replace("}", "")).status_code
        assert (status == 401) == (path not in public), (path, method, status)


def test_scopes(gateway, keys, clip):
    reader, writer, admin = bearer(keys, "read"), bearer(keys, "analyze"), bearer(keys, "admin")
    monitor = bearer(keys, "metrics")
    refused = send(gateway, clip, reader)
    assert refused.status_code == 403
    assert "no scope `analyze`" in refused.json()["detail"]
    assert send(gateway, clip, writer).status_code == 200
    allowed = [gateway.get("/metrics", headers=one).status_code for one in (reader, writer, monitor, admin)]
    assert allowed == [403, 403, 200, 200]
    assert gateway.get("/v1/analyses", headers=monitor).status_code == 403


def test_a_tenant_sees_only_its_own(gateway, keys, clip):
    mine, colleague = bearer(keys, tenant="press"), bearer(keys, tenant="press")
    other, admin = bearer(keys), bearer(keys, "admin")
    key = {"Idempotency-Key": "one"}
    sent = send(gateway, clip, {**mine, **key}).json()
    batch = gateway.post("/v1/batches", files=[("file", ("a.mp4", clip))], headers=mine).json()
    links = [link for name, link in sent["links"].items() if name != "page"] + [batch["links"]["self"]]
    links += [f"/analyses/{sent['id']}", f"/v1/analyses/{sent['id']}/explanations"]
    for link in links:
        assert gateway.get(link, headers=other).status_code in (404, 405), link
    for headers in (colleague, admin):
        assert gateway.get(sent["links"]["self"], headers=headers).json()["id"] == sent["id"]
        assert gateway.get(batch["links"]["self"], headers=headers).json()["id"] == batch["id"]
    for path in ("cancel", "explanations"):
        assert gateway.post(f"/v1/analyses/{sent['id']}/{path}", headers=other).status_code == 404
    assert gateway.delete(f"/v1/analyses/{sent['id']}", headers=other).status_code == 404
    reader = bearer(keys, "read", tenant="press")
    for headers, status in ((other, 404), (reader, 403)):
        assert gateway.delete(batch["links"]["self"], headers=headers).status_code == status
        assert gateway.post(f"/batches/{batch['id']}/delete", headers=headers).status_code == status
    assert gateway.get(batch["links"]["self"], headers=mine).json()["items"][0]["analysis"]["id"]
    assert gateway.get("/v1/analyses", headers=other).json()["items"] == []
    assert sent["id"] not in gateway.get("/", headers=other).text
    assert sent["id"] not in gateway.get("/history", headers=other).text
    models = [gateways.SPEC.name in gateway.get("/history", headers=headers).text for headers in (mine, admin, other)]
    assert models == [True, True, False]
    for headers in (mine, admin):  # the batch's has another name, so it is one of its own
        assert len(gateway.get("/v1/analyses", headers=headers).json()["items"]) == 2
    # Neither the result nor the idempotency key of another tenant answers.
    runs = gateway.queue.runs
    theirs = send(gateway, clip, {**other, **key})
    assert theirs.json()["id"] != sent["id"]
    assert gateway.queue.runs == runs + 1
    assert send(gateway, clip, colleague).json()["id"] == sent["id"]
    assert send(gateway, clip, admin).json()["id"] not in (sent["id"], theirs.json()["id"])


def test_events_end_with_the_key(tmp_path, clip):
    with gateways.listening_gateway(tmp_path / "data") as (address, queue):
        keys = Keys(queue.store.engine)
        key, text = keys.create("test", ["analyze"])
        queue.hold.clear()
        with httpx.Client(base_url=address, headers={"X-Api-Key": text}) as client:
            links = client.post("/v1/analyses", content=clip).json()["links"]
            with client.stream("GET", links["events"]) as stream:
                lines = stream.iter_lines()
                assert "event: status" in (next(lines), next(lines))
                keys.revoke(key.id)
                assert "event: end" not in list(lines)


def test_seconds_of_video_per_day(gateway, keys, clip):
    headers = bearer(keys, seconds_per_day=1.5)
    assert [send(gateway, clip, headers, num_frames=number).status_code for number in (4, 5)] == [200, 200]
    refused = send(gateway, clip, headers, num_frames=6)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert (refused.headers["ratelimit-limit"], refused.headers["ratelimit-remaining"]) == ("600", "597"), "requests"
    assert "are used up" in refused.json()["detail"]
    assert send(gateway, clip, headers, num_frames=4).status_code == 200  # the earlier result costs nothing
    assert send(gateway, clip, bearer(keys), num_frames=6).status_code == 200


def test_what_waits_when_the_seconds_are_used_up_is_not_analyzed(gateway, keys, clip):
    key, text = keys.create("test", ["analyze"], seconds_per_day=10)
    gateway.headers["X-Api-Key"] = text
    gateway.queue.hold.clear()
    links = gateway.post("/v1/analyses?num_frames=3", content=clip).json()["links"]
    with gateway.desk.store.engine.begin() as connection:  # as by what ran before it
        add_usage(connection, key.id, seconds=10)
    gateway.queue.hold.set()
    gateway.get(links["events"])  # until it is over
    analysis = gateway.get(links["self"]).json()
    assert (analysis["status"], analysis["error"]["type"]) == ("failed", "QuotaError")
    assert analysis["error"]["message"].startswith("this key's 10 seconds of video for the day are used up")
    assert gateway.queue.runs == 0


def test_what_the_door_refuses_to_a_browser_is_a_page(tmp_path, clip):
    browser = {"Accept": "text/html"}
    with gateways.gateway(tmp_path / "data", requests_per_minute=3) as gateway:
        keys = Keys(gateway.desk.store.engine)
        scraper = keys.create("scraper", ["metrics"])[1]
        refused = gateway.post("/sign-in", data={"key": scraper}, headers=browser)
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
        assert "This key may not see results" in refused.text
        for path in ("/", f"/analyses/{'0' * 32}/again"):
            sent = gateway.post(path, files={"file": ("clip.mp4", clip)}, headers=browser)
            assert (sent.status_code, sent.headers["location"]) == (303, "/sign-in?next=%2F")
        assert gateway.post("/v1/analyses", files={"file": ("clip.mp4", clip)}, headers=browser).status_code == 401
        gateway.post("/sign-in", data={"key": keys.create("reader", ["read"])[1]}, headers=browser)
        answers = [gateway.get("/history", headers=browser) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert "<h1>" in answers[-1].text


def test_requests_per_minute_and_uploads_at_once(tmp_path, clip):
    with gateways.gateway(tmp_path / "data", requests_per_minute=4, uploads_at_once=1) as gateway:
        keys = Keys(gateway.desk.store.engine)
        headers = bearer(keys)
        first = gateway.get("/v1/analyses", headers=headers)
        assert (first.headers["ratelimit-limit"], first.headers["ratelimit-remaining"]) == ("4", "3")
        begun, go_on, answers = threading.Event(), threading.Event(), []

        def slow_body():
            yield clip[:1000]
            begun.set()
            go_on.wait()
            yield clip[1000:]

        thread = threading.Thread(
            target=lambda: answers.append(gateway.post("/v1/analyses", content=slow_body(), headers=headers))
        )
        thread.start()
        begun.wait()
        go_on.set()
        thread.join()
        assert answers[0].status_code == 202
        while (refused := gateway.get("/v1/analyses", headers=headers)).status_code == 200:
            pass
        assert refused.status_code == 429
        assert refused.headers["ratelimit-remaining"] == "0"
        assert int(refused.headers["retry-after"]) > 0
        assert gateway.get("/v1/analyses", headers=bearer(keys)).status_code == 200


def test_signing_in_on_the_page(gateway, keys, clip):
    text = keys.create("test", ["analyze"])[1]
    browser = {"Accept": "text/html"}
    asked = gateway.get("/history?label=FAKE", headers=browser)
    assert asked.headers["location"] == "/sign-in?next=%2Fhistory%3Flabel%3DFAKE"
    wrong = gateway.post("/sign-in", data={"key": "dfk_no"}, headers=browser)
    assert wrong.status_code == 401
    assert "mistyped, expired or revoked" in wrong.text
    for wanted, shown in (("/history?label=FAKE", "/history?label=FAKE"), ("//evil.example", "/"), ("/\\evil", "/")):
        signed = gateway.post("/sign-in", data={"key": f" {text} ", "next": wanted}, headers=browser)
        assert (signed.status_code, signed.headers["location"]) == (303, shown)
    cookie = signed.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert text not in cookie
    assert "Sign out" in gateway.get("/", headers=browser).text
    file = {"file": ("clip.mp4", clip)}
    own, foreign = {"Origin": "http://127.0.0.1"}, {"Origin": "http://evil.example"}
    for headers, status in ((own, 202), ({"Sec-Fetch-Site": "same-origin"}, 200), ({}, 403), (foreign, 403)):
        assert gateway.post("/v1/analyses", files=file, headers={**headers, "Prefer": ""}).status_code in (
            {status, 202} if status == 200 else {status}
        )
    assert gateway.post("/v1/analyses", files=file, headers={"Origin": "null"}).status_code == 403
    token = gateway.cookies["session"]
    assert gateway.post("/sign-out", headers=own).headers["location"] == "/sign-in"
    gateway.cookies.set("session", token, domain="127.0.0.1")
    assert gateway.get("/history", headers=browser).status_code == 303


def test_pages_of_a_named_site_send_a_key_and_no_cookies(tmp_path, clip):
    with gateways.gateway(
        tmp_path / "data", allowed_origins=["https://app.example"], requests_per_minute=3
    ) as client:
        text = client.app.state.keys.create("app", ["analyze"])[1]
        key, named = {"Authorization": f"Bearer {text}"}, {"Origin": "https://app.example"}
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,prefer"}
        for _ in range(5):  # a browser asks before each, without a key, and it counts for nothing
            before = client.options("/v1/analyses", headers={**named, **asked})
            assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, named["Origin"])
        assert client.options("/v1/analyses", headers={"Origin": "https://evil.example", **asked}).status_code == 400
        file = {"file": ("clip.mp4", clip)}
        sent = client.post("/v1/analyses", files=file, headers={**named, **key})
        assert sent.status_code == 202
        assert sent.headers["access-control-allow-origin"] == named["Origin"]
        assert "access-control-allow-credentials" not in sent.headers
        assert {"location", "retry-after"} <= set(sent.headers["access-control-expose-headers"].lower().split(", "))
        refused = client.post("/v1/analyses", files=file, headers=named)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, named["Origin"])
        with_cookie = client.post("/v1/analyses", files=file, headers={**named, **key, "Cookie": "session=x"})
        assert (with_cookie.status_code, "no credentials" in with_cookie.json()["detail"]) == (403, True)
        other = client.post("/v1/analyses", files=file, headers={**key, "Origin": "https://evil.example"})
        assert (other.status_code, other.headers.get("access-control-allow-origin")) == (403, None)
        statuses = [client.get("/v1/analyses", headers={**named, **key}).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]


def test_the_commands(tmp_path, capsys):
    place = ["--data-dir", str(tmp_path)]

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["gateway", "keys", *arguments, *place])
        return end.value.code, *capsys.readouterr()

    place[1] = str(tmp_path / "other")
    for action in (["list"], ["revoke", "dfk_1a2b3c4d"]):
        code, _, error = run(*action)
        assert (code, "holds no data of a gateway" in " ".join(error.split())) == (2, True)
    assert not (tmp_path / "other").exists()
    place[1] = str(tmp_path)
    code, text, advice = run("create", "--name", "press", "--expires", "90d", "--scope", "read")
    assert code == 0
    assert "only once" in advice
    assert f"keys revoke {text.split('_')[1]} --data-dir {tmp_path}" in advice
    assert run("list")[1].count("dfk_") == 1
    listed = json.loads(run("list", "--json")[1])
    assert (listed[0]["name"], listed[0]["scopes"], listed[0]["state"]) == ("press", ["read"], "valid")
    assert text.strip().split("_")[2] not in run("list", "--json")[1]
    key = text.strip()
    for wrong in (key[:-1], key + "0", f"{key[:12]}x", "x", ""):
        code, _, error = run("revoke", wrong)
        assert code == 2
        assert "does not name a key" in " ".join(error.split())
    assert run("revoke", key)[0] == 0
    code, _, error = run("revoke", text.strip())
    assert code == 2
    assert "there is no valid key" in " ".join(error.split())
    for wrong in (["--scope", "root"], ["--expires", "soon"], ["--tenant", "a b"]):
        assert run("create", "--name", "x", *wrong)[0] == 2


def test_other_machines_are_served_with_keys_or_by_a_word_only(tmp_path):
    settings = Settings.of(host="0.0.0.0", data_dir=tmp_path)
    with pytest.raises(OptionError, match="keys create"):
        settings.check_open(has_keys=False)
    settings.check_open(has_keys=True)
    Settings.of(host="0.0.0.0", allow_open=True).check_open(has_keys=False)
    Settings.of().check_open(has_keys=False)


def test_behind_a_proxy_with_tls_the_session_is_for_tls_only(tmp_path):
    with gateways.listening_gateway(tmp_path) as (address, queue):
        key = Keys(queue.store.engine).create("page", ["analyze"])[1]
        for scheme, is_secure in (("https", True), ("http", False)):
            answer = httpx.post(f"{address}/sign-in", data={"key": key}, headers={"X-Forwarded-Proto": scheme})
            assert ("; Secure" in answer.headers["set-cookie"]) is is_secure
