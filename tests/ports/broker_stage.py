"""What the brokers' tests share: handlers that remember, and a desk that has everything delivered, whichever broker it is."""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from agent.ports.broker import Broker, Handler, Queue
from agent.ports.broker_huey import HueyBroker
from tests.fakes.broker import MemoryBroker

PATIENCE_S = 20.0


class Heard:
    """Handlers for all queues that remember what they were called with, in order."""

    def __init__(self, act: Callable[[Queue, str], None] | None = None) -> None:
        self._act = act
        self._calls: list[tuple[Queue, str]] = []
        self._changed = threading.Condition()

    @property
    def calls(self) -> list[tuple[Queue, str]]:
        with self._changed:
            return list(self._calls)

    def handlers(self, *queues: Queue) -> dict[Queue, Handler]:
        """A handler for each of these queues, or for every one."""
        return {queue: self._handler_of(queue) for queue in queues or Queue}

    def wait_for(self, count: int) -> None:
        """Return once so many calls were made."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._calls) >= count, PATIENCE_S), self._calls

    def _handler_of(self, queue: Queue) -> Handler:
        def handle(item: str) -> None:
            with self._changed:
                self._calls.append((queue, item))
                self._changed.notify_all()
            if self._act is not None:
                self._act(queue, item)

        return handle


class Desk(Protocol):
    """A broker, and somebody who works off what it rings."""

    broker: Broker

    def deliver(self, heard: Heard, count: int, handlers: Mapping[Queue, Handler] | None = None) -> None:
        """Have so many calls made, and no more than are due; returns when the handlers have returned."""
        ...

    def pass_time(self, seconds: float) -> None:
        """Time passes, on a clock of the fake or not at all: the real one passes by itself."""
        ...

    def close(self) -> None:
        """Clear the desk."""
        ...


class MemoryDesk:
    """The fake."""

    def __init__(self) -> None:
        self.memory = MemoryBroker()
        self.broker: Broker = self.memory

    def deliver(self, heard: Heard, count: int, handlers: Mapping[Queue, Handler] | None = None) -> None:
        with suppress(ExceptionGroup):
            self.memory.pump(handlers or heard.handlers())
        assert len(heard.calls) >= count

    def pass_time(self, seconds: float) -> None:
        self.memory.advance(seconds)

    def close(self) -> None:
        pass


class HueyDesk:
    """The real one, its consumer in threads of this process."""

    def __init__(self, path: Path) -> None:
        self.huey = HueyBroker(path)
        self.broker: Broker = self.huey

    def deliver(self, heard: Heard, count: int, handlers: Mapping[Queue, Handler] | None = None) -> None:
        consumer = self.huey.consumer(handlers or heard.handlers(), {})
        consumer.start()
        heard.wait_for(count)
        consumer.stop()

    def pass_time(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        self.huey.close()
