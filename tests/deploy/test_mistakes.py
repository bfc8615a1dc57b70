"""A mistake that is planted into a manifest of each kind is found: the checks of the chart can fail."""

from __future__ import annotations

import copy

import pytest
from kubernetes_policy import pod_of, policy_problems, reference_problems
from kubernetes_releases import VALUES, release_of
from kubernetes_schemas import schema_problems

EVERYTHING = [item for values in ("canary", "cpu") for item in release_of(values)]
ONE_OF_EACH = {item["kind"]: item for item in EVERYTHING}
PODS = {item["metadata"]["name"]: item for item in EVERYTHING if pod_of(item)}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_an_unknown_field_in_each_kind_is_found(kind):
    wrong = copy.deepcopy(ONE_OF_EACH[kind])
    assert schema_problems(wrong, "1.37") == []
    wrong.get("spec", wrong)["replica"] = 2
    assert any("'replica' was unexpected" in problem for problem in schema_problems(wrong, "1.37"))


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_field_of_the_wrong_type_in_each_kind_is_found(kind):
    wrong = copy.deepcopy(ONE_OF_EACH[kind])
    wrong["metadata"]["labels"]["app"] = 1
    assert schema_problems(wrong, "1.25")


STRUCTURE = {
    "ScaledObject": [
        (("spec", "triggers", 0, "metadata", "threshold"), 50),
        (("spec", "triggers", 0, "metricType"), "Utilization"),
        (("spec", "advanced", "horizontalPodAutoscalerConfig", "behavior", "scaleDown", "policies", 0, "value"), "1"),
    ],
    "HorizontalPodAutoscaler": [(("spec", "metrics", 0, "external", "target", "averageValue"), [1])],
    "ServiceMonitor": [(("spec", "endpoints", 0, "interval"), "5")],
    "PrometheusRule": [(("spec", "groups", 0, "rules", 0, "expr"), 1)],
    "Deployment": [(("spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "http")],
    "NetworkPolicy": [(("spec", "policyTypes"), "Ingress")],
    "PodDisruptionBudget": [(("spec", "maxUnavailable"), [1])],
    "StatefulSet": [(("spec", "updateStrategy", "rollingUpdate", "partition"), "3")],
}


@pytest.mark.parametrize(
    ("kind", "path", "value"), [(kind, *one) for kind, all_ in STRUCTURE.items() for one in all_]
)
def test_a_wrong_value_is_found(kind, path, value):
    wrong = copy.deepcopy(ONE_OF_EACH[kind])
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert schema_problems(wrong, "1.37")


POLICY = {
    "may run as root": lambda pod, _: pod["securityContext"].pop("runAsNonRoot"),
    "no seccomp profile": lambda pod, _: pod["securityContext"].pop("seccompProfile"),
    "a token for the API server": lambda pod, _: pod.pop("automountServiceAccountToken"),
    "hostNetwork": lambda pod, _: pod.update(hostNetwork=True),
    "is a hostPath": lambda pod, _: pod["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
    "has no limit": lambda pod, _: pod["volumes"].append({"name": "scratch", "emptyDir": {}}),
    "may gain rights": lambda _, container: container["securityContext"].update(privileged=True),
    "may write its image": lambda _, container: container["securityContext"].update(readOnlyRootFilesystem=False),
    "has capabilities": lambda _, container: container["securityContext"].update(capabilities={"drop": ["NET_RAW"]}),
    "names no version": lambda _, container: container.update(image="deepfake-serving/gateway"),
    "no memory in its limits": lambda _, container: container["resources"]["limits"].pop("memory"),
    "no cpu in its requests": lambda _, container: container["resources"]["requests"].update(cpu="many"),
}


@pytest.mark.parametrize("name", PODS)
@pytest.mark.parametrize("says", POLICY)
def test_a_right_or_a_missing_bound_in_each_pod_is_found(name, says):
    wrong = copy.deepcopy(PODS[name])
    pod = pod_of(wrong)
    POLICY[says](pod, (pod.get("initContainers") or pod["containers"])[0])
    (problem,) = policy_problems(wrong)
    assert says in problem


@pytest.mark.parametrize("name", [name for name in PODS if "worker" not in name])
@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_missing_probe_is_found(name, probe):
    wrong = copy.deepcopy(PODS[name])
    del pod_of(wrong)["containers"][0][probe]
    assert policy_problems(wrong) == [f"{pod_of(wrong)['containers'][0]['name']}: has no {probe}"]


def change_label(item):
    item["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] = "other"


def point_elsewhere(item):
    item["spec"]["scaleTargetRef"]["name"] = "release-triton"


REFERENCES = {
    "Service": lambda item: item["spec"]["ports"][0].update(targetPort="web"),
    "ServiceMonitor": lambda item: item["spec"]["endpoints"][0].update(port="metric"),
    "ScaledObject": point_elsewhere,
    "HorizontalPodAutoscaler": point_elsewhere,
    "PodDisruptionBudget": lambda item: item["spec"]["selector"]["matchLabels"].update(app="x"),
    "NetworkPolicy": lambda item: item["spec"]["podSelector"].update(matchLabels={"app": "x"}),
    "Deployment": change_label,
    "StatefulSet": change_label,
}


@pytest.mark.parametrize(("values", "kind"), [(v, k) for v in ("canary", "cpu") for k in REFERENCES])
def test_a_name_that_leads_nowhere_is_found(values, kind):
    wrong = copy.deepcopy(release_of(values))
    of_kind = [item for item in wrong if item["kind"] == kind]
    if not of_kind:
        assert kind in {"ScaledObject", "HorizontalPodAutoscaler"}  # the one or the other
        return
    REFERENCES[kind](of_kind[-1] if kind != "Service" else of_kind[0])
    assert reference_problems(wrong)


def test_the_values_render_every_kind_that_the_chart_has():
    assert set(VALUES) >= {"canary", "cpu"}
    assert {item["kind"] for values in VALUES for item in release_of(values)} == set(ONE_OF_EACH)
