"""Traces (OpenTelemetry): a request, the job that it began, and the job's inference requests are one trace.

Nothing is traced unless the environment names where spans go, with OpenTelemetry's own variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, ProxyTracerProvider, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADER: Final = "traceparent"
FLUSH_MS: Final = 2000


def set_up_traces(role: str) -> None:
    """Send this process's spans by OTLP over HTTP, if an endpoint is set; the service's name ends in `role`."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    # Here: loading them takes longer than most of a start.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"deepfake-gateway-{role}"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def end_traces() -> None:
    """Send the spans that are left, before a process ends at once."""
    flush = getattr(trace.get_tracer_provider(), "force_flush", None)  # only where something is traced
    if flush is not None:
        flush(FLUSH_MS)


def current_traceparent() -> str | None:
    """Return the trace context (W3C) of what is under way, for the job that it begins."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_HEADER)


@contextmanager
def traced(name: str, attributes: Mapping[str, str | int], *, parent: str | None = None) -> Iterator[Span]:
    """Record a span; with a `parent`, the trace context of another process, it belongs there."""
    if isinstance(trace.get_tracer_provider(), ProxyTracerProvider):  # none was set up
        yield INVALID_SPAN
        return
    context = None if parent is None else TraceContextTextMapPropagator().extract({_HEADER: parent})
    kind = SpanKind.INTERNAL if parent is None else SpanKind.CONSUMER
    tracer = trace.get_tracer("deepfake_gateway")
    with tracer.start_as_current_span(name, context, kind, attributes) as span:
        yield span
