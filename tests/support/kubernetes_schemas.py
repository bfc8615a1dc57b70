"""Whether a manifest has the structure that an API server of each version takes; unknown fields are mistakes.

Kubernetes' own kinds are compared with its OpenAPI, as the package `kubernetes-validate` carries it. Of the resources
of KEDA, Prometheus operator and KServe the schemas below describe what this project uses, by their published OpenAPI;
whatever else they offer is refused here.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
from referencing import Registry, Resource

DEFINITIONS = "/api/_definitions.json"
SCHEMAS = files("kubernetes_validate") / "kubernetes-json-schema"
VERSIONS = tuple(f"1.{minor}" for minor in range(25, 38))


def core(name: str) -> dict[str, str]:
    return {"$ref": f"{DEFINITIONS}#/$defs/io.k8s.{name}"}


def of(required: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": required.split(), "additionalProperties": False,
    }  # fmt: skip


def resource(api_version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    meta = core("apimachinery.pkg.apis.meta.v1.ObjectMeta")
    kinds = {"apiVersion": {"const": api_version}, "kind": {"const": kind}}
    return of("apiVersion kind metadata spec", **kinds, metadata=meta, spec=spec)


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT, WHOLE, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
BEHAVIOR = core("api.autoscaling.v2.HorizontalPodAutoscalerBehavior")
SELECTOR = core("apimachinery.pkg.apis.meta.v1.LabelSelector")

SCALED_OBJECT = of(
    "scaleTargetRef triggers",
    scaleTargetRef=of("name", name=TEXT, kind=TEXT, apiVersion=TEXT),
    pollingInterval=WHOLE,
    minReplicaCount=WHOLE,
    maxReplicaCount=WHOLE,
    fallback=of(
        "failureThreshold replicas",
        failureThreshold=WHOLE,
        replicas=WHOLE,
        behavior={"enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]},
    ),
    advanced=of(horizontalPodAutoscalerConfig=of(behavior=BEHAVIOR)),
    triggers=listed(
        of(
            "type metadata",
            type={"const": "prometheus"},
            name=TEXT,
            metricType={"enum": ["AverageValue", "Value"]},
            # All text, and these names: KEDA looks at no others.
            metadata=of(
                "serverAddress query threshold",
                serverAddress=TEXT, query=TEXT, threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
                activationThreshold=TEXT, ignoreNullValues={"enum": ["true", "false"]},
            ),
            authenticationRef=of("name", name=TEXT, kind=TEXT),
        )
    ),
)  # fmt: skip
SERVICE_MONITOR = of(
    "selector endpoints",
    selector=SELECTOR,
    endpoints=listed(
        of(
            "port",
            port=TEXT,
            path=TEXT,
            interval=DURATION,
            authorization=of("credentials", type=TEXT, credentials=core("api.core.v1.SecretKeySelector")),
        )
    ),
)
POD_MONITOR = of(
    "selector podMetricsEndpoints",
    selector=SELECTOR,
    podTargetLabels=listed(TEXT),
    podMetricsEndpoints=listed(of("port", port=TEXT, path=TEXT, interval=DURATION)),
)
RULE = of(
    "expr", record=TEXT, alert=TEXT, expr=TEXT, **{"for": DURATION}, labels=TEXTS, annotations=TEXTS
)  # fmt: skip
PROMETHEUS_RULE = of("groups", groups=listed(of("name rules", name=TEXT, interval=DURATION, rules=listed(RULE))))
SERVING_RUNTIME = of(
    "containers",
    annotations=TEXTS,
    labels=TEXTS,
    supportedModelFormats=listed(of("name", name=TEXT, version=TEXT, autoSelect=FLAG, priority=WHOLE)),
    protocolVersions=listed(TEXT),
    multiModel=FLAG,
    containers=listed(core("api.core.v1.Container")),
    volumes=listed(core("api.core.v1.Volume")),
)
METRIC_TARGET = of("type", type={"enum": ["Utilization", "Value", "AverageValue"]}, averageValue=TEXT, value=TEXT)
PREDICTOR = of(
    "model",
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    automountServiceAccountToken=FLAG,
    enableServiceLinks=FLAG,
    securityContext=core("api.core.v1.PodSecurityContext"),
    terminationGracePeriodSeconds=WHOLE,
    deploymentStrategy=core("api.apps.v1.DeploymentStrategy"),
    canaryTrafficPercent=WHOLE,
    autoScaling=of(
        "metrics",
        behavior=BEHAVIOR,
        metrics=listed(
            of(
                "type",
                type={"enum": ["Resource", "External", "PodMetric"]},
                external=of(
                    "metric target",
                    metric=of("", backend={"enum": ["prometheus", "graphite"]}, serverAddress=TEXT, query=TEXT),
                    target=METRIC_TARGET,
                ),
            )
        ),
    ),
    model=of(
        "modelFormat",
        modelFormat=of("name", name=TEXT, version=TEXT),
        runtime=TEXT,
        protocolVersion=TEXT,
        storageUri=TEXT,
        args=listed(TEXT),
        resources=core("api.core.v1.ResourceRequirements"),
    ),
)
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): SERVING_RUNTIME,
    ("serving.kserve.io/v1beta1", "InferenceService"): of("predictor", predictor=PREDICTOR),
}


def schema_problems(manifest: dict[str, Any], version: str) -> list[str]:
    """Say what an API server of this version would refuse, or drop without a word."""
    validator = _validator(version, manifest["apiVersion"], manifest["kind"])
    if validator is None:
        return [f"Kubernetes {version} has no {manifest['apiVersion']} {manifest['kind']}"]
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(manifest)]


@cache
def _definitions(version: str) -> tuple[Any, Registry[Any]]:
    (folder,) = [one for one in SCHEMAS.iterdir() if re.fullmatch(rf"v{version}\.\d+-local-strict", one.name)]
    definitions = Resource.from_contents(json.loads((folder / "_definitions.json").read_text(encoding="utf-8")))
    return folder, Registry().with_resource(DEFINITIONS, definitions).crawl()


@cache
def _validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator | None:
    folder, registry = _definitions(version)
    if (spec := CUSTOM.get((api_version, kind))) is not None:
        schema = resource(api_version, kind, spec)
    else:
        group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
        file = folder / f"{kind.lower()}-{group}.json"
        if not file.is_file():
            return None
        schema = json.loads(file.read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema, registry=registry)
