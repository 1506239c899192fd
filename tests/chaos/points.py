"""The fault points there are, by reading the ports: one before and one after each method, and the ledger's commit."""

from collections.abc import Mapping

from agent.faults import COMMIT
from agent.ports.broker import Broker
from agent.ports.hands import Hands
from agent.ports.images import Images
from agent.ports.ledger import Ledger
from agent.ports.orchestrators import Orchestrators
from agent.ports.peers import Peers
from agent.ports.runtime import Run, Runtime
from agent.ports.storage import Storage

PORTS: Mapping[str, type] = {
    "ledger": Ledger,
    "broker": Broker,
    "storage": Storage,
    "orchestrators": Orchestrators,
    "peers": Peers,
    "runtime": Runtime,
    "runtime.run": Run,
    "images": Images,
    "hands": Hands,
}


def points() -> tuple[str, ...]:
    """Every point by name."""
    named = [COMMIT]
    for name, port in PORTS.items():
        methods = [one for one in dir(port) if not one.startswith("_") and callable(getattr(port, one))]
        named += [f"{name}.{method}.{side}" for method in methods for side in ("before", "after")]
    return tuple(sorted(named))
