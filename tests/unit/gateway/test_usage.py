"""``/v1/usage``: what each key sent and got, by the day; who sees which keys."""

from datetime import UTC, datetime, timedelta

import pytest

from deepfake_gateway.api.documents import UsageDocument
from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.schema import DAILY_USAGE

NONE = {"sent": 0, "done": 0, "failed": 0, "canceled": 0, "video_seconds": 0, "bytes": 0}


def used(gateway, headers=None, **days):
    answer = gateway.get("/v1/usage", params=days, headers=headers).json()
    assert UsageDocument.model_validate(answer).model_dump(mode="json", by_alias=True) == answer
    return answer


def send(gateway, content, headers=None):
    return gateway.post("/v1/analyses", content=content, headers={"Prefer": "wait=60", **(headers or {})}).json()


def test_it_is_counted_by_key_and_each_sees_its_own(gateway, clip):
    send(gateway, b"no medium")
    keys = Keys(gateway.desk.store.engine)
    mine, colleague, other, admin = (
        {"X-Api-Key": keys.create(name, scopes, tenant=tenant)[1]}
        for name, scopes, tenant in (
            ("mine", ["analyze"], "press"), ("colleague", ["read"], "press"), ("other", ["analyze"], None),
            ("admin", ["admin"], None),
        )
    )  # fmt: skip
    send(gateway, clip, mine)
    assert send(gateway, clip, mine)["status"] == "done"  # the earlier result
    gateway.queue.slow = True
    waiting = gateway.post("/v1/analyses", content=b"slow", headers=other).json()
    gateway.queue.working.wait()
    gateway.post(f"{waiting['links']['self']}/cancel", headers=other)
    gateway.queue.close()
    own = {**NONE, "sent": 1, "done": 1, "video_seconds": 1.0, "bytes": len(clip)}
    for headers in (mine, colleague):
        answer = used(gateway, headers)
        assert answer["total"] == own
        ((item),) = answer["items"]
        assert item == {**own, **{name: item[name] for name in ("day", "key", "name", "tenant")}}
        assert (item["name"], item["tenant"]) == ("mine", "press")
        assert mine["X-Api-Key"].startswith(item["key"])
    assert used(gateway, other)["total"] == {**NONE, "sent": 1, "canceled": 1, "bytes": 4}
    everything = used(gateway, admin)
    assert everything["total"] == {
        "sent": 3, "done": 1, "failed": 1, "canceled": 1, "video_seconds": 1.0, "bytes": len(clip) + 13,
    }  # fmt: skip
    assert {item["name"] for item in everything["items"]} == {None, "mine", "other"}


def test_days_are_chosen_and_the_default_is_the_last_thirty(gateway):
    today = datetime.now(UTC).date()
    with gateway.desk.store.engine.begin() as connection:
        for age in (0, 1, 29, 30):
            day = (today - timedelta(days=age)).isoformat()
            connection.execute(DAILY_USAGE.insert().values(key_id="", day=day, seconds=1, sent=1))
    answer = used(gateway)
    assert (answer["from"], answer["to"]) == ((today - timedelta(days=29)).isoformat(), today.isoformat())
    assert answer["total"]["sent"] == 3
    assert answer["items"][0]["day"] == today.isoformat()
    yesterday = today - timedelta(days=1)
    assert used(gateway, **{"from": yesterday, "to": yesterday})["total"]["sent"] == 1


@pytest.mark.parametrize("days", [{"from": "2026-11-02", "to": "2026-11-01"}, {"from": "2020-01-01"}, {"to": "soon"}])
def test_days_that_make_no_sense_are_refused(gateway, days):
    answer = gateway.get("/v1/usage", params=days)
    assert answer.status_code == 422
    assert str(next(iter(days.values()))) in answer.json()["detail"]
    assert used(gateway, to="0001-01-01")["items"] == []
