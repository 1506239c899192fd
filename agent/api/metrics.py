"""What Prometheus reads. Nothing here costs more than the few counts it tells; a ledger that is away leaves its own out."""

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent import __version__
from agent.domain.control import Mode
from agent.errors import AgentError
from agent.pipeline.host import Host
from agent.pipeline.services import running
from agent.pipeline.space import reserved_in

ROUTE = "dc_compute.route"  # key of the ASGI scope under which an endpoint leaves the template of its path
UNKNOWN = "unknown"  # label of a request that met no route, or a method nobody has heard of

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one process. Both doors of it count here."""

    def __init__(self, host: Host) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "dc_compute_http_requests",
            "HTTP requests that were answered.",
            ("door", "method", "route", "status"),
            registry=self._registry,
        )
        self.durations = Histogram(
            "dc_compute_http_request_duration_seconds",
            "From the first byte of a request to the last one of its answer.",
            ("door", "route"),
            registry=self._registry,
        )
        self.refusals = Counter(
            "dc_compute_refusals",
            "Requests that were refused, by the code of the error.",
            ("code",),
            registry=self._registry,
        )
        self._registry.register(_HostCollector(host))

    def page(self) -> Response:
        """The page that Prometheus scrapes."""
        return Response(
            generate_latest(self._registry), media_type=None, headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


class Metered:
    """An application whose requests are counted, by the template of their path."""

    def __init__(self, app: ASGIApp, metrics: Metrics, door: str) -> None:
        self._app = app
        self._metrics = metrics
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            method = scope["method"] if scope["method"] in METHODS else UNKNOWN
            route = scope.get(ROUTE, UNKNOWN)
            self._metrics.requests.labels(self._door, method, route, status).inc()
            self._metrics.durations.labels(self._door, route).observe(time.monotonic() - started)


class _HostCollector(Collector):
    """What is read when somebody asks: the ledger's and the queues' counts, the disk."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "dc_compute_build_info", "The program; always 1.", labels=("version", "agent")
        )
        build.add_metric((__version__, self._host.me), 1)
        yield build
        yield from self._ledger()
        yield from self._disks()
        yield from self._reloads()
        low = self._host.rules.low_disk_bytes
        yield GaugeMetricFamily("dc_compute_disk_low_mark_bytes", "Below it no order is accepted.", value=low)

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

    def _disks(self) -> Iterator[Metric]:
        rules = self._host.rules
        free = GaugeMetricFamily(
            "dc_compute_disk_free_bytes", "Free on the file system of this folder.", labels=("folder",)
        )
        promised = GaugeMetricFamily(
            "dc_compute_disk_promised_bytes", "Reserved by tasks and not taken yet.", labels=("folder",)
        )
        for name, folder in (("spool", rules.spool), ("workspaces", rules.workspace_root)):
            with suppress(OSError):
                free.add_metric((name,), shutil.disk_usage(folder).free)
                promised.add_metric((name,), sum(unused for _, _, unused in reserved_in(folder)))
        for folder in rules.records[:1]:
            free.add_metric(("ledger",), shutil.disk_usage(folder).free)
        yield from (free, promised)

    def _ledger(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("dc_compute_ledger_up", "Whether the ledger could be read just now.")
        mode = GaugeMetricFamily("dc_compute_mode", "What the host does: 1 at its mode.", labels=("mode",))
        jobs = GaugeMetricFamily("dc_compute_jobs", "Jobs in the ledger, by state.", labels=("state",))
        bells = GaugeMetricFamily("dc_compute_queue_depth", "Bells that wait, by queue.", labels=("queue",))
        deliveries = GaugeMetricFamily(
            "dc_compute_deliveries",
            "What must reach others: pending, or dead until a person decides.",
            labels=("state",),
        )
        try:
            now_it = self._host.ports.ledger.control().mode
            for each in Mode:
                mode.add_metric((each,), int(each is now_it))
            for state, count in self._host.ports.ledger.counts().items():
                jobs.add_metric((state,), count)
            for standing, count in self._host.ports.ledger.outbox_counts().items():
                deliveries.add_metric((standing,), count)
            for queue, depth in self._host.ports.broker.depth().items():
                bells.add_metric((queue,), depth)
        except AgentError:
            up.add_metric((), 0)
            yield up
            return
        up.add_metric((), 1)
        limit = self._host.rules.queue_limit
        yield from (up, mode, jobs, deliveries, bells)
        yield GaugeMetricFamily(
            "dc_compute_queue_limit", "Waiting jobs above which orders are refused.", value=limit
        )
