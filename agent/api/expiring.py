"""What ends soon, told by a running agent: a warning in the log once a day, and when each certificate ends as a metric."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import date, timedelta
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.log import get_logger
from agent.pipeline.host import Host
from agent.repeating import repeating
from agent.trust.expiry import Expiry, Kind, due, expiries

log = get_logger(__name__)

LOOK_EVERY = timedelta(minutes=10)
OF_TLS = frozenset({Kind.CERTIFICATE, Kind.CHAIN, Kind.AUTHORITY})


class Expiring(Collector):
    """Looks at the host as it is each time, and at the certificate as its file is now. `host` is asked anew each time."""

    def __init__(self, host: Callable[[], Host], certificate: Path) -> None:
        self._host = host
        self._certificate = certificate
        self._told_on: date | None = None

    def look(self) -> tuple[Expiry, ...]:
        """What ends when, as things are now."""
        host = self._host()
        try:
            chain = self._certificate.read_bytes()
        except OSError:
            chain = None
        return expiries(host.roster, host.me, chain, host.ports.now())

    def warn(self) -> tuple[Expiry, ...]:
        """Log what is due, the first time of each day (UTC); gives what was logged."""
        now = self._host().ports.now()
        if self._told_on == now.date():
            return ()
        self._told_on = now.date()
        told = due(self.look(), now)
        for one in told:
            days = (one.at - now).days
            log.warning("expiry.near", kind=one.kind, whose=one.name, at=one.at.isoformat(), days=days)
        return told

    def warning(self) -> AbstractContextManager[None]:
        """Warn while the block runs."""
        return repeating("expiry", self.warn, LOOK_EVERY.total_seconds, is_at_once=True)

    def collect(self) -> Iterator[Metric]:
        """When each certificate ends: this agent's own, those served with it, and the authorities of the roster."""
        ends = GaugeMetricFamily(
            "dc_compute_certificate_expiry_timestamp_seconds",
            "When a certificate ends, in seconds since the epoch.",
            labels=("kind", "name"),
        )
        for one in self.look():
            if one.kind in OF_TLS:
                ends.add_metric((one.kind, one.name), one.at.timestamp())
        yield ends
