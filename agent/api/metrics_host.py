"""The metrics of this host: what it does, its disks, its cage, and with `metrics_ledger.py` what its ledger knows.

Anybody may ask for the page, so it is made at most once in KEPT_S, and what takes longer to find out at most once in SLOW_S.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent import __version__
from agent.api import metrics_ledger
from agent.domain.control import Mode
from agent.errors import AgentError
from agent.pipeline.gate import GateState, proved_at, standing
from agent.pipeline.host import Host
from agent.pipeline.services import running
from agent.pipeline.space import reserved_in, used_bytes

KEPT_S: Final = 1.0
SLOW_S: Final = 60.0  # a folder's files
MOST_FILES: Final = 100_000  # of a folder that are looked at


class HostCollector(Collector):
    """What is read when somebody asks."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._made_at = self._measured_at = float("-inf")
        self._made: tuple[Metric, ...] = ()
        self._used: dict[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now, or were within the last second."""
        with self._lock:
            if time.monotonic() - self._made_at >= KEPT_S:
                self._made = tuple(self._collect())
                self._made_at = time.monotonic()
        yield from self._made

    def _collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "dc_compute_build_info", "The program; always 1.", labels=("version", "agent")
        )
        build.add_metric((__version__, self._host.me), 1)
        yield build
        yield from self._ledger()
        yield from self._cage()
        yield from self._disks()
        yield from self._reloads()
        low = self._host.rules.low_disk_bytes
        yield GaugeMetricFamily("dc_compute_disk_low_mark_bytes", "Below it no order is accepted.", value=low)

    # ---- disks

    def _disks(self) -> Iterator[Metric]:
        rules = self._host.rules
        free = GaugeMetricFamily(
            "dc_compute_disk_free_bytes", "Free on the file system of this folder.", labels=("folder",)
        )
        promised = GaugeMetricFamily(
            "dc_compute_disk_promised_bytes", "Reserved by tasks and not taken yet.", labels=("folder",)
        )
        used = GaugeMetricFamily("dc_compute_disk_used_bytes", "Taken, by what takes it.", labels=("holder",))
        places = {"spool": rules.spool, "workspaces": rules.workspace_root}
        for name, folder in places.items():
            with suppress(OSError):
                free.add_metric((name,), shutil.disk_usage(folder).free)
                promised.add_metric((name,), sum(unused for _, _, unused in reserved_in(folder)))
        for folder in rules.records[:1]:
            with suppress(OSError):
                free.add_metric(("ledger",), shutil.disk_usage(folder).free)
        if time.monotonic() - self._measured_at >= SLOW_S:
            self._used |= {name: used_bytes(folder, MOST_FILES) for name, folder in places.items()}
            self._measured_at = time.monotonic()
        for name, size in self._used.items():
            used.add_metric((name,), size)
        yield from (free, promised, used)

    # ---- reloads

    def _reloads(self) -> Iterator[Metric]:
        reloads = CounterMetricFamily(
            "dc_compute_reloads",
            "Reloads of services that run now, by outcome.",
            labels=("service", "outcome"),
        )
        last = GaugeMetricFamily(
            "dc_compute_last_reload_successful",
            "0 while a service goes on with what it had, because what the files said was refused.",
            labels=("service",),
        )
        folder = self._host.rules.services
        with suppress(OSError):
            seen = () if folder is None else running(folder)
            for service in sorted({one.service for one in seen}):  # several workers count as one
                ours = [one for one in seen if one.service == service]
                reloads.add_metric((service, "taken"), sum(one.taken for one in ours))
                reloads.add_metric((service, "refused"), sum(one.refused for one in ours))
                last.add_metric((service,), int(all(one.last is None or one.last.is_taken for one in ours)))
        yield from (reloads, last)

    # ---- the cage

    def _cage(self) -> Iterator[Metric]:
        root = self._host.rules.workspace_root
        now_it, tried_at = standing(root).state, proved_at(root)
        state = GaugeMetricFamily(
            "dc_compute_selftest_state", "Where the worker's gate stands: 1 at its state.", labels=("state",)
        )
        for each in GateState:
            state.add_metric((each,), int(each is now_it))
        yield state
        if tried_at is not None:
            yield GaugeMetricFamily(
                "dc_compute_selftest_age_seconds",
                "Since a worker tried the cage last; absent when none has since the workspaces' folder was made.",
                value=max(0.0, (self._host.ports.now() - tried_at).total_seconds()),
            )

    # ---- the ledger

    def _ledger(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("dc_compute_ledger_up", "Whether the ledger could be read just now.")
        try:
            told = tuple(self._from_ledger())
        except AgentError:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        yield up
        yield from told

    def _from_ledger(self) -> Iterator[Metric]:
        """Raises: LedgerUnavailable."""
        ports = self._host.ports
        mode = GaugeMetricFamily("dc_compute_mode", "What the host does: 1 at its mode.", labels=("mode",))
        now_it = ports.ledger.control().mode
        for each in Mode:
            mode.add_metric((each,), int(each is now_it))
        yield mode
        yield self._jobs()
        bells = GaugeMetricFamily("dc_compute_queue_depth", "Bells that wait, by queue.", labels=("queue",))
        for queue, depth in ports.broker.depth().items():
            bells.add_metric((queue,), depth)
        yield bells
        deliveries = GaugeMetricFamily(
            "dc_compute_deliveries",
            "What must reach others: pending, or dead until a person decides.",
            labels=("state",),
        )
        for standing_, count in ports.ledger.outbox_counts().items():
            deliveries.add_metric((standing_,), count)
        yield deliveries
        yield GaugeMetricFamily(
            "dc_compute_queue_limit",
            "Waiting jobs above which orders are refused.",
            value=self._host.rules.queue_limit,
        )
        gauges, tallies = ports.ledger.gauges(), ports.ledger.tallies()
        self._used["ledger"] = gauges.ledger_bytes
        yield from metrics_ledger.standing(gauges, ports.now)
        yield from metrics_ledger.counters(tallies)
        yield from metrics_ledger.durations(tallies)

    def _jobs(self) -> Metric:
        """Jobs by state, as they are now."""
        family = GaugeMetricFamily("dc_compute_jobs", "Jobs in the ledger, by state.", labels=("state",))
        for state, count in self._host.ports.ledger.counts().items():
            family.add_metric((state,), count)
        return family
