"""Writes the dashboards that docker-compose.yml provisions: ``python docker/grafana/make_dashboard.py``.

A list of panels is easier to review than two hundred lines of JSON. Metric names are Triton's, from
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md, and for the verdict service
those of ``/metrics`` (docs/gateway.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

TARGET = Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, WIDTH, HEIGHT = 3, 8, 8
MODEL = '{model=~"$model"}'
STATES = ("queued", "running")


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


def stored_rate(metric: str, by: str) -> str:
    """Return the rate of a counter of the gateways' database: each gateway shows the same, so it is not added up."""
    return f"max by ({by}) (rate({metric}[$__rate_interval]))"


def stored_quantiles(metric: str) -> list[tuple[str, str]]:
    """Return quantiles of a histogram of the gateways' database over five minutes."""
    return [
        (f"histogram_quantile({value}, max by (le) (rate({metric}_bucket[5m])))", f"p{name}")
        for value, name in ((0.5, "50"), (0.95, "95"))
    ]


Panels: TypeAlias = list[tuple[str, str, str, list[tuple[str, str]]]]
"""Title, unit, description, and queries with their legends."""

SERVER_PANELS: Panels = [
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


GATEWAY_PANELS: Panels = [
    (
        "Analyses that wait or run",
        "none",
        "Waiting ones that only grow: start another worker, or give it more concurrency.",
        [(f'max by (status) (deepfake_gateway_analyses{{status="{status}"}})', status) for status in STATES],
    ),
    (
        "Wait in the queue",
        "s",
        "Quantiles of analyses that ended, and the age of the oldest that still waits.",
        [
            *stored_quantiles("deepfake_gateway_queue_wait_seconds"),
            ("max(deepfake_gateway_oldest_queued_seconds)", "oldest now"),
        ],
    ),
    (
        "Workers",
        "none",
        "Alive within the last ten seconds; 0 means that nothing is analyzed.",
        [("max(deepfake_gateway_workers)", "workers")],
    ),
    (
        "Ended per minute",
        "none",
        "By how they ended, and by label.",
        [(f"60 * {stored_rate('deepfake_gateway_ended_total', 'status, label')}", "{{status}} {{label}}")],
    ),
    (
        "Time of an analysis",
        "s",
        "From a worker's start to the verdict.",
        stored_quantiles("deepfake_gateway_analysis_seconds"),
    ),
    (
        "Time of the stages",
        "s",
        "Mean for one analysis. Stages overlap; make the largest faster.",
        [
            (
                f"{stored_rate('deepfake_gateway_stage_seconds_total', 'stage')} / on() group_left() "
                f"({stored_rate('deepfake_gateway_analysis_seconds_count', '')} > 0)",
                "{{stage}}",
            )
        ],
    ),
    (
        "Throughput",
        "none",
        "Per second: seconds of video (1 is real time), frames, and faces that were scored.",
        [
            (stored_rate(f"deepfake_gateway_{name}_total", ""), legend)
            for name, legend in (("video_seconds", "video"), ("frames", "frames"), ("faces", "faces"))
        ],
    ),
    (
        "Median score by checkpoint",
        "percentunit",
        "Of verdicts, by the first characters of the checkpoint's hash. A jump: other inputs, or another model.",
        [
            (
                "histogram_quantile(0.5, label_replace(max by (checkpoint_sha256, le) "
                '(rate(deepfake_gateway_score_bucket[1h])), "checkpoint", "$1", "checkpoint_sha256", "(.{12}).*"))',
                "{{checkpoint}}",
            )
        ],
    ),
    (
        "Inconclusive per minute",
        "none",
        "By reason.",
        [(f"60 * {stored_rate('deepfake_gateway_inconclusive_total', 'reason')}", "{{reason}}")],
    ),
    (
        "Failures per minute",
        "none",
        "SandboxError: a file that killed or overran the process which opened it. Server errors: look at Triton.",
        [(f"60 * {stored_rate('deepfake_gateway_failures_total', 'error_type')}", "{{error_type}}")],
    ),
    (
        "Refused per minute",
        "none",
        "By the setting that bounds them, or by what was wrong; 503 and 429 under load are by design.",
        [
            (
                "60 * sum by (status, reason) (rate(deepfake_gateway_refused_total[$__rate_interval]))",
                "{{status}} {{reason}}",
            )
        ],
    ),
    (
        "Bytes received per second",
        "Bps",
        "In all bodies of requests, by gateway.",
        [
            (
                "sum by (instance) (rate(deepfake_gateway_received_bytes_total[$__rate_interval]))",
                "{{instance}}",
            )
        ],
    ),
    (
        "Live sources",
        "none",
        "Watched now, and those that ended in the last hour, by how and why.",
        [
            ("max(deepfake_gateway_watches)", "now"),
            (
                "max by (status, reason) (increase(deepfake_gateway_watches_ended_total[1h]))",
                "{{status}} {{reason}}",
            ),
        ],
    ),
    (
        "Webhooks per minute",
        "none",
        "Tries by outcome: delivered, tried again later, or given up.",
        [(f"60 * {stored_rate('deepfake_gateway_webhook_tries_total', 'outcome')}", "{{outcome}}")],
    ),
]


def dashboards() -> dict[str, dict[str, Any]]:
    """Return Grafana's JSON models by the names of their files."""
    model = {
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
    return {
        "deepfake-serving.json": _dashboard("deepfake-serving", "Deepfake serving", SERVER_PANELS, [model]),
        "deepfake-gateway.json": _dashboard("deepfake-gateway", "Deepfake verdict service", GATEWAY_PANELS, []),
    }


def _dashboard(uid: str, title: str, panels: Panels, variables: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "uid": uid,
        "title": title,
        "schemaVersion": 41,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": [_panel(index, *panel) for index, panel in enumerate(panels)],
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
    for name, model in dashboards().items():
        (TARGET / name).write_text(json.dumps(model, indent=2) + "\n", encoding="utf-8")
