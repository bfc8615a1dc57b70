"""Manifests of deploy/helm for the values that are tested: each is rendered once."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml
from kubernetes_tools import CHART, rendered

BUCKET = {"media": {"bucket": "s3://verdicts/media"}}
VALUES: dict[str, dict[str, Any]] = {
    "gpu": BUCKET,
    "cpu": {
        **yaml.safe_load((CHART / "values-cpu.yaml").read_text(encoding="utf-8")),
        "media": {"claim": "deepfake-media"},
        "gateway": {"allowOpen": True, "ingress": {"enabled": True}},
        "autoscaling": {"kind": "hpa", "maxReplicas": 8},
    },
    # All that can be switched on, and a new version beside the one that serves.
    "canary": {
        **BUCKET,
        "model": "deepfake_clip_b16",
        "triton": {
            "tracks": {"stable": {"version": 3}, "next": {"version": 4}, "removed": None},
            "canary": {"track": "next", "workers": 1},
            "timingCacheClaim": "timing-cache",
            "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
        },
        "worker": {"replicas": 4, "settings": {"concurrency": 4, "allowed_networks": ["10.0.0.0/8"]}},
        "repository": {"path": "detectors/models"},
        "explain": {"enabled": True},
        "monitoring": {"gatewayKey": {"secret": "gateway-metrics-key"}, "labels": {"release": "prometheus"}},
        "media": {"bucket": "s3://verdicts/media", "bucketSecret": "bucket-credentials", "bucketPort": 9000},
        "network": {"tritonFrom": [{"podSelector": {"matchLabels": {"app": "scan"}}}]},
        "traces": {"endpoint": "http://collector.monitoring:4318"},
    },
    "triton alone": {
        "gateway": {"enabled": False},
        "autoscaling": {"kind": "none"},
        "monitoring": {"enabled": False},
        "network": {"enabled": False},
    },
}


@cache
def release_of(name: str) -> list[dict[str, Any]]:
    """Return the manifests for one of `VALUES`; not to be changed."""
    return rendered(VALUES[name])
