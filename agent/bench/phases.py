"""Where the milliseconds of a no-op task go: every span of it, one after the other, as its hosts' logs tell at level debug.

    python -m agent.bench.phases [--engine runc|podman] [--rounds 15] [--chain A,B,C] [--waterfall]

A table of medians on standard error. `--waterfall` draws the task whose whole time is the median: SVG on standard output
(`make waterfall` keeps it in docs/images).
"""

import argparse
import sys
from collections.abc import Sequence

from agent.bench.cpu import cpu_s, spent
from agent.bench.engines import engines, podman_engine
from agent.bench.figures import Bench, Measured, median, p95
from agent.bench.run import Asked, in_scratch
from agent.bench.town import Event, Sent, Town, town
from agent.bench.waterfall import Span, picture
from agent.devkit.podman_service import why_not
from agent.domain.ids import job_id
from agent.ports.broker import Queue

MS = 1000.0
DEBUG = {"log": {"level": "debug"}}  # the one setting that differs: it tells when each phase ended


# ------------------------------------------------------------------ from a log to spans


def spans_of(events: Sequence[Event], sent: Sent, position: int = 0) -> list[Span]:
    """The spans of the task at this position, in the order in which they began. Raises: StopIteration for a line that lacks."""
    story = _Story(events, sent, position)
    job = job_id(sent.id, position)
    begun = story.began_s
    received, spans = begun, []
    if position == 0:
        spans = [
            story.span("accept", "API", sent.sent_s, begun),
            story.span("answer", "API", begun, sent.answered_s),
        ]
    if story.has("order.placed"):
        heard, placed = story.heard(Queue.LEARNUPLETS, Queue.PREDUPLETS, item=job), story.at("order.placed")
        spans += [
            story.span("bell", "queue", received, heard),
            story.span("place", "worker", heard, placed),
        ]
        received = placed
    heard, started = story.heard(Queue.LEARN_TASKS, item=job), story.at("task.started")
    spans += [story.span("bell", "queue", received, heard), story.span("claim", "worker", heard, started)]
    phases = story.phases()
    spans += phases
    published, attested = max(one.end_ms for one in phases), story.at("task.attested")
    spans.append(story.span("attest", "worker", begun + published / MS, attested))
    report = f"{job}.report.2"
    heard = story.heard(Queue.DELIVERIES, item=report)
    acknowledged = story.at("delivery.acknowledged", delivery=report)
    return [
        *spans,
        story.span("bell", "queue", attested, heard),
        story.span("report", "orchestrator", heard, acknowledged),
    ]


class _Story:
    """The lines that tell of one task of one order."""

    def __init__(self, events: Sequence[Event], sent: Sent, position: int) -> None:
        self._lines = sorted((one for one in events if _is_about(one, sent, position)), key=_when)
        self.began_s = self.at("order.received")

    def span(self, name: str, who: str, from_s: float, to_s: float, *, is_inner: bool = False) -> Span:
        return Span(name, who, (from_s - self.began_s) * MS, (to_s - from_s) * MS, is_inner)

    def has(self, name: str) -> bool:
        return any(one.name == name for one in self._lines)

    def at(self, name: str, **told: object) -> float:
        return next(one.at_s for one in self._lines if one.name == name and told.items() <= one.told.items())

    def heard(self, *queues: Queue, item: str) -> float:
        """The last time that a bell for this rang in one of these queues before it was answered."""
        return next(
            one.at_s
            for one in self._lines
            if one.name == "bell.heard" and one.told["item"] == item and one.told["queue"] in queues
        )

    def phases(self) -> list[Span]:
        """What the worker's own clock told, with the parts of each run within it."""
        found = []
        for line in (one for one in self._lines if one.name == "phase.ended"):
            name, began_s = str(line.told["phase"]), line.at_s - line.told["whole_s"]
            if name == "run":  # which waited for it
                found += self._frames()
            found.append(self.span(name, "worker", began_s, line.at_s))
            if name == "run":
                found += self._runs(began_s, line.at_s)
        return found

    def _frames(self) -> list[Span]:
        """The container that was begun while the inputs came; none where the engine makes none ahead."""
        made = (one for one in self._lines if one.name == "run.framed")
        return [self.span("frame", "cage", one.at_s - one.told["whole_s"], one.at_s) for one in made]

    def _runs(self, began_s: float, ended_s: float) -> list[Span]:
        found, at_s = [], began_s
        for line in (one for one in self._lines if one.name in {"run.began", "run.ended"}):
            name = "start" if line.name == "run.began" else str(line.told["run"])
            found.append(self.span(name, "cage", at_s, line.at_s, is_inner=True))
            at_s = line.at_s
        return [*found, self.span("end", "cage", at_s, ended_s, is_inner=True)]


def _is_about(one: Event, sent: Sent, position: int) -> bool:
    if one.name == "bell.heard":
        return str(one.told["item"]).startswith(job_id(sent.id, position))
    return one.told.get("order") == sent.id and one.told.get("position", 0) == position


def _when(one: Event) -> float:
    return one.at_s


# ------------------------------------------------------------------ many tasks


def many(made: Town, rounds: int, hosts: Sequence[str]) -> list[list[Span]]:
    """The spans of the last task of so many orders over these hosts."""
    found = []
    for _ in range(rounds):
        sent = made.order(hosts)
        made.wait(sent)
        found.append(spans_of(made.events, sent, sent.last))
        made.forget()
    return found


def whole_ms(spans: Sequence[Span]) -> float:
    """From the accepted order to the acknowledged report."""
    return max(one.end_ms for one in spans)


def lines_of(tasks: Sequence[Sequence[Span]]) -> list[str]:
    """Medians by span, in the order of the first task; a name that stands twice is told by its place."""
    lines = [f"{'span':14}{'by':14}{'begins ms':>10}{'took ms':>10}{'p95 ms':>10}"]
    for number, one in enumerate(tasks[0]):
        same = [task[number] for task in tasks if len(task) == len(tasks[0])]
        numbers = (median([each.at_ms for each in same]), *_took(same))
        name = f"  {one.name}" if one.is_inner else one.name
        lines.append(f"{name:14}{one.who:14}" + "".join(f"{each:10.1f}" for each in numbers))
    whole = [whole_ms(task) for task in tasks]
    return [*lines, f"{'whole':38}{median(whole):10.1f}{p95(whole):10.1f}"]


def _took(spans: Sequence[Span]) -> tuple[float, float]:
    took = [one.took_ms for one in spans]
    return median(took), p95(took)


def print_nothing(_line: str) -> None:
    """The table alone is told."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m agent.bench.phases", description=__doc__)
    parser.add_argument("--engine", choices=("runc", "podman"), default="runc")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--chain", default="A", help="the hosts that the order goes over: its last task is told"
    )
    parser.add_argument(
        "--waterfall", action="store_true", help="draw the median task: SVG on standard output"
    )
    told = parser.parse_args(arguments)
    if lacking := why_not():
        sys.stderr.write(f"the bench needs {lacking}\n")
        return 1
    tasks: list[list[Span]] = []
    took: dict[str, float] = {}

    def measure(bench: Bench) -> Measured:
        hosts = told.chain.split(",")
        with podman_engine() as socket:
            engine = engines(socket)[told.engine]
            with town(bench, engine, hosts=sorted(set(hosts)), settings=DEBUG) as made:
                many(made, 1, hosts)
                before = cpu_s(made.consortium)
                tasks.extend(many(made, told.rounds, hosts))
                took.update(spent(before, cpu_s(made.consortium), told.rounds))
        return Measured(rows=(), figures={})

    in_scratch("phases", measure, Asked(rounds=told.rounds), print_nothing)
    sys.stderr.write("\n".join(lines_of(tasks)) + "\n")
    sys.stderr.write(
        "\n".join(["", "CPU ms an order", *(f"{n:22}{ms:8.1f}" for n, ms in took.items())]) + "\n"
    )
    if told.waterfall:
        middle = sorted(tasks, key=whole_ms)[len(tasks) // 2]
        sys.stdout.write(picture(middle))
    return 0


if __name__ == "__main__":
    sys.exit(main())
