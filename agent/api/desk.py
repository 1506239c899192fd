"""What the handlers of one process share: the host, what is counted, what is watched, where refusals are kept."""

from dataclasses import dataclass, field

from agent.api.metrics import Metrics
from agent.api.page.site import PageFiles, Site
from agent.api.readiness import Watchman
from agent.api.refusals import Refusals
from agent.pipeline.host import Host


@dataclass(slots=True)
class Desk:
    """One process's service, shared by its doors. `openapi`: what describes it; `files`: what the page tells of."""

    begun_with: Host
    openapi: bytes
    files: PageFiles = field(default_factory=PageFiles)
    metrics: Metrics = field(init=False)
    watchman: Watchman = field(init=False)
    refusals: Refusals = field(init=False)
    site: Site = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.begun_with)
        self.watchman = Watchman(self.begun_with)
        self.refusals = Refusals(self.host.ports.ledger, self.host.ports.now, self.metrics)
        self.site = Site(lambda: self.host, self.watchman, self.files)

    @property
    def host(self) -> Host:
        """The host as it is now: who answers one request asks once."""
        return self.begun_with.newest
