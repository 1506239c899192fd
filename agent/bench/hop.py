"""Part `hop`: a chain of no-op tasks over three hosts, each with its hand-off, and a chain of three from end to end."""

from itertools import cycle, islice

from agent.bench.engines import engines, podman_engine, quickest
from agent.bench.figures import Bench, Measured, Row, median
from agent.bench.town import NAMES, Town, town

PART = "hop"
LONG, SHORT = 10, 3  # tasks of a chain
MS = 1000.0


def measure(bench: Bench) -> Measured:
    """The part, with the quicker of the engines that work here; a chain that does not count goes before."""
    with podman_engine() as socket:
        known = engines(socket)
        engine = quickest(known)
        with town(bench, known[engine]) as made:
            hops, chains = [], []
            for number in range(bench.rounds + 1):
                hop_ms, chain_ms = one_hop(made), one_chain(made)
                if number:
                    hops.append(hop_ms)
                    chains.append(chain_ms)
    rows = (
        Row(part=PART, name=f"hop of {LONG} tasks ({engine})", unit="ms", samples=tuple(hops)),
        Row(part=PART, name=f"chain of {SHORT} ({engine})", unit="ms", samples=tuple(chains)),
    )
    return Measured(rows=rows, figures={"hop_ms": median(hops), "chain3_ms": median(chains)})


def one_hop(made: Town) -> float:
    """Milliseconds from one task's receipt to the next one's, on another host each time: a chain's mean over its hops."""
    sent = made.order(list(islice(cycle(NAMES), LONG)))
    made.wait(sent)
    first_s, last_s = made.moment(sent, "task.attested"), made.moment(sent, "task.attested", sent.last)
    made.forget()
    return (last_s - first_s) / (LONG - 1) * MS


def one_chain(made: Town) -> float:
    """Milliseconds from when an order is sent to when its result was acknowledged."""
    sent = made.order(list(islice(cycle(NAMES), SHORT)))
    made.wait(sent)
    took_s = made.result_s(sent) - sent.sent_s
    made.forget()
    return took_s * MS
