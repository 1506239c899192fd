"""What the broker's tests run in processes of their own: `python -m tests.ports.broker_processes consume|ring FILE`."""

import os
import sys
from pathlib import Path

from agent.ports.broker import Queue
from agent.ports.broker_huey import HueyBroker


def consume(broker: HueyBroker) -> None:
    """Print every id of learn_tasks as it comes; on the end of standard input, stop in good order."""

    def handle(item: str) -> None:
        os.write(1, f"{item}\n".encode())

    consumer = broker.consumer({Queue.LEARN_TASKS: handle}, {Queue.LEARN_TASKS: 2})
    consumer.start()
    os.write(1, b"ready\n")
    sys.stdin.read()
    consumer.stop()


def ring(broker: HueyBroker) -> None:
    """Ring learn_tasks once for each line of standard input."""
    os.write(1, b"ready\n")
    for line in sys.stdin:
        broker.ring(Queue.LEARN_TASKS, line.strip())


if __name__ == "__main__":
    {"consume": consume, "ring": ring}[sys.argv[1]](HueyBroker(Path(sys.argv[2])))
