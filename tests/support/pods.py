"""Tritons as pods: each with an address and a share of a core, behind one name, where Prometheus finds them.

For scripts/autoscaling.py; what a cluster does for real is replaced by the least that behaves alike.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from name_server import NameServer
from prometheus_client.parser import text_string_to_metric_families

from deepfake_serve import EmbeddedTriton

LEAVE_S: Final = 10.0
"""Of the chart's preStop: a replica that is taken away is out of the name service for so long before it ends."""


class Cores:
    """A share of a core for the processes of one replica, by a control group of the kernel's (either version)."""

    def __init__(self, number: int, share: float) -> None:
        first = Path("/sys/fs/cgroup/cpu")
        self._folder = (first if first.is_dir() else Path("/sys/fs/cgroup")) / f"deepfake-autoscaling-{number}"
        self._folder.mkdir(exist_ok=True)
        period_us = 20_000
        if first.is_dir():
            (self._folder / "cpu.cfs_period_us").write_text(str(period_us))
            (self._folder / "cpu.cfs_quota_us").write_text(str(int(share * period_us)))
            # Its share, whatever else runs on the machine.
            (self._folder / "cpu.shares").write_text("8192")
        else:
            (self._folder / "cpu.max").write_text(f"{int(share * period_us)} {period_us}")
            (self._folder / "cpu.weight").write_text("800")

    def hold(self, pid: int) -> None:
        """Put a process and its children in; what they start later is in, too."""
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            (self._folder / "cgroup.procs").write_text(str(process.pid))

    def close(self) -> None:
        """Remove the group."""
        for _ in range(50):
            with suppress(OSError):  # a process is on its way out
                self._folder.rmdir()
                return
            time.sleep(0.1)


class Forwarder:
    """An address of its own for a server on the loopback, as a pod has one."""

    def __init__(self, host: str, port: int, target: str) -> None:
        self._target = target.rpartition(":")[::2]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._connected, host, port))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))

    def close(self) -> None:
        """Listen no more."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**18):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Replica:
    """One Triton, as a pod."""

    number: int
    triton: EmbeddedTriton
    forwarder: Forwarder | None = None
    cores: Cores | None = None
    is_ready: bool = False
    is_leaving: bool = False

    @property
    def address(self) -> str:
        """Its own, as a pod has one."""
        return f"127.0.1.{self.number}"

    def counters(self) -> dict[str, float]:
        """Return the sums of Triton's counters; empty while it does not answer."""
        try:
            with urllib.request.urlopen(self.triton.metrics_url, timeout=5) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
        except OSError:
            return {}
        return {family.name: sum(sample.value for sample in family.samples) for family in families}


@dataclass
class Cluster:
    """Replicas, the name that stands for them, and the file in which Prometheus finds them.

    Attributes:
        make: makes a Triton; it is started here.
        cores: share of a core for each; 0 for no bound.
        port: of all replicas, each at its own address.
        targets: Prometheus' file.
        labels: of their series, beside the instance.
    """

    make: Callable[[], EmbeddedTriton]
    cores: float
    port: int
    names: NameServer
    targets: Path
    labels: dict[str, str]
    replicas: list[Replica] = field(default_factory=list)
    made: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def wanted(self) -> list[Replica]:
        """Those that are not on their way out."""
        return [one for one in self.replicas if not one.is_leaving]

    def scale(self, count: int) -> None:
        """Start or end replicas in the background until there are `count`."""
        while len(self.wanted) < count:
            self.made += 1
            replica = Replica(self.made, self.make())
            self.replicas.append(replica)
            self._in_background(self._start, replica)
        for replica in self.wanted[count:]:
            replica.is_leaving = True
            self._in_background(self._end, replica)

    def _in_background(self, work: Callable[[Replica], None], replica: Replica) -> None:
        self.threads.append(threading.Thread(target=work, args=(replica,)))
        self.threads[-1].start()

    def _start(self, replica: Replica) -> None:
        replica.triton.start()
        if self.cores:
            replica.cores = Cores(replica.number, self.cores)
            replica.cores.hold(replica.triton.pid or 0)
        replica.forwarder = Forwarder(replica.address, self.port, replica.triton.grpc_url)
        replica.is_ready = True
        self._publish()

    def _end(self, replica: Replica) -> None:
        self._publish()
        time.sleep(LEAVE_S)
        replica.triton.stop()
        self.replicas.remove(replica)
        self._publish()
        for part in (replica.forwarder, replica.cores):
            if part is not None:
                part.close()

    def _publish(self) -> None:
        with self.lock:
            self.names.addresses[:] = [one.address for one in self.wanted if one.is_ready]
            ready = [one.triton.metrics_url for one in self.replicas if one.is_ready]
            found = [url.removeprefix("http://").removesuffix("/metrics") for url in ready]
            partial = self.targets.with_suffix(".partial")
            partial.write_text(json.dumps([{"targets": found, "labels": self.labels}]))
            partial.rename(self.targets)

    def close(self) -> None:
        """End all replicas."""
        self.scale(0)
        for thread in self.threads:
            thread.join()
