"""Every door to the outside. `X.py` is the Protocol and its values, `X_lib.py` an adapter named after its library."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from agent.ports.broker import Broker
from agent.ports.hands import Hands
from agent.ports.images import Images
from agent.ports.ledger import Ledger
from agent.ports.orchestrators import Orchestrators
from agent.ports.peers import Peers
from agent.ports.progress import NoProgress, ProgressBoard
from agent.ports.runtime import Runtime
from agent.ports.storage import Storage
from agent.ports.together import Together, one_by_one

Clock = Callable[[], datetime]  # aware UTC


@dataclass(frozen=True, slots=True)
class Ports:
    """All doors of one agent, as wired."""

    ledger: Ledger
    broker: Broker
    storage: Storage
    orchestrators: Orchestrators
    peers: Peers
    runtime: Runtime
    images: Images
    now: Clock
    hands: Hands
    progress: ProgressBoard = field(default_factory=NoProgress)
    together: Together = one_by_one
