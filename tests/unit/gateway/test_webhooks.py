"""Webhooks: signed messages to a real receiver, tried again, logged, and never sent inside."""

import asyncio
import json
import secrets
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gateways
import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook, WebhookVerificationError

from deepfake_client.cli.main import main
from deepfake_gateway.addresses import Addresses
from deepfake_gateway.api.webhooks import MOST
from deepfake_gateway.jobs import delivering
from deepfake_gateway.jobs.delivering import AT_ONCE, Messages, deliver_all, signed
from deepfake_gateway.store.analysis import Analysis, Status
from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.schema import DELIVERIES

LOOPBACK = ["127.0.0.0/8"]
HERE = Addresses.of(LOOPBACK)


@pytest.fixture
def gateway(tmp_path):
    with gateways.gateway(tmp_path / "data", allowed_networks=LOOPBACK) as client:
        yield client


@pytest.fixture
def receiver():
    """A server that keeps what it gets, and answers with the statuses that it is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            server.got.append((dict(self.headers), body))
            server.has_come.set()
            self.send_response(server.statuses.pop(0) if server.statuses else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.statuses, server.has_come = [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def deliver(gateway, addresses=HERE):
    async def due():
        messages = Messages(gateway.desk.webhooks, addresses)
        begun = await messages.begin_due()
        while messages.under_way:
            await messages.some_end(1)
        return begun

    return asyncio.run(due())


def send(gateway, clip, **headers):
    answer = gateway.post("/v1/analyses", content=clip, headers={"Prefer": "wait=60", **headers})
    assert answer.json()["status"] == "done"
    return answer.json()


def logged(gateway, webhook):
    return gateway.get(f"/v1/webhooks/{webhook['id']}/deliveries").json()["items"]


def test_a_message_is_signed_and_tried_again_until_it_is_taken(gateway, clip, receiver, tmp_path):
    made = gateway.post("/v1/webhooks", json={"url": receiver.url})
    assert made.status_code == 201
    webhook = made.json()
    assert gateway.get("/v1/webhooks").json()["items"][0]["secret"] is None
    analysis = send(gateway, clip)
    receiver.statuses = [500, 307]
    for attempts in (1, 2):
        assert deliver(gateway) == 1
        assert deliver(gateway) == 0  # not before its time
        entry = logged(gateway, webhook)[0]
        assert (entry["state"], entry["attempts"]) == ("pending", attempts)
        with gateway.desk.store.engine.begin() as connection:
            assert connection.execute(sa.select(DELIVERIES.c.next_try_at)).scalar_one() > time.time()
            connection.execute(DELIVERIES.update().values(next_try_at=time.time()))
    assert deliver(gateway) == 1
    entry = logged(gateway, webhook)[0]
    assert (entry["state"], entry["attempts"], entry["outcome"]) == ("delivered", 3, "answered 204")
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    for headers, body in receiver.got:
        message = Webhook(webhook["secret"]).verify(body, headers)
        assert (message["type"], message["data"]["id"]) == ("analysis.done", analysis["id"])
        assert message["data"]["label"] == analysis["verdict"]["label"]
        with pytest.raises(WebhookVerificationError):
            Webhook(webhook["secret"]).verify(body.replace(b"done", b"gone"), headers)

    with pytest.raises(SystemExit) as end:
        main(["gateway", "webhooks", "redeliver", entry["id"], "--data-dir", str(tmp_path / "data")])
    assert end.value.code == 0
    assert deliver(gateway) == 1
    assert receiver.got[-1][1] == receiver.got[0][1]
    with pytest.raises(SystemExit) as end:
        main(["gateway", "webhooks", "redeliver", "none", "--data-dir", str(tmp_path / "data")])
    assert end.value.code == 2
    assert gateway.delete(f"/v1/webhooks/{webhook['id']}").status_code == 204
    assert gateway.get(f"/v1/webhooks/{webhook['id']}/deliveries").status_code == 404


def test_nothing_is_sent_inside_and_a_receiver_that_wants_no_more_is_left_alone(gateway, clip, receiver):
    webhook = gateway.post("/v1/webhooks", json={"url": receiver.url}).json()
    by_name = gateway.post("/v1/webhooks", json={"url": receiver.url.replace("127.0.0.1", "localhost")}).json()
    send(gateway, clip)
    assert deliver(gateway, Addresses()) == 2
    assert receiver.got == []
    for one in (webhook, by_name):
        assert "is not a public address" in logged(gateway, one)[0]["outcome"]
    for wrong in ("file:///etc/passwd", "ftp://host/", "no address", "http://user:pass@host/"):
        assert gateway.post("/v1/webhooks", json={"url": wrong}).status_code == 422, wrong
    with gateway.desk.store.engine.begin() as connection:
        connection.execute(DELIVERIES.update().values(next_try_at=time.time()))
    receiver.statuses = [410, 410]
    assert deliver(gateway) == 2
    assert [logged(gateway, one)[0]["state"] for one in (webhook, by_name)] == ["failed", "failed"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "10.0.0.7", "169.254.169.254", "0.0.0.0", "[::1]", "[::ffff:10.0.0.1]"],
)
def test_a_private_address_is_refused_at_once_in_the_words_of_other_addresses(tmp_path, host):
    with gateways.gateway(tmp_path / "data", url_intake=True) as gateway:
        answers = [gateway.post(f"/v1/{kind}", json={"url": f"http://{host}/"}) for kind in ("webhooks", "watches")]
        assert [answer.status_code for answer in answers] == [422, 422]
        assert (
            "is not a public address; whoever runs this service can allow its network" in answers[0].json()["detail"]
        )
        assert answers[0].json() == answers[1].json()
        assert gateway.get("/v1/webhooks").json()["items"] == []
        for public in ("93.184.215.14", "[2606:4700::1111]", "no-such-name.example"):
            assert gateway.post("/v1/webhooks", json={"url": f"http://{public}/"}).status_code == 201


def test_a_tenant_s_webhooks_are_told_of_its_own_analyses_only(gateway, clip, receiver):
    keys = Keys(gateway.desk.store.engine)
    mine, other = ({"X-Api-Key": keys.create("test", ["analyze"])[1]} for _ in range(2))
    webhook = gateway.post("/v1/webhooks", json={"url": receiver.url}, headers=mine).json()
    path = f"/v1/webhooks/{webhook['id']}"
    assert gateway.get("/v1/webhooks", headers=other).json()["items"] == []
    assert gateway.get(f"{path}/deliveries", headers=other).status_code == 404
    assert gateway.delete(path, headers=other).status_code == 404
    send(gateway, clip, **other)
    sent = send(gateway, clip, **mine)
    found = gateway.get(f"{path}/deliveries", headers=mine).json()["items"]
    assert len(found) == 1
    claims = []
    threads = [threading.Thread(target=lambda: claims.append(gateway.desk.webhooks.claim(8, {}))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(map(len, claims)) == 1  # whichever of four workers got it
    assert json.loads(next(filter(None, claims))[0][1].body)["data"]["id"] == sent["id"]


def test_a_message_goes_with_the_analysis_that_it_tells_of(gateway, receiver, clip):
    webhook = gateway.post("/v1/webhooks", json={"url": receiver.url}).json()
    kept, gone = send(gateway, clip), send(gateway, clip + b"\0")
    assert len(logged(gateway, webhook)) == 2
    assert gateway.delete(f"/v1/analyses/{gone['id']}").status_code == 204
    assert deliver(gateway) == 1
    assert [json.loads(body)["data"]["id"] for _, body in receiver.got] == [kept["id"]]
    assert len(logged(gateway, webhook)) == 1


def due(gateway, url, count=1):
    """Record a webhook of this address, whatever it is, and messages to it; returns its id."""
    webhook = gateway.desk.webhooks.add(url, "")
    told = Analysis(
        id=secrets.token_hex(16), created_at=1.0, status=Status.DONE, priority=1, file_name="clip.mp4",
        media_type="video/mp4", size_bytes=1, sha256="ab" * 32, options={},
    )  # fmt: skip
    gateway.desk.store.add(told, lambda _: None)
    with gateway.desk.store.engine.begin() as connection:
        rows = [
            {"id": f"{webhook.id[:8]}{number}", "webhook_id": webhook.id, "analysis_id": told.id,
             "created_at": 1.0, "body": "{}", "attempts": 0, "next_try_at": 1.0}
            for number in range(count)
        ]  # fmt: skip
        connection.execute(DELIVERIES.insert(), rows)
    return webhook.id


def states(gateway, webhook_id):
    return [entry.state for entry in gateway.desk.webhooks.deliveries(webhook_id)]


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".example", ".example"])
def test_a_host_that_is_no_name_is_refused_and_keeps_no_other_message_from_being_sent(gateway, receiver, host):
    answer = gateway.post("/v1/webhooks", json={"url": f"http://{host}/hook"})
    assert (answer.status_code, "is not an address" in answer.json()["detail"]) == (422, True)
    wrong, right = due(gateway, f"http://{host}/hook"), due(gateway, receiver.url)
    assert deliver(gateway) == 2
    assert states(gateway, right) == ["delivered"]
    assert "is not an address" in gateway.desk.webhooks.deliveries(wrong)[0].outcome


def test_a_fault_in_one_message_keeps_no_other_from_being_sent(gateway, receiver, monkeypatch):
    wrong, right = due(gateway, receiver.url), due(gateway, receiver.url)

    def failing(secret, delivery):
        if delivery.webhook_id == wrong:
            raise RuntimeError("a fault")
        return signed(secret, delivery)

    monkeypatch.setattr(delivering, "signed", failing)
    assert deliver(gateway) == 2
    assert states(gateway, right) == ["delivered"]
    assert states(gateway, wrong) == ["pending"]
    assert gateway.desk.webhooks.deliveries(wrong)[0].outcome == "the gateway failed (RuntimeError)"


def test_a_receiver_that_gives_no_answer_holds_up_no_other(gateway, receiver):
    async def has_come():
        task = asyncio.create_task(deliver_all(gateway.desk.webhooks, HERE))
        try:
            return await asyncio.to_thread(receiver.has_come.wait, 15)  # sooner than the silent one is given up
        finally:
            task.cancel()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        held = due(gateway, f"http://127.0.0.1:{silent.getsockname()[1]}/", AT_ONCE + 1)
        due(gateway, receiver.url)
        assert asyncio.run(has_come())
    assert set(states(gateway, held)) == {"pending"}


def test_an_administrator_may_add_a_webhook_however_many_the_tenants_have(gateway):
    keys = Keys(gateway.desk.store.engine)
    tenants = [{"X-Api-Key": keys.create("test", ["analyze"])[1]} for _ in range(2)]
    admin = {"X-Api-Key": keys.create("test", ["admin"])[1]}
    for headers in tenants:
        for _ in range(MOST):
            assert gateway.post("/v1/webhooks", json={"url": "http://127.0.0.1/"}, headers=headers).status_code == 201
        assert gateway.post("/v1/webhooks", json={"url": "http://127.0.0.1/"}, headers=headers).status_code == 409
    assert gateway.post("/v1/webhooks", json={"url": "http://127.0.0.1/"}, headers=admin).status_code == 201
