"""What the handlers of one process share: the host, what is counted, what is watched, where refusals are kept."""

from dataclasses import dataclass, field

from agent.api.feed import Feed
from agent.api.metrics import Metrics
from agent.api.readiness import Watchman
from agent.api.refusals import Refusals
from agent.pipeline.host import Host


@dataclass(slots=True)
class Desk:
    """One process's service, shared by both of its doors. `openapi`: the document that describes it."""

    host: Host
    openapi: bytes
    metrics: Metrics = field(init=False)
    watchman: Watchman = field(init=False)
    refusals: Refusals = field(init=False)
    feed: Feed = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.host)
        self.feed = Feed(self.host.ports.ledger, self.host.ports.progress.read)
        self.watchman = Watchman(self.host)
        self.refusals = Refusals(self.host.ports.ledger, self.host.ports.now, self.metrics)
