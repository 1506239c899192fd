"""A sample begins when what the one before it left behind has ended: a container's clearing up, a result on its way.

Without this a task would be charged for the end of whatever stands before it in the round, and so would its baseline.
"""

import time
from pathlib import Path

LOOK_S = 0.15
BUSY = 0.1  # of all CPUs
PATIENCE_S = 1.0
IDLE = slice(3, 5)  # of a line in /proc/stat: idle, and idle while a disk works


def settle(
    stat: Path = Path("/proc/stat"), *, look_s: float = LOOK_S, patience_s: float = PATIENCE_S
) -> bool:
    """Wait until the CPUs were idle for nine tenths of a moment. Whether they were: on a busy machine nobody waits for long."""
    deadline_s = time.monotonic() + patience_s
    before = _ticks(stat)
    while True:
        time.sleep(look_s)
        now = _ticks(stat)
        passed = [new - old for new, old in zip(now, before, strict=True)]
        before = now
        if sum(passed[IDLE]) >= (1 - BUSY) * sum(passed):
            return True
        if time.monotonic() > deadline_s:
            return False


def _ticks(stat: Path) -> list[int]:
    """Of all CPUs together, by what they did; those of guests are counted in the first two."""
    return [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
