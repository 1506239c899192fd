"""Three hospitals with real containers while a nemesis kills, cuts and mangles: `make chaos [DURATION=seconds] [SEED=n]`.

    python -m tests.chaos [--duration 60] [--seed 1] [--runtime mixed|runc|podman] [--folder build/chaos] [--keep]
    python -m tests.chaos --points

First everybody settles in; then orders come while things break; then all is healed, everybody comes to rest, and a checker
looks at what is outside. Exit code 1 when it finds anything. Journal and logs stay in FOLDER/SEED.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from agent.devkit.consortium import NotStarted
from agent.devkit.podman_service import NoPodman
from agent.errors import AgentError
from agent.log import LogLevel, configure
from tests.chaos.points import points
from tests.chaos.run import Outcome, run

SETTLE_S = 420.0


def main(arguments: list[str]) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument(
        "--duration", type=float, default=60.0, metavar="SECONDS", help="how long things break"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runtime", choices=("mixed", "runc", "podman"), default="mixed")
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"))
    parser.add_argument("--settle", type=float, default=SETTLE_S, metavar="SECONDS", help="to come to rest")
    parser.add_argument("--lax", action="store_true", help="an order may fail once its attempts are spent")
    parser.add_argument(
        "--without", metavar="GUARD", help="agents lack it: sweep, outbox, compare-and-set or dedup"
    )
    parser.add_argument("--keep", action="store_true", help="keep ledgers and shelves too")
    parser.add_argument("--points", action="store_true", help="list the fault points and end")
    told = parser.parse_args(arguments)
    if told.points:
        print("\n".join(points()))
        return 0
    configure(LogLevel.ERROR)
    folder = told.folder.absolute() / str(told.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    memory = Path(tempfile.mkdtemp(prefix="dcx-", dir=os.environ["XDG_RUNTIME_DIR"]))
    began = time.monotonic()
    try:
        outcome = run(
            seed=told.seed,
            duration_s=told.duration,
            settle_s=told.settle,
            runtime=told.runtime,
            folder=folder,
            memory=memory,
            is_strict=not told.lax,
            without=told.without,
            say=lambda line: print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True),
        )
    except (AgentError, NoPodman, NotStarted, OSError) as error:
        print(f"the run stopped: {error}")
        return 2
    finally:
        shutil.rmtree(memory, ignore_errors=True)
    tell(outcome, folder)
    if not (outcome.violations or told.keep):
        shutil.rmtree(folder / "t", ignore_errors=True)
    return 1 if outcome.violations else 0


def tell(outcome: Outcome, folder: Path) -> None:
    """What was done, and in one line at the end what came of it."""
    for violation in outcome.violations:
        print(f"violation  {violation}")
    if outcome.violations:
        print(f"journal and logs: {folder}")
    print(outcome.points_line)
    print(outcome.line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
