"""What Prometheus is told about a scan."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.extras import require_extra
from deepfake_scan.tally import ScanTally


@contextmanager
def served_metrics(tally: ScanTally, port: int | None) -> Iterator[int | None]:
    """Serve a scan's metrics at ``/metrics`` on a port of every interface (0: a free one, which is yielded)."""
    if port is None:
        yield None
        return
    client = require_extra("prometheus_client", extra="scan")
    core = require_extra("prometheus_client.core", extra="scan")
    registry = client.CollectorRegistry()
    registry.register(_Collector(core, tally))
    try:
        server, thread = client.start_http_server(port, registry=registry)
    except OSError as exc:
        raise OptionError(f"`metrics_port` {port} cannot be used ({exc.strerror}); name another one") from exc
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        assert isinstance(thread, threading.Thread)
        thread.join()


class _Collector:
    """Reads the tally when Prometheus asks."""

    def __init__(self, core: Any, tally: ScanTally) -> None:
        self._core, self._tally = core, tally

    def collect(self) -> Iterator[Any]:
        """See Prometheus' client."""
        core, tally = self._core, self._tally
        done = core.CounterMetricFamily(
            "deepfake_scan_inputs", "Inputs with a result of this run.", labels=["result"]
        )
        for name, count in (*tally.labels.items(), *tally.failures.items()):
            done.add_metric([name], count)
        yield done
        for name, text, value in (
            ("listed", "Inputs found so far.", tally.listed),
            ("skipped", "Inputs that had a result before.", tally.skipped),
            ("in_flight", "Inputs under way.", tally.in_flight),
        ):
            yield core.GaugeMetricFamily(f"deepfake_scan_inputs_{name}", text, value=value)
        if tally.total is not None:
            yield core.GaugeMetricFamily("deepfake_scan_inputs_expected", "Inputs in all.", value=tally.total)
        yield core.CounterMetricFamily(
            "deepfake_scan_process_deaths", "Processes that died of an input.", value=tally.deaths
        )
        yield core.CounterMetricFamily("deepfake_scan_parts", "Parts written.", value=tally.parts)
