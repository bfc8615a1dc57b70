"""Writes the dashboard that docker-compose.yml provisions: ``python docker/grafana/make_dashboard.py``.

A list of panels is easier to review than two hundred lines of JSON. Metric names are Triton's, from
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards/deepfake-serving.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, WIDTH, HEIGHT = 3, 8, 8
MODEL = '{model=~"$model"}'


def rate(metric: str, by: str = "model") -> str:
    """Return the sum of a counter's rate."""
    return f"sum by ({by}) (rate({metric}{MODEL}[$__rate_interval]))"


def ratio(over: str, under: str) -> str:
    """Return the ratio of two counters' rates; absent while nothing happens, instead of a division by zero."""
    return f"{rate(over)} / ({rate(under)} > 0)"


def quantiles(metric: str) -> list[tuple[str, str]]:
    """Return the quantiles that the `metrics-config` of docker-compose.yml asks for."""
    return [
        (f'max by (model) ({metric}{{model=~"$model", quantile="{value}"}}) / 1e6', f"p{name} {{{{model}}}}")
        for value, name in (("0.5", "50"), ("0.9", "90"), ("0.95", "95"), ("0.99", "99"))
    ]


PANELS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    (
        "Latency of requests",
        "s",
        "In the server, from arrival to answer. Quantiles slide over Triton's own window of the last minute or so.",
        quantiles("nv_inference_request_summary_us"),
    ),
    (
        "Time in the queue",
        "s",
        "Waiting for a batch to form and for a free instance. Above the execution time: add instances or GPUs.",
        [
            *quantiles("nv_inference_queue_summary_us"),
            (
                f"{ratio('nv_inference_queue_duration_us', 'nv_inference_request_success')} / 1e6",
                "mean {{model}}",
            ),
        ],
    ),
    (
        "Time of an execution",
        "s",
        "Mean per request, by part: copying in, the network, copying out.",
        [
            (
                f"{ratio(f'nv_inference_compute_{part}_duration_us', 'nv_inference_request_success')} / 1e6",
                f"{part} {{{{model}}}}",
            )
            for part in ("input", "infer", "output")
        ],
    ),
    (
        "Crops per second",
        "ops",
        "A batch of n counts as n.",
        [(rate("nv_inference_count"), "{{model}}")],
    ),
    (
        "Mean batch",
        "none",
        "Crops per execution; 1 means that dynamic batching wins nothing.",
        [(ratio("nv_inference_count", "nv_inference_exec_count"), "{{model}}")],
    ),
    (
        "Errors per second",
        "ops",
        "By reason: REJECTED is a full queue or a wait of 10 s.",
        [(rate("nv_inference_request_failure", "model, reason"), "{{model}} {{reason}}")],
    ),
    (
        "Requests that wait",
        "none",
        "In the queue right now; refused from the configuration's max_queue_size on.",
        [(f"sum by (model) (nv_inference_pending_request_count{MODEL})", "{{model}}")],
    ),
    (
        "GPU utilization",
        "percentunit",
        "Share of time in which something runs on the GPU.",
        [("nv_gpu_utilization", "{{gpu_uuid}}")],
    ),
    (
        "GPU memory",
        "bytes",
        "",
        [
            ("nv_gpu_memory_used_bytes", "used {{gpu_uuid}}"),
            ("nv_gpu_memory_total_bytes", "total {{gpu_uuid}}"),
        ],
    ),
]


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model."""
    return {
        "uid": "deepfake-serving",
        "title": "Deepfake serving",
        "schemaVersion": 41,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": DATASOURCE,
                    "query": {"query": "label_values(nv_inference_request_success, model)", "refId": "model"},
                    "includeAll": True,
                    "allValue": ".*",
                    "multi": True,
                    "current": {"text": ["All"], "value": ["$__all"]},
                    "refresh": 2,
                }
            ]
        },
        "panels": [_panel(index, *panel) for index, panel in enumerate(PANELS)],
    }


def _panel(index: int, title: str, unit: str, description: str, queries: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "id": index + 1,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"x": index % COLUMNS * WIDTH, "y": index // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(queries)
        ],
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
