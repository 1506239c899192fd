"""The chain of tasks an order stands for: a pure function of the order, the same on every host."""

from collections.abc import Iterator
from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from agent.domain.ids import Digest
from agent.domain.orders import DatasetRef, Learnuplet, Order, Preduplet


class TaskKind(StrEnum):
    """What one task does with its dataset."""

    LEARN = "learn"
    TEST = "test"
    PREDICT = "predict"

    @property
    def use(self) -> str:
        """The word a sealed dataset's header must list in `uses` for this kind."""
        return "train" if self is TaskKind.LEARN else self.value


class Task(Struct, frozen=True):
    """One step of a chain: one kind of work on one dataset, on the host that holds it."""

    __test__ = False

    position: int
    kind: TaskKind
    dataset: DatasetRef


def plan(order: Order) -> tuple[Task, ...]:
    """The chain of this order: one learn task per training dataset, then one test task per test dataset, or
    one predict task per dataset."""
    match order:
        case Learnuplet():
            steps = [(TaskKind.LEARN, ref) for ref in order.train_data]
            steps += [(TaskKind.TEST, ref) for ref in order.test_data]
        case Preduplet():
            steps = [(TaskKind.PREDICT, ref) for ref in order.data]
        case _:
            assert_never(order)
    return tuple(Task(position, kind, ref) for position, (kind, ref) in enumerate(steps))


def task_at(order: Order, position: int) -> Task:
    """The task at this position of the plan, without making the whole plan. Raises: IndexError."""
    if isinstance(order, Preduplet):
        return Task(position, TaskKind.PREDICT, order.data[position])
    if position < len(order.train_data):
        return Task(position, TaskKind.LEARN, order.train_data[position])
    return Task(position, TaskKind.TEST, order.test_data[position - len(order.train_data)])


def images_for(order: Order, task: Task) -> Iterator[tuple[str, Digest]]:
    """The (role, digest) of each image that runs in this task."""
    if task.kind is TaskKind.TEST and isinstance(order, Learnuplet):
        yield "problem", order.problem_image.digest
    yield "algo", order.algo_image.digest
