"""deploy/kserve: what the kustomizations give is taken by KServe, has no rights, and scales as the chart does."""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest
from checkout import ROOT
from compose import TOKEN, read_compose
from kubernetes_policy import policy_problems
from kubernetes_releases import release_of
from kubernetes_schemas import VERSIONS, schema_problems
from kubernetes_tools import kustomized


@cache
def manifests_of(kind: str):
    return {item["kind"]: item for item in kustomized(ROOT / "deploy/kserve" / kind)}


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_every_version_takes_it_and_no_pod_has_rights(kind):
    for item in manifests_of(kind).values():
        assert [problem for version in VERSIONS for problem in schema_problems(item, version)] == []
        assert policy_problems(item) == []
        assert item["metadata"]["namespace"] == "detectors"


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_triton_has_the_flags_of_docker_compose(kind):
    (container,) = manifests_of(kind)["ServingRuntime"]["spec"]["containers"]
    chart = next(
        item["args"]
        for deployment in release_of(kind)
        if deployment["kind"] == "Deployment"
        for item in deployment["spec"]["template"]["spec"]["containers"]
        if item["name"] == "triton"
    )
    assert {item.replace("/mnt/models", "/models") for item in container["args"]} == set(chart)
    compose = read_compose()["services"]["triton"]
    flags = {
        item.replace("/mnt/models", "/models").replace("$(DEEPFAKE_ADMIN_TOKEN)", TOKEN) for item in container["args"]
    }
    assert set(compose["command"]) <= flags
    assert container["image"] == compose["image"]


def test_the_example_asks_for_a_runtime_a_format_and_pods_that_there_are():
    runtime, service, monitor = (
        manifests_of("gpu")[kind] for kind in ("ServingRuntime", "InferenceService", "PodMonitor")
    )
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"].items() <= runtime["spec"]["supportedModelFormats"][0].items()
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    name = {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
    assert monitor["spec"]["selector"]["matchLabels"] == name
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in runtime["spec"]["containers"][0]["ports"]}
    gpus = [manifests_of(kind)["InferenceService"]["spec"]["predictor"]["model"] for kind in ("gpu", "cpu")]
    assert ["nvidia.com/gpu" in one["resources"]["limits"] for one in gpus] == [True, False]


@pytest.mark.parametrize(("kind", "targets"), [("gpu", ["50", "16"]), ("cpu", ["200", "4"])])
def test_it_scales_on_the_queries_and_targets_of_the_chart(kind, targets):
    """KServe takes the target from `value`; KEDA takes it as that of each replica where no type is handed on."""
    metrics = manifests_of(kind)["InferenceService"]["spec"]["predictor"]["autoScaling"]["metrics"]
    assert [metric["external"]["target"] for metric in metrics] == [
        {"type": "Value", "value": one} for one in targets
    ]
    (scaled,) = [item for item in release_of("gpu") if item["kind"] == "ScaledObject"]
    chart = [re.sub(r"\{[^}]*\}", "{}", trigger["metadata"]["query"]) for trigger in scaled["spec"]["triggers"]]
    queries = [metric["external"]["metric"]["query"] for metric in metrics]
    assert [re.sub(r"\{[^}]*\}", "{}", query) for query in queries] == chart
    series = {found for query in queries for found in re.findall(r"\{[^}]*\}", query)}
    assert series == {'{namespace="detectors",serving_kserve_io_inferenceservice="deepfake-detector"}'}


MISTAKES = {
    "InferenceService": [
        lambda spec: spec["predictor"]["securityContext"].pop("runAsNonRoot"),
        lambda spec: spec["predictor"].pop("automountServiceAccountToken"),
        lambda spec: spec["predictor"]["model"]["resources"].pop("limits"),
        lambda spec: spec["predictor"]["model"].update(storageURI="pvc://models"),
        lambda spec: spec["predictor"]["autoScaling"]["metrics"][0]["external"]["target"].update(type="Average"),
    ],
    "ServingRuntime": [
        lambda spec: spec["containers"][0]["securityContext"].update(allowPrivilegeEscalation=True),
        lambda spec: spec["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
        lambda spec: spec["containers"][0]["resources"]["limits"].pop("memory"),
        lambda spec: spec["containers"][0].pop("livenessProbe"),
        lambda spec: spec["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
        lambda spec: spec.update(supportedModelFormat=[]),
    ],
    "PodMonitor": [
        lambda spec: spec["podMetricsEndpoints"][0].update(interval=5),
        lambda spec: spec.update(endpoints=[]),
    ],
}


@pytest.mark.parametrize(("kind", "mistake"), [(kind, one) for kind, some in MISTAKES.items() for one in some])
def test_a_mistake_in_each_kind_is_found(kind, mistake):
    wrong = copy.deepcopy(manifests_of("gpu")[kind])
    mistake(wrong["spec"])
    assert schema_problems(wrong, "1.37") + policy_problems(wrong)
    assert set(MISTAKES) == set(manifests_of("gpu"))
