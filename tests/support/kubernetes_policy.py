"""What this project asks of its manifests beside their structure: no rights, bounds, probes, and names that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]

QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
TAGGED = re.compile(r"[^\s:@]+(:\d+/[^\s:@]+)?(:(?!latest$)[^\s:@]+|@sha256:[0-9a-f]{64})")
ALLOWED_VOLUMES = {"name", "emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected"}
"""Of Kubernetes' profile `restricted`; above all no folder of the node."""
WITHOUT_PROBES = {"worker"}
"""Listens nowhere, starts its processes again by itself, and ends where it cannot."""


def pod_of(manifest: Manifest) -> Manifest | None:
    """Return the pod that a manifest describes; None where it describes none."""
    spec = manifest.get("spec") or {}
    if manifest["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
        pod: Manifest = spec["template"]["spec"]
        return pod
    # KServe makes a pod out of both; each is checked alone, so none relies on the other.
    return spec if manifest["kind"] == "ServingRuntime" else None


def policy_problems(manifest: Manifest) -> list[str]:
    """Say what a pod may do, or lacks, that it should not."""
    if manifest["kind"] == "InferenceService":
        predictor = manifest["spec"]["predictor"]
        return list(_security(predictor)) + list(_resources(predictor["model"]))
    pod = pod_of(manifest)
    if pod is None:
        return []
    found = [] if manifest["kind"] == "ServingRuntime" else list(_security(pod))
    for volume in pod.get("volumes", ()):
        if set(volume) - ALLOWED_VOLUMES:
            found.append(f"volume {volume['name']} is a {', '.join(sorted(set(volume) - {'name'}))}")
        if "emptyDir" in volume and not QUANTITY.fullmatch(str((volume["emptyDir"] or {}).get("sizeLimit", ""))):
            found.append(f"volume {volume['name']} has no limit")
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        name = container["name"]
        found += [f"{name}: {problem}" for problem in _container(container)]
        if container in pod["containers"] and name not in WITHOUT_PROBES:
            for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                if probe not in container:
                    found.append(f"{name}: has no {probe}")
    return found


def _security(pod: Manifest) -> Iterator[str]:
    context = pod.get("securityContext") or {}
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "the pod may run as root"
    if (context.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        yield "the pod has no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "the pod has a token for the API server"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"the pod has {key}"


def _container(container: Manifest) -> Iterator[str]:
    context = container.get("securityContext") or {}
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield "may gain rights"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield "may run as root"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write its image"
    capabilities = context.get("capabilities") or {}
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "has capabilities"
    if not TAGGED.fullmatch(container.get("image", "")):
        yield f"its image {container.get('image')!r} names no version"
    yield from _resources(container)


def _resources(container: Manifest) -> Iterator[str]:
    resources = container.get("resources") or {}
    for part in ("requests", "limits"):
        for name in ("cpu", "memory"):
            if not QUANTITY.fullmatch(str((resources.get(part) or {}).get(name, ""))):
                yield f"has no {name} in its {part}"


def reference_problems(release: list[Manifest]) -> list[str]:
    """Say which names and labels in a release's manifests lead nowhere, and which pods nothing protects."""
    pods = {
        item["metadata"]["name"]: (item["spec"]["template"]["metadata"]["labels"], pod_of(item))
        for item in release
        if item["kind"] in {"Deployment", "StatefulSet"}
    }
    found = []
    for item in release:
        what, spec = f"{item['kind']} {item['metadata']['name']}", item.get("spec") or {}
        found += [f"{what}: {problem}" for problem in _leads_nowhere(item["kind"], spec, pods, release)]
    for kind in ("NetworkPolicy", "PodDisruptionBudget"):
        key = "podSelector" if kind == "NetworkPolicy" else "selector"
        selectors = [item["spec"][key] for item in release if item["kind"] == kind]
        for name, (labels, _) in pods.items():
            if selectors and not any(_matches(selector, labels) for selector in selectors):
                found.append(f"no {kind} is for {name}")
    return found


def _leads_nowhere(
    kind: str, spec: Manifest, pods: dict[str, tuple[Manifest, Any]], release: list[Manifest]
) -> Iterator[str]:
    if kind in {"ScaledObject", "HorizontalPodAutoscaler"} and spec["scaleTargetRef"]["name"] not in pods:
        yield f"scales {spec['scaleTargetRef']['name']}, which is not there"
    if kind == "ServiceMonitor":
        services = [one for one in release if one["kind"] == "Service"]
        chosen = [one for one in services if _matches(spec["selector"], one["metadata"]["labels"])]
        offered = [{port["name"] for port in one["spec"]["ports"]} for one in chosen]
        wanted = {endpoint["port"] for endpoint in spec["endpoints"]}
        if not chosen or not all(wanted <= ports for ports in offered):
            yield "watches no Service, or a port that it lacks"
    if kind in {"Service", "PodDisruptionBudget", "NetworkPolicy"}:
        selector = {"matchLabels": spec["selector"]} if kind == "Service" else None
        selector = selector or spec.get("selector") or spec["podSelector"]
        chosen_pods = [pod for labels, pod in pods.values() if _matches(selector, labels)]
        if not chosen_pods:
            yield "selects no pod"
        for port in spec.get("ports", ()):
            for pod in chosen_pods:
                if port["targetPort"] not in {one["name"] for each in pod["containers"] for one in each["ports"]}:
                    yield f"leads to the port {port['targetPort']}, which no container has"


def _matches(selector: Manifest, labels: Manifest) -> bool:
    def holds(rule: Manifest) -> bool:
        value = labels.get(rule["key"])
        return value is not None if rule["operator"] == "Exists" else value in rule["values"]

    wanted = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(holds(rule) for rule in selector.get("matchExpressions", ()))
