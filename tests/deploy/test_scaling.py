"""The scaling rule of the chart, computed by Prometheus itself, and what Kubernetes' autoscaler makes of it."""

from __future__ import annotations

import re
import subprocess

import debian
import pytest
import yaml
from autoscaler import Autoscaler
from kubernetes_releases import release_of

SERIES = 'namespace="detectors",job="release-triton-stable"'
SCALED = next(item for item in release_of("gpu") if item["kind"] == "ScaledObject")
RULES = next(item for item in release_of("gpu") if item["kind"] == "PrometheusRule")["spec"]
TARGETS = Autoscaler.of(SCALED).targets


def counted(replicas, *, rate, queue_ms, run_ms, pending):
    """Return the series of two minutes, of replicas that each answer `rate` requests a second."""
    steady = {
        "nv_inference_request_success": rate,
        "nv_inference_queue_duration_us": rate * queue_ms * 1000,
        "nv_inference_request_duration_us": rate * (queue_ms + run_ms) * 1000,
    }
    found = []
    for number in range(replicas):
        labels = f'{SERIES},instance="{number}"'
        found += [{"series": f"{name}{{{labels}}}", "values": f"0+{each * 5:g}x24"} for name, each in steady.items()]
        found.append({"series": f"nv_inference_pending_request_count{{{labels}}}", "values": f"{pending}x24"})
    # Of another release, and of the next version: nobody counts them in.
    other = SERIES.replace("release", "other")
    found += [{"series": f'nv_inference_pending_request_count{{{other},instance="0"}}', "values": "1000x24"}]
    return found


CASES = {
    # name: replicas, load of each, milliseconds in the queue and requests of all together, replicas that are wanted
    "idle": (2, {"rate": 0, "queue_ms": 0, "run_ms": 0, "pending": 0}, 0, 0, 1),
    # 5,000 requests a second wait 2 ms each for their batch: 10 are pending at any time, none of them for a replica.
    "the batching delay alone": (1, {"rate": 5000, "queue_ms": 2, "run_ms": 1, "pending": 10}, 2, 5, 1),
    "the batching delay alone, with many": (4, {"rate": 5000, "queue_ms": 2, "run_ms": 1, "pending": 10}, 8, 20, 2),
    "a queue": (1, {"rate": 100, "queue_ms": 120, "run_ms": 20, "pending": 12}, 120, 13.8, 3),
    "a jam": (1, {"rate": 100, "queue_ms": 9000, "run_ms": 80, "pending": 900}, 9000, 907.8, 4),
    # They have no queue any more, and are kept for what they do.
    "enough": (3, {"rate": 200, "queue_ms": 3, "run_ms": 70, "pending": 0.6}, 9, 42.6, 3),
}


def case_test(case, queries=None):
    """Return a test of promtool: what the recorded series and these queries must give in a case."""
    replicas, load, queue_ms, requests, _ = CASES[case]
    labels = '{namespace="detectors", triton="release-triton-stable"}'
    values = {
        "deepfake_serving_queue_milliseconds": (queue_ms, labels),
        "deepfake_serving_requests": (requests, labels),
    }
    if queries:
        values |= {queries["queue"]: (queue_ms, "{}"), queries["requests"]: (requests, "{}")}
    expected = [
        {"expr": f"round({query}, 0.001)", "eval_time": "2m", "exp_samples": [{"labels": names, "value": value}]}
        for query, (value, names) in values.items()
    ]
    return {"interval": "5s", "input_series": counted(replicas, **load), "promql_expr_test": expected}


def judged(folder, rules, *tests):
    """Let promtool run tests of rules."""
    (folder / "rules.yaml").write_text(rules)
    file = folder / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": [*tests]}))
    return promtool("test", "rules", file)


@pytest.mark.debian("prometheus")
def test_prometheus_computes_the_measures_for_both_kinds_of_autoscalers(tmp_path):
    queries = Autoscaler.of(SCALED).queries
    done = judged(tmp_path, yaml.safe_dump(RULES), *(case_test(case, queries) for case in CASES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_the_wanted_number_of_replicas_follows(case):
    replicas, _, queue_ms, requests, wanted = CASES[case]
    assert Autoscaler.of(SCALED).wish({"queue": queue_ms, "requests": requests}, replicas) == wanted


@pytest.mark.debian("prometheus")
@pytest.mark.parametrize(
    "mistake",
    [
        ("sum by (instance) (rate", "sum by (instance) (rat"),  # no such function
        (" / 1000", " / 1e6"),  # not milliseconds
        ("- 0.002 *", "- 0 *"),  # the delay counts
    ],
)
def test_a_mistake_in_the_rule_is_found(tmp_path, mistake):
    text = yaml.safe_dump(RULES, width=1000)
    assert mistake[0] in text
    done = judged(tmp_path, text.replace(*mistake), case_test("the batching delay alone"))
    assert done.returncode != 0


@pytest.mark.debian("prometheus")
def test_every_rule_and_query_is_taken_and_the_autoscalers_ask_for_what_is_recorded(tmp_path):
    for values in ("gpu", "canary", "cpu"):
        rules = next(item for item in release_of(values) if item["kind"] == "PrometheusRule")["spec"]
        file = tmp_path / f"{values}.yaml"
        file.write_text(yaml.safe_dump(rules))
        done = promtool("check", "rules", file)
        assert done.returncode == 0, done.stdout + done.stderr
    (hpa,) = [item for item in release_of("cpu") if item["kind"] == "HorizontalPodAutoscaler"]
    recorded = {(rule["record"], rule["labels"]["triton"]) for rule in rules["groups"][0]["rules"]}
    asked = [metric["external"]["metric"] for metric in hpa["spec"]["metrics"]]
    assert {(one["name"], one["selector"]["matchLabels"]["triton"]) for one in asked} == recorded


@pytest.mark.debian("prometheus")
def test_alerts_come_when_they_should(tmp_path):
    refused = f'nv_inference_request_failure{{{SERIES},reason="REJECTED",instance="0"}}'
    series = [
        {"series": f'up{{{SERIES},instance="0"}}', "values": "1x240 0x60"},
        {"series": refused, "values": "0+3x240"},
        {"series": 'deepfake_gateway_workers{namespace="detectors"}', "values": "1x240 0x60"},
        *counted(1, rate=10, queue_ms=400, run_ms=20, pending=4)[:4],
    ]
    series[3:] = [{**one, "values": one["values"].replace("x24", "x300")} for one in series[3:]]

    def alert(name, at, firing):
        return {"eval_time": at, "alertname": name, "exp_alerts": [firing] if firing else []}

    here = {"namespace": "detectors"}
    texts = {rule["alert"]: rule["annotations"] for rule in RULES["groups"][1]["rules"]}
    cases = [
        ("DeepfakeTritonAway", "19m", None),
        ("DeepfakeTritonAway", "22m", {**here, "severity": "critical", "track": "stable"}),
        ("DeepfakeRequestsRefused", "2m", None),
        ("DeepfakeRequestsRefused", "15m", {**here, "severity": "warning", "track": "stable"}),
        ("DeepfakeQueueSlow", "5m", None),
        ("DeepfakeQueueSlow", "15m", {**here, "severity": "warning", "triton": "release-triton-stable"}),
        ("DeepfakeNoWorker", "19m", None),
        ("DeepfakeNoWorker", "24m", {**here, "severity": "critical"}),
    ]
    wanted = [
        alert(name, at, labels and {"exp_labels": labels, "exp_annotations": texts[name]})
        for name, at, labels in cases
    ]
    assert {name for name, _, _ in cases} == set(texts)
    test = {"interval": "5s", "input_series": series, "alert_rule_test": wanted}
    done = judged(tmp_path, yaml.safe_dump(RULES), test)
    assert done.returncode == 0, done.stdout + done.stderr


def promtool(*arguments):
    command = [debian.program("prometheus", "promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_replicas_come_at_once_and_go_one_by_one_after_the_window():
    rule = Autoscaler.of(SCALED)
    jam, calm = {"queue": 9000, "requests": 900}, {"queue": 0.0, "requests": 3}
    replicas, seen = 1, []
    for step in range(60):
        now_s = step * 15.0
        replicas = rule.decide(jam if now_s < 120 else calm, replicas, now_s)
        seen.append(replicas)
    assert seen[:3] == [3, 3, 4]  # two in half a minute
    first_fewer = next(step for step, count in enumerate(seen) if step > 8 and count < 4)
    assert first_fewer * 15 > 120 + 285  # a jam was wanted more for until five minutes before
    falling = [count for count in seen[first_fewer:] if count > 1]
    assert falling == [3] * 4 + [2] * 4  # one a minute
    assert seen[-1] == 1


def test_a_load_that_swings_within_the_window_changes_nothing():
    rule, replicas = Autoscaler.of(SCALED), 3
    for step in range(40):
        swing = {"queue": 9, "requests": 42 if step % 8 == 0 else 5}
        replicas = rule.decide(swing, replicas, step * 15.0)
        assert replicas == 3


def test_close_to_a_target_nothing_changes():
    rule = Autoscaler.of(SCALED)
    assert rule.wish({"queue": 2 * TARGETS["queue"] * 1.09, "requests": 1}, 2) == 2
    assert rule.wish({"queue": 2 * TARGETS["queue"] * 1.11, "requests": 1}, 2) == 3
    assert not re.search("deriv|irate", " ".join(rule.queries.values()))
