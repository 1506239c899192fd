"""What Prometheus reads: the requests of this process here, everything else in `metrics_host.py`.

A metric that the page tells has its row in docs/operators.md, "Every metric".
"""

import time

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import Metric
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.api.metrics_host import HostCollector
from agent.pipeline.host import Host

ROUTE = "dc_compute.route"  # key of the ASGI scope under which an endpoint leaves the template of its path
UNKNOWN = "unknown"  # label of a request that met no route, or a method nobody has heard of

# A second series beside each counter, which nothing reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

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
        self._registry.register(HostCollector(host))

    def families(self) -> tuple[Metric, ...]:
        """Every metric, as it is now."""
        return tuple(self._registry.collect())

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
