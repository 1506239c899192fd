"""What a task tells of itself while it runs, in which order, and that nothing of it stays."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime

from agent.domain.ids import JobId
from agent.domain.jobs import Job
from agent.ports.progress import Meter, NoMeter, Progress
from tests.pipeline.test_execute import run_here
from tests.pipeline.world import World


class Listening(NoMeter):
    """A meter that keeps what began, and how much moved in it."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str | None]] = []
        self.moved_bytes: dict[str, int] = {}
        self.totals: dict[str, int | None] = {}

    def begin(
        self,
        phase: str,
        step: str | None = None,
        *,
        total: int | None = None,
        limit_s: int | None = None,
        since: datetime | None = None,
    ) -> None:
        self.steps.append((phase, step))
        self.totals[phase] = total

    def moved(self, size_bytes: int) -> None:
        phase = self.steps[-1][0]
        self.moved_bytes[phase] = self.moved_bytes.get(phase, 0) + size_bytes


class Board:
    """A board of one meter for all tasks, and of which are in hand."""

    def __init__(self) -> None:
        self.meter = Listening()
        self.in_hand: list[JobId] = []
        self.had: list[JobId] = []

    @contextmanager
    def telling(self, job: Job) -> Iterator[Meter]:
        self.in_hand.append(job.id)
        self.had.append(job.id)
        try:
            yield self.meter
        finally:
            self.in_hand.remove(job.id)

    def read(self, jobs: Collection[JobId] | None = None) -> tuple[Progress, ...]:
        return ()


def test_a_learn_task_tells_its_steps_in_order_and_how_much_it_moved(world: World) -> None:
    board = Board()
    world.a.ports(progress=board)
    world.post(world.order(train=("a1", "b1"), test=()), world.a)

    run_here(world.a)

    phases = list(dict.fromkeys(phase for phase, _ in board.meter.steps))
    assert [phase for phase in phases if phase != "load"] == [
        "ask",
        "fetch",
        "open",
        "run",
        "pack",
        "upload",
        "attest",
    ]
    assert ("run", "train") in board.meter.steps
    for phase in ("open", "upload"):
        assert board.meter.moved_bytes[phase] == board.meter.totals[phase]
    assert (len(board.had), board.in_hand) == (1, [])
